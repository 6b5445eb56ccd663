"""FGD508."""

from collections.abc import Iterator
from math import log2, sqrt

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check, theory
from fgclip_doctor.events import learning_rate
from fgclip_doctor.progress import candidates_at, courses, stretch
from fgclip_doctor_checks.causes import explaining


@check("FGD508", "loss-plateau", Severity.INFO)
def loss_plateau(
    run: Run, *, steps: int = 500, points: int = 40, gain: float = 0.05, most: float = 0.5
) -> Iterator[Finding]:
    """A loss term has gained no bits for long, with most of them still to be had.

    Why: what doesn't learn any more costs the same as what does. That a run stands still can be measured; whether it
    could do better can't, from its loss alone.
    Evidence: a log with known candidates, the last half of it, of `points` values and `steps` steps or more, in which
    nothing is known to have happened: the second half of that is no more than `gain` bits better than the first, to
    within as much; over a quarter of a bit is learnt, and less than a share `most` of log2 N.
    Benign: a converged run, whose floor is that of its data: repeated captions, label smoothing, small crops. A
    learning rate that has decayed under a tenth of its peak. Chance is FGD501.
    Fix: evaluate first: the loss may rest while retrieval goes on rising. Else count repeated captions among the
    candidates, which set a floor, and see which part has stopped. Fewer candidates lower the loss, and learn nothing.
    Sources: HobbitLong/SupContrast#45 (a loss that looks saturated); mlfoundations/open_clip#821 (repeated captions).
    """
    judged = 0
    for course in courses(run):
        term = course.term
        if term is None or term.assumed:
            continue
        at, values = stretch(run, course)
        at, values = at[len(at) // 2 :], values[len(values) // 2 :]
        if len(at) < points or at[-1] - at[0] < steps:
            continue
        judged += 1
        half = len(at) // 2
        first, first_error = theory.mean_with_error(values[:half])
        last, last_error = theory.mean_with_error(values[half:])
        error = sqrt(first_error**2 + last_error**2) / theory.LN2
        gained = (first - last) / theory.LN2
        candidates = float(candidates_at(run, term, at[-1:])[0])
        bits, top = (term.chance_at(candidates) - last) / theory.LN2, log2(candidates)
        standing = abs(gained) <= gain and 2 * error <= gain
        between = 0.25 < bits < most * top and last - term.floor >= 0.25
        if not standing or not between or _decayed(run, int(at[0])):
            continue
        yield Finding(
            message=f"The {term.name} loss has gained {gained:.2f} +- {2 * error:.2f} bits from step {at[0]} to "
            f"{at[-1]}, with {bits:.1f} of {top:.1f} learnt: it is converged, or stuck.",
            where=term.series.name,
            evidence=(
                Evidence(
                    name="bits gained",
                    value=gained,
                    expected=f"over {gain:g}",
                    why=f"between the halves of the last {len(at)} values; {bits:.2f} bits by ln N - loss",
                    source=str(term.series.source),
                    step=int(at[0]),
                ),
            ),
            explained_by=explaining("FGD508"),
        )
    if not judged:
        raise Missing(f"no loss with known candidates was logged over {2 * steps} steps in which nothing happened")


def _decayed(run: Run, since: int) -> bool:
    """Whether the learning rate has been under a tenth of its peak for most of the time since."""
    import numpy as np

    rates = learning_rate(run)
    if rates is None:
        return False
    late = rates.values[rates.steps >= since]
    return bool(len(late)) and float(np.median(late)) < 0.1 * float(rates.values.max())
