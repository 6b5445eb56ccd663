"""FGD505."""

from collections.abc import Iterator

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check, theory
from fgclip_doctor.progress import courses
from fgclip_doctor.rises import explained, lasting, on_from_the_start
from fgclip_doctor_checks.causes import explaining


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
    judged = [(course, found) for course in courses(run) if (found := lasting(course)) is not None]
    together = all(found.end - found.low >= least for _, found in judged)
    for course, found in judged:
        size = found.end - found.low
        if course.term is None and not together:
            continue  # a bank may have come on for one of the terms, and nothing tells
        if found.half < early and on_from_the_start(run, course, found):
            continue
        if size < max(least, lost * found.learnt, errors * found.error) or explained(run, course, found):
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
