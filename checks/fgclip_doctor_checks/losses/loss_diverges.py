"""FGD505."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf, log, sqrt

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check, dynamics, theory
from fgclip_doctor.events import between
from fgclip_doctor.progress import Course, candidates_at, courses, shift_of_null
from fgclip_doctor.terms import logged_candidates
from fgclip_doctor_checks.causes import explaining


@dataclass(frozen=True)
class Loss:
    """A loss that is lastingly higher than it was."""

    low: float
    end: float
    error: float
    learnt: float  # nats, at the lowest
    since: int  # the step of the lowest level
    half: int  # the step at which half of the rise was there


@check("FGD505", "loss-diverges", Severity.ERROR)
def loss_diverges(
    run: Run, *, lost: float = 0.5, least: float = 0.5, errors: float = 8.0, early: int = 50
) -> Iterator[Finding]:
    """A loss term has risen for good, by more than its yardstick moved: what was learnt is lost.

    Why: a learning rate too high, one bad batch without clipping, a scale without a cap or a resume without its
    optimizer throw a run back; it seldom comes back, and goes on costing the same.
    Evidence: a log of 12 values or more. The lowest level of any stretch (medians of a twentieth of the log) against
    the last one, which lie `least` nats, a share `lost` of what was learnt by then and `errors` errors apart, with
    nothing at its old level again. Candidates, scale, bank or learning rate that changed at the rise, as logged,
    declared or stated, explain a rise up to half as large again as the one they predict.
    Benign: a single low value or a single spike; the start; a bank that comes on and fills, and one that is on in the
    first `early` steps, whose rows are told by their age while features move fast; one of several terms whose yardstick
    isn't known, for a bank may have come on for it; cosine restarts; a loss scaled by the accumulation (FGD404). Harder
    data from some step on look the same: declare the change.
    Fix: go back to the checkpoint before the step that is named, halve the learning rate, and clip gradients at 1.
    Sources: Wortsman et al. 2023, "Stable and low-precision training for large-scale vision-language models", section 3
    (loss spikes); fgclip_doctor.theory (how far a bank moves the null level).
    """
    judged = [(course, found) for course in courses(run) if (found := _rise(course)) is not None]
    together = all(found.end - found.low >= least for _, found in judged)
    for course, found in judged:
        size = found.end - found.low
        if course.term is None and not together:
            continue  # a bank may have come on for one of the terms, and nothing tells
        if found.half < early and _on_from_the_start(run, course, found):
            continue
        if size < max(least, lost * found.learnt, errors * found.error) or _explained(run, course, found):
            continue
        bits = min(size, found.learnt) / theory.LN2 if course.term else size / theory.LN2
        wasted = int(course.steps[-1]) - found.since
        yield Finding(
            message=f"The {course.name} loss rose from {found.low:.2f} to {found.end:.2f} and stays there: about "
            f"{bits:.1f} bits are lost, and the {wasted} steps since step {found.since} wasted.",
            where=course.series.name,
            evidence=(
                Evidence(
                    name="last level of the loss",
                    value=found.end,
                    expected=f"at most {found.low + max(least, lost * found.learnt):.3f}",
                    why=f"it had been at {found.low:.3f} +- {found.error:.2g}; nothing is known to have happened",
                    source=str(course.series.source),
                    step=found.half,
                ),
            ),
            explained_by=explaining("FGD505", where=course.series.name),
        )
    if not judged:
        raise Missing("the losses that were logged have too few values")


def _rise(course: Course) -> Loss | None:
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
    return Loss(float(levels[low]), end, error, learnt, int(steps[start + (low + 1) * window - 1]), int(steps[middle]))


def _on_from_the_start(run: Run, course: Course, found: Loss) -> bool:
    """Whether a bank's rows were candidates at the lowest level already."""
    import numpy as np

    term = course.term
    if term is None or term.candidates <= 2 * term.anchors:
        return False
    if logged_candidates(run, term.name) is None:
        return "bank_warmup" in run.facts and run.number("bank_warmup") == 0
    return bool(candidates_at(run, term, np.array([found.since]))[0] > 2 * term.anchors)


def _explained(run: Run, course: Course, found: Loss) -> bool:
    """Whether something is known to have happened where the loss rose that explains it."""
    span = max(int(course.steps[-1] - course.steps[0]) // 50, 2 * (course.term.every if course.term else 1))
    told = between(run, found.since - span, found.half + span)
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
