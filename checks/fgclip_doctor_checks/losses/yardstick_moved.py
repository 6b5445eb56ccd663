"""FGD502: a jump of the loss that is one of its yardstick."""

from collections.abc import Iterator

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check
from fgclip_doctor.events import between
from fgclip_doctor.progress import rise, shift_of_null
from fgclip_doctor.terms import terms
from fgclip_doctor_checks.causes import explaining


@check("FGD502", "yardstick-moved", Severity.INFO)
def yardstick_moved(run: Run, *, agreement: float = 0.2, points: int = 5) -> Iterator[Finding]:
    """A loss term jumped because its candidates changed: the bank switched on, and nothing got worse.

    Why: From N to N + K candidates the null level rises by about ln((N + K) / N), more at a high scale. Features as
        good as before show that jump, and a loss curve alone reads it as an explosion.
    Evidence: A log. The largest rise between the means of `points` values before and after a change that took no longer
        than that (of a log of under 15 values, a third of them and no time between), beside the difference of the two
        exact null levels; they agree within the share `agreement` and two errors, and the loss doesn't come back. Where
        it isn't known how many candidates joined, a line of the log or the plan that says when.
    Benign: This is the benign reading itself. A jump of another size, one that goes back, or a bank that was never
        written is not explained by it.
    Fix: Nothing to fix. Compare learnt bits across the jump, and log the candidates beside the loss. A lower loss with
        fewer candidates is no progress.
    Sources: fgclip_doctor.theory derives the null level; facebookresearch/moco#9 (the loss rises as the queue fills).
    """
    reasons: list[str] = []
    judged = 0
    for term in terms(run):
        if isinstance(term, Missing):
            reasons.append(str(term))
            continue
        jump = rise(term, max(points, 2))
        if jump is None:
            reasons.append(f"the {term.name} loss has too few values")
            continue
        told = between(run, jump.index - 2 * term.every, jump.index + 2 * term.every)
        if term.before is None and (told is None or told.kind not in ("bank-on", "candidates")):
            reasons.append(f"nothing is known to have changed the candidates of the {term.name} loss")
            continue
        judged += 1
        if jump.size <= 4 * jump.error:
            continue
        source = str(term.series.source)
        jumped = f"The {term.name} loss rose from {jump.before:.2f} to {jump.after:.2f} near step {jump.index}"
        if term.before is not None:
            predicted = shift_of_null(term, term.before, term.candidates)
            if abs(jump.size - predicted) > agreement * predicted + 2 * jump.error:
                continue
            message = (
                f"{jumped} as its candidates went from {round(term.before)} to {round(term.candidates)}: the bank did "
                f"switch on. That moves its null level by {predicted:.2f}."
            )
            scale = f"at scale {term.scale:.4g}" if term.scale else "as ln N"
            why, expected = f"difference of the null levels {scale}; {term.counted}", predicted
        elif told is not None:
            message = f"{jumped}, where {told.detail}: more candidates raise it, and nothing got worse."
            why, expected = f"{told.kind} at step {told.step} ({told.source})", None
        yield Finding(
            message=message,
            where=term.series.name,
            evidence=(
                Evidence(
                    name="rise of the loss",
                    value=jump.size,
                    expected=expected,
                    why=why,
                    source=source,
                    step=jump.index,
                ),
            ),
            explained_by=explaining("FGD502", where=term.series.name),
        )
    if not judged:
        raise Missing("; ".join(dict.fromkeys(reasons)))
