"""Losses that are lastingly higher than they were, and what is known to have happened that explains it."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, log, sqrt

from fgclip_doctor import dynamics
from fgclip_doctor.events import between, log_scale, scales
from fgclip_doctor.progress import Course, candidates_at, shift_of_null
from fgclip_doctor.run import Run
from fgclip_doctor.terms import logged_candidates


@dataclass(frozen=True)
class Rise:
    """A loss that is lastingly higher than it was."""

    low: float
    end: float
    error: float
    learnt: float  # nats, at the lowest
    since: int  # the step of the lowest level
    half: int  # the step at which half of the rise was there


def lasting(course: Course) -> Rise | None:
    """The rise from the lowest level to the last; None where there are too few values."""
    import numpy as np

    steps, values = dynamics.condensed(course.steps, course.values)
    if len(values) < 12:
        return None
    window = max(3, len(values) // 20)
    whole = len(values) // window * window
    levels = np.median(values[-whole:].reshape(-1, window), axis=1)  # the last one is that of the last values
    low, end = int(levels[:-1].argmin()), float(levels[-1])
    start = len(values) - whole
    later = levels[low + 1 :]
    half = levels[low] + (end - levels[low]) / 2
    up = int(np.flatnonzero(later <= half)[-1]) + 1 if (later <= half).any() else 0
    if up >= len(later):
        end = float(levels[low])  # it isn't up there
    middle = min(start + (low + 1 + up) * window, len(values) - 1)
    error = dynamics.noise(values) * dynamics.MEDIAN_ERROR * sqrt(2 / window)
    top = course.term.chance if course.term is not None else float(levels[0])
    learnt = max(0.0, top - float(levels[low]))
    return Rise(float(levels[low]), end, error, learnt, int(steps[start + (low + 1) * window - 1]), int(steps[middle]))


def on_from_the_start(run: Run, course: Course, found: Rise) -> bool:
    """Whether a bank's rows were candidates at the lowest level already."""
    import numpy as np

    term = course.term
    if term is None or term.candidates <= 2 * term.anchors:
        return False
    if logged_candidates(run, term.name) is None:
        return "bank_warmup" in run.facts and run.number("bank_warmup") == 0
    return bool(candidates_at(run, term, np.array([found.since]))[0] > 2 * term.anchors)


def _fell(run: Run, found: Rise, span: int) -> bool:
    """Whether a logged scale fell to under half where the loss rose."""
    import numpy as np

    for series in scales(run):
        steps, logs = log_scale(series)
        before, after = logs[steps <= found.since], logs[steps >= found.half]
        if len(before) and len(after) and float(np.median(after)) < float(np.median(before[-span:])) - log(2):
            return True
    return False


def explained(run: Run, course: Course, found: Rise) -> bool:
    """Whether something is known to have happened where the loss rose that explains it."""
    span = max(int(course.steps[-1] - course.steps[0]) // 50, 2 * (course.term.every if course.term else 1))
    told = between(run, found.since - span, found.half + span)
    if told is not None and told.kind == "scale" and _fell(run, found, span):
        told = None  # a scale that is lost with the loss is no cause of it
    size, term = found.end - found.low, course.term
    predicted = 0.0
    if term is not None and term.before is not None:
        predicted = abs(shift_of_null(term, term.before, term.candidates))
        if told is None and abs(size - predicted) <= 0.2 * predicted + 2 * found.error:
            return True  # what a bank of that size does, though nobody said when it came on
    if told is not None and told.kind != "resume":
        return size <= 1.5 * predicted if predicted and told.kind in ("bank-on", "candidates") else True
    count = run.number("accumulation", 1.0)
    return (
        count > 1
        and found.low > 0
        and abs(log(found.end / found.low) - log(count)) <= (0.05 if found.error < inf else 0)
    )
