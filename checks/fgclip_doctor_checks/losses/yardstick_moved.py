"""FGD502: a jump of the loss that is one of its yardstick."""

from collections.abc import Iterator
from math import sqrt

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check
from fgclip_doctor.terms import Term, terms


@check("FGD502", "yardstick-moved", Severity.INFO)
def yardstick_moved(run: Run, *, agreement: float = 0.2, points: int = 5) -> Iterator[Finding]:
    """A loss term jumped because its candidates changed: the bank switched on, and nothing got worse.

    Why: From N to N + K candidates the null level rises by about ln((N + K) / N), more at a high scale. Features as
        good as before show that jump, and a loss curve alone reads it as an explosion.
    Evidence: The largest rise between the means of `points` values before and after a change that took no longer than
        that, beside the difference of the two exact null levels; they agree within the share `agreement` and two
        errors, and the loss doesn't come back.
    Benign: This is the benign reading itself. A jump of another size, one that goes back, or a bank that was never
        written is not explained by it.
    Fix: Nothing to fix. Compare learnt bits across the jump, and log the candidates beside the loss.
    Sources: fgclip_doctor.theory derives the null level; facebookresearch/moco#9 (the loss rises as the queue fills).
    """
    reasons: list[str] = []
    judged = 0
    for term in terms(run):
        if isinstance(term, Missing):
            reasons.append(str(term))
            continue
        if term.before is None:
            reasons.append(f"nothing is known to have changed the candidates of the {term.name} loss")
            continue
        jump = _jump(term, max(points, 2))
        if jump is None:
            reasons.append(f"the {term.name} loss has too few values")
            continue
        judged += 1
        step, before, after, error = jump
        few, many = round(term.before), round(term.candidates)
        predicted = term.null.level - term.null_at(candidates=term.before).level
        rise = after - before
        if rise <= 4 * error or abs(rise - predicted) > agreement * predicted + 2 * error:
            continue
        source = str(term.series.source)
        yield Finding(
            message=f"The {term.name} loss rose from {before:.2f} to {after:.2f} near step {step} as its candidates "
            f"went from {few} to {many}: the bank did switch on. That moves its null level by {predicted:.2f}.",
            where=term.series.name,
            evidence=(
                Evidence(
                    name="rise of the loss",
                    value=rise,
                    expected=predicted,
                    why=f"difference of the null levels at scale {term.scale:.4g}; {term.counted}",
                    source=source,
                    step=step,
                ),
            ),
        )
    if not judged:
        raise Missing("; ".join(dict.fromkeys(reasons)))


def _jump(term: Term, points: int) -> tuple[int, float, float, float] | None:
    """Step, mean before, mean after and the error of their difference, where the loss rose most; None if too short."""
    import numpy as np

    finite = np.isfinite(term.series.values)
    steps, values = term.series.steps[finite], term.series.values[finite]
    if len(values) < 3 * points:
        return None
    means = np.convolve(values, np.ones(points) / points, mode="valid")
    best = int((means[2 * points :] - means[: -2 * points]).argmax())  # `points` values lie between the two windows
    before, change, after = np.split(values[best : best + 3 * points], 3)
    step = best + points + int(np.diff(change, prepend=before[-1], append=after[0]).argmax())
    if np.median(values[best + 2 * points :]) < (before.mean() + after.mean()) / 2:
        return int(steps[step]), float(before.mean()), float(before.mean()), 0.0  # it went back
    error = sqrt((before.var(ddof=1) + after.var(ddof=1)) / points)
    return int(steps[step]), float(before.mean()), float(after.mean()), error
