"""Losses that are a whole factor off: by a jump of just that size, or from their first values on."""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING

from fgclip_doctor import dynamics
from fgclip_doctor.events import between, gradient_norms
from fgclip_doctor.run import Run, Series
from fgclip_doctor.sums import decompose
from fgclip_doctor.terms import Term

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Weight:
    """The largest weight of a term in the total, and by which factor it is off: 0 where it is by none."""

    total: Series
    name: str
    weight: float
    factor: float
    rows: int  # that it was fitted to


def heaviest(run: Run, count: float, tolerance: float) -> Weight:
    """The largest weight, if `count` or one over it is its factor. `Missing` where the total is no sum of its terms."""
    found = decompose(run)
    weight = max(found.weights)
    mean = weight - min(found.weights) <= tolerance * weight  # of the terms, which is no fault
    meant = mean and abs(weight * len(found.weights) - 1) <= tolerance
    factor = next((one for one in (count, 1 / count) if abs(weight / one - 1) <= tolerance), 0.0)
    name = found.parts[found.weights.index(weight)].name
    return Weight(found.total, name, weight, 0.0 if meant else factor, len(found.steps))


def first_values(term: Term) -> float | None:
    """The mean of the first values, which one step of learning has hardly changed."""
    values = dynamics.finite(term.series.steps, term.series.values)[1]
    return float(values[: min(3, len(values))].mean()) if len(values) >= 3 else None


def jump_by(run: Run, name: str, count: float) -> dynamics.Shift | None:
    """A jump of a loss by the factor `count`, up or down, with `index` a step; one without an error if there is none.

    The gradient norm has to jump with it, where one was logged, and nothing else may have happened there.
    """
    steps, shifts = _ratios(run.series[name].standing, count)
    if not len(steps):
        return None
    logged = gradient_norms(run)
    norms = _ratios(logged[0], count) if logged else None
    every = int(steps[-1] - steps[0]) // max(len(steps) - 1, 1) + 1
    for shift in shifts:
        at = int(steps[shift.index])
        told = between(run, at - 3 * every, at + 3 * every)
        followed = norms is None or any(
            abs(int(norms[0][one.index]) - at) <= 3 * every and one.size * shift.size > 0 for one in norms[1]
        )
        if followed and (told is None or told.kind == "resume"):
            return dynamics.Shift(at, shift.before, shift.after, max(shift.error, 1e-9))
    return dynamics.Shift(0, 0.0, 0.0, 0.0)


def _ratios(series: Series, count: float) -> tuple[NDArray[np.int64], list[dynamics.Shift]]:
    """Steps of a series, and the shifts of its logarithm that are just by `count`; no steps where it is too short."""
    import numpy as np

    steps, values = dynamics.condensed(*dynamics.finite(series.steps, series.values))
    window = min(10, len(values) // 3)
    if window < 4 or (values <= 0).any():
        return steps[:0], []
    found = dynamics.shifts(np.log(values), window=window, least=0.9 * log(count), errors=8.0)
    return steps, [one for one in found if abs(abs(one.size) - log(count)) <= min(0.15, 3 * one.error + 0.01)]
