"""How far a loss term has come: how its yardstick moved under it, and the bits that it has learnt."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

from fgclip_doctor import dynamics, events, theory
from fgclip_doctor.run import Missing, Run, Series
from fgclip_doctor.terms import Term, logged_candidates, sites, terms

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Course:
    """A logged loss with its yardstick, where it is known. Finite values, of what a restart didn't redo."""

    name: str
    series: Series
    term: Term | None
    steps: NDArray[np.int64]
    values: NDArray[np.float64]


def courses(run: Run) -> list[Course]:
    """Every loss: each term, and the total only where no term was logged."""
    if any(sites(run)):
        seen = [one for one in terms(run) if isinstance(one, Term)]
        return [
            Course(one.name, one.series, one, *dynamics.finite(one.series.steps, one.series.values)) for one in seen
        ]
    try:
        known = {one.name: one for one in terms(run) if isinstance(one, Term)}
    except Missing:
        known = {}
    logged = {
        role[5:]: run.loss(role[5:]) for role, name in run.roles.items() if role[:5] == "loss." and name in run.series
    }
    if len(logged) > 1:
        logged.pop("total", None)
    if not logged:
        raise Missing("no loss was logged")
    return [
        Course(name, series, known.get(name), *dynamics.finite(series.steps, series.values))
        for name, series in logged.items()
    ]


def stretch(run: Run, course: Course, *, early: int = 20) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The longest stretch of a loss, after the warmup and the first 5 %, in which nothing is known to have happened.

    A jump that its bank explains ends a stretch too, though nobody told of it.
    """
    import numpy as np

    steps, values = course.steps, course.values
    if not len(steps):
        return steps, values
    begin = max(early, events.warmed_up(run), steps[0] + 0.05 * (steps[-1] - steps[0]))
    ends = {event.step for event in events.events(run) if event.step > begin}
    jump = bank_jump(course.term, agreement=0.2) if course.term is not None else None
    ends |= {jump[0].index} if jump is not None else set()
    edges = np.searchsorted(steps, [begin + 1, *sorted(ends), steps[-1] + 1])
    longest = int(np.diff(edges).argmax())
    return steps[edges[longest] : edges[longest + 1]], values[edges[longest] : edges[longest + 1]]


def rise(term: Term, points: int = 5) -> dynamics.Shift | None:
    """The largest rise of a term between two windows of up to `points` values with as many between them, that stays.

    Of no size where the loss comes back; None where the log is too short. The error of a short log is at least that of
    the null noise.
    """
    import numpy as np

    steps, values = dynamics.condensed(*dynamics.finite(term.series.steps, term.series.values))
    window = min(points, len(values) // 3)
    if window < 2:
        return None
    gap = window if len(values) >= 3 * points else 0  # a bank that fills takes its time; a short log has none to spare
    means = np.convolve(values, np.ones(window) / window, mode="valid")
    best = int((means[window + gap :] - means[: -window - gap]).argmax())
    before, change, after = np.split(values[best : best + 2 * window + gap], [window, window + gap])
    index = best + window + int(np.diff(change, prepend=before[-1], append=after[0]).argmax())
    if np.median(values[index:]) < (before.mean() + after.mean()) / 2:
        after = before
    error = sqrt((before.var(ddof=1) + after.var(ddof=1)) / window)
    if window < 5 and term.scale is not None and not term.sigmoid:
        error = max(error, term.null.noise * sqrt(2 / window))
    return dynamics.Shift(int(steps[index]), float(before.mean()), float(after.mean()), error)


def bank_jump(term: Term, *, agreement: float, points: int = 5) -> tuple[dynamics.Shift, float] | None:
    """The rise of a term that its bank's coming on explains, with `index` a step, and the rise that it predicts.

    They agree within the share `agreement` of the prediction and two errors.
    """
    jump = rise(term, points) if term.before is not None else None
    if jump is None:
        return None
    predicted = shift_of_null(term, term.before or 1.0, term.candidates)
    fits = jump.size > 4 * jump.error and abs(jump.size - predicted) <= agreement * predicted + 2 * jump.error
    return (jump, predicted) if fits else None


def shift_of_null(term: Term, before: float, after: float) -> float:
    """How far the null level moves with the candidates; where no scale is known, how far chance does."""
    if term.scale is None or term.sigmoid:
        return term.chance_at(after) - term.chance_at(before)
    return term.null_at(candidates=after).level - term.null_at(candidates=before).level


def candidates_at(run: Run, term: Term, steps: NDArray[np.int64]) -> NDArray[np.float64]:
    """The candidates of a term at each of `steps`: as logged, or without and with the bank's rows."""
    import numpy as np

    log = logged_candidates(run, term.name)
    if log is not None:
        order = np.argsort(log.steps, kind="stable")
        return np.maximum(np.interp(steps, log.steps[order], log.values[order]), 1.0)
    counts = np.full(len(steps), term.candidates)
    if term.before is not None:
        told = next((one for one in events.events(run) if one.kind == "bank-on"), None)
        jump = bank_jump(term, agreement=0.2)
        start = told.step if told is not None else jump[0].index if jump is not None else 0
        counts[steps < start] = term.before
    return counts


@dataclass(frozen=True, slots=True)
class Learnt:
    """Bits learnt over time, at least, with a band of two errors around them. All arrays have one length."""

    steps: NDArray[np.int64]
    bits: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def learnt(run: Run, term: Term, *, points: int = 100) -> Learnt:
    """How many bits a term had learnt at up to `points` steps: ``(chance - loss) / ln 2``, by the candidates there.

    A bound from below, whatever the scale (van den Oord et al. 2018). The errors are those of means over neighbours.
    """
    import numpy as np

    steps, values = dynamics.finite(term.series.steps, term.series.values)
    candidates = candidates_at(run, term, steps)
    counts, which = np.unique(candidates, return_inverse=True)
    chance = np.array([term.chance_at(float(one)) for one in counts])[which]
    bits = (chance - values) / theory.LN2
    size = max(1, -(-len(bits) // points))
    starts = np.arange(0, len(bits), size)
    sizes = np.diff(np.append(starts, len(bits)))
    means = np.add.reduceat(bits, starts) / sizes
    error = dynamics.noise(bits) / np.sqrt(sizes)
    middles = steps[np.minimum(starts + sizes // 2, len(steps) - 1)]
    return Learnt(middles, means, means - 2 * error, means + 2 * error)
