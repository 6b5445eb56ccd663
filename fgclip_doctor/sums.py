"""The total loss as a weighted sum of the terms that were logged beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import exp
from typing import TYPE_CHECKING

from fgclip_doctor import dynamics
from fgclip_doctor.loss_names import AROUND, is_loss
from fgclip_doctor.run import Missing, Run, Series

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FEWEST = 20  # rows that a sum is told by
STILL = 1e-5  # of a term's size: what is left of float32 once it was averaged
ROUNDING = 3e-5  # of the total: float32, averaged over micro-batches, and with six digits printed
EXACT = 2e-3  # of the spread of the total: what rounding and running means may leave


@dataclass(frozen=True, slots=True)
class Sum:
    """``total = constant + sum of weight * part``, at the steps at which all of them were logged."""

    total: Series
    parts: tuple[Series, ...]
    weights: tuple[float, ...]
    constant: float
    error: float  # of the constant
    steps: NDArray[np.int64]
    values: NDArray[np.float64]  # of the parts, (steps, parts)
    residuals: NDArray[np.float64]  # of the total
    resolution: float  # what a residual may be by rounding
    still: bool  # whether a term stands still, so that its weight and a constant can't be told apart
    exact: bool  # whether what is left varies by no more than rounding: if not, some term that moves wasn't logged


def total_of(run: Run) -> Series:
    name = run.roles.get("loss.total")
    if name is None or name not in run.series:
        raise Missing("no total loss was logged")
    return run.series[name].standing


def parts_of(run: Run) -> list[Series]:
    """The logged training losses besides the total, each once.

    Where there is a total, without what a recorder sampled at steps of its own: the terms that were logged are those.
    """
    total = run.roles.get("loss.total")
    sampled = run.recording.first.path if run.recording and total in run.series else None
    return [
        one.standing
        for name, one in run.series.items()
        if name != total
        and one.source.path != sampled
        and is_loss(name)
        and not AROUND.search(name.lower())
        and not name.lower().endswith("train_loss")
        and len(one.values)
    ]


def decompose(run: Run) -> Sum:
    """The total as a sum of its parts. `Missing` where it isn't one, to within rounding, at most of its steps."""
    import numpy as np

    total, parts = total_of(run), parts_of(run)
    if not parts:
        raise Missing("no term of the loss was logged beside the total")
    tables = [dynamics.by_step(one.steps, one.values) for one in (total, *parts)]
    steps = tables[0][0]
    for other, _ in tables[1:]:
        steps = steps[np.isin(steps, other)]
    if len(steps) < FEWEST:
        raise Missing(f"total and terms were logged together at fewer than {FEWEST} steps")
    steps = steps[:: -(-len(steps) // dynamics.MOST)]  # enough to tell a sum by, and a burst
    columns = [values[np.searchsorted(at, steps)] for at, values in tables]
    y, x = columns[0], np.stack(columns[1:], axis=1)
    if not float(np.abs(x).max()) + float(np.abs(y).max()) < 1e100:
        raise Missing("the losses are too large to be taken apart")
    still = bool((np.ptp(x, axis=0) <= STILL * np.abs(x).mean(axis=0)).any())
    kept = _independent(x)
    parts, x = [parts[one] for one in kept], x[:, kept]
    if not parts:
        raise Missing("no term of the loss changes")
    resolution = (total.resolution or 0.0) + float(np.mean([abs(one.resolution or 0.0) for one in parts])) * len(parts)
    rows = np.ones(len(y), dtype=bool)
    design = np.column_stack([np.ones(len(y)), x])
    fitted = _least_absolute(design, y)
    for _ in range(30):
        residuals = y - design @ fitted
        limit = max(4 * dynamics.spread(residuals[rows]), EXACT * dynamics.spread(y), resolution)
        if (again := np.abs(residuals) <= limit).sum() < max(len(y) // 2, len(fitted) + 2) or (again == rows).all():
            break
        rows = again
        fitted = np.asarray(np.linalg.lstsq(design[rows], y[rows], rcond=None)[0], dtype=np.float64)
    left = float(residuals[rows].std())
    if left > max(EXACT * float(y.std()), resolution) or rows.sum() < max(len(y) // 2, FEWEST // 2):
        raise Missing("the total is no sum of the terms that were logged")
    covariance = np.linalg.pinv(design[rows].T @ design[rows]) * max(left, resolution / 4, 1e-12) ** 2
    return Sum(
        total=total,
        parts=tuple(parts),
        weights=tuple(map(float, fitted[1:])),
        constant=float(fitted[0]),
        error=float(np.sqrt(covariance[0, 0])),
        steps=steps,
        values=x,
        residuals=residuals,
        resolution=max(limit, resolution),
        still=still,
        exact=left <= max(2 * resolution, ROUNDING * float(np.abs(y).mean())),
    )


def _least_absolute(design: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """The fit of least absolute residuals, which rows that lack a term don't bend: by reweighted least squares."""
    import numpy as np

    weights: NDArray[np.float64] = np.ones(len(y))
    fitted: NDArray[np.float64] = np.zeros(design.shape[1])
    for _ in range(50):
        fitted = np.asarray(np.linalg.lstsq(design * weights[:, None], y * weights, rcond=None)[0], dtype=np.float64)
        floor = 1e-6 * max(float(y.std()), 1e-12)
        weights = np.asarray(1 / np.sqrt(np.maximum(np.abs(y - design @ fitted), floor)), dtype=np.float64)
    return fitted


def _independent(columns: NDArray[np.float64]) -> list[int]:
    """Which columns change, without those that are a constant and a multiple of one before."""
    import numpy as np

    kept: list[int] = []
    for place in range(columns.shape[1]):
        one = columns[:, place] - columns[:, place].mean()
        size = float(np.linalg.norm(one))
        others = [columns[:, other] - columns[:, other].mean() for other in kept]
        alike = any(abs(one @ other) > (1 - 1e-9) * size * np.linalg.norm(other) for other in others)
        if size > STILL * max(1.0, float(np.abs(columns[:, place]).sum())) and not alike:
            kept.append(place)
    return kept


def never_changes(one: Series) -> bool:
    """Whether a term is constant, is not off, and was printed finely enough to tell."""
    import numpy as np

    values = one.values[np.isfinite(one.values)]
    printed = one.resolution or 0.0
    return len(values) > 0 and dynamics.constant(values) and abs(values[0]) > max(2 * printed, 1e-6) and printed <= 1e-3


def unlogged_constant(found: Sum) -> float | None:
    """What is left of the total at every step, if it is more than errors and rounding leave."""
    level = float(abs(found.values @ [abs(weight) for weight in found.weights]).mean())
    least = max(10 * found.error, 10 * found.resolution, 0.01 * level, 0.01)
    return found.constant if found.exact and not found.still and abs(found.constant) > least else None


@dataclass(frozen=True, slots=True)
class Bursts:
    """Where a term has no record and the total has one."""

    part: Series
    total: Series
    share: float  # of the steps at which the total was logged
    count: int
    longest: int
    anchors: float  # a step
    by_chance: float  # the share of steps without any anchor


def bursts(run: Run, parts: list[Series], share: float) -> Iterator[Bursts]:
    """Terms without a record where the total has one, more often than batches without a region explain."""
    import numpy as np

    try:
        total = total_of(run)
    except Missing:
        return
    anchors = run.number("micro_batch", 0.0) * run.number("regions_per_sample", 1.0) * run.number("accumulation", 1.0)
    for one in parts:
        at = np.unique(total.steps[(total.steps >= one.steps.min()) & (total.steps <= one.steps.max())])
        there = np.isin(at, one.steps)
        gaps = np.diff(np.flatnonzero(there))
        if not anchors or not len(gaps) or there.all() or len(np.unique(gaps)) < 2:
            continue  # none missing, or logged less often
        missing, count = 1 - float(there.mean()), int((gaps > 1).sum())
        if missing >= max(share, 5 * exp(-anchors)) and count >= 3:
            yield Bursts(one, total, missing, count, int(gaps.max()) - 1, anchors, exp(-anchors))


def left_out(found: Sum, share: float) -> Iterator[tuple[Series, float, float]]:
    """Terms that were logged and are yet no part of the total at some steps: each, its weight, and their share."""
    import numpy as np

    for place, (one, weight) in enumerate(zip(found.parts, found.weights, strict=True)):
        part = weight * found.values[:, place]
        without = np.abs(found.residuals + part) <= np.maximum(found.resolution, 0.02 * np.abs(part))
        without &= np.abs(part) > 4 * found.resolution
        if without.mean() >= share and without.sum() >= 5:
            yield one, weight, float(without.mean())
