"""FGD111."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check, dynamics
from fgclip_doctor.events import events, gradient_norms, warmed_up
from fgclip_doctor.progress import courses
from fgclip_doctor.run import Series
from fgclip_doctor_checks.causes import explaining

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@check("FGD111", "gradient-spike", Severity.WARNING)
def gradient_spike(
    run: Run, *, factor: float = 10.0, errors: float = 3.0, often: int = 3, early: int = 20
) -> Iterator[Finding]:
    """The gradient norm is again and again far outside its own history, or was once and the loss paid for it.

    Why: Adam's second moment lags behind, so one gradient ten times its usual size makes an update far larger than the
    learning rate means, and a clipped one still points where a single batch does.
    Evidence: a log of the gradient norm, 30 finite values after the warmup or more: values `factor` times those around
    them and over them by `errors` of their lower spread, in logarithms, `often` times and in a hundredth of the log, or
    more; or fewer, where a loss is lastingly higher after one of them.
    Benign: a norm over 10, or over max_grad_norm, that is steady: what is logged is the norm before clipping. The
    warmup, and the fall from a high start. A single spike that nothing came of. A level that rises and stays. What a
    bank, a restart or a resume does.
    Fix: look at the batch of that step (an empty or broken image, a caption of nothing), clip at 1, take a beta2 of
    0.95 to 0.98, or a lower learning rate. Don't tell from a logged norm over max_grad_norm that clipping is off.
    Sources: Wortsman et al. 2023, arXiv 2304.13013 (spikes 1 to 8 steps after Adam's second moments fall short);
    huggingface/open-r1#609 (the logged norm is that before clipping).
    """
    import numpy as np

    logged = gradient_norms(run)
    happened = np.array([event.step for event in events(run)])
    judged = 0
    for series in logged:
        steps, values = dynamics.finite(series.steps, series.values)
        settled = (steps > max(early, warmed_up(run))) & (values > 0)
        steps, values = steps[settled], values[settled]
        if len(values) < 30:
            continue
        judged += 1
        every = max(1, int(np.median(np.diff(steps))))
        found = dynamics.spikes(values, factor=factor, errors=errors)
        found = np.array([one for one in found if _rises(values, int(one), factor)], dtype=np.int64)
        found = found[~(np.abs(steps[found][:, None] - happened) <= 2 * every).any(axis=1)]
        if not len(found):
            continue
        paid = [one for one in found[:100].tolist() if _paid(run, int(steps[one]), every)]
        if paid or (len(found) >= often and len(found) >= 0.01 * len(values)):
            yield _finding(
                series, steps, values, int(paid[0] if paid else found[values[found].argmax()]), len(found), bool(paid)
            )
    if not judged:
        raise Missing("no gradient norm was logged 30 times after the warmup")


def _rises(values: "NDArray[np.float64]", at: int, factor: float) -> bool:
    """Whether a value is as far over those before it: norms that fall since the start have high ones at their head."""
    import numpy as np

    before = values[max(0, at - 32) : at]
    return len(before) > 0 and bool(values[at] >= factor * np.median(before))


def _paid(run: Run, step: int, every: int) -> bool:
    """Whether some loss is higher in the 20 values after a step than in the 20 before, by 5 errors and a tenth."""
    try:
        logged = courses(run)
    except Missing:
        return False
    for course in logged:
        at = int(course.steps.searchsorted(step))
        before, after = course.values[max(0, at - 20) : at], course.values[at + 1 : at + 21]
        if len(before) < 8 or len(after) < 8:
            continue
        shift = float(after[len(after) // 2 :].mean() - before.mean())
        error = dynamics.noise(course.values[max(0, at - 20) : at + 21]) * (1 / len(before) + 2 / len(after)) ** 0.5
        if shift > max(5 * error, 0.1 * abs(float(before.mean()))):
            return True
    return False


def _finding(
    series: Series, steps: "NDArray[np.int64]", values: "NDArray[np.float64]", at: int, count: int, paid: bool
) -> Finding:
    import numpy as np

    around = float(np.median(values[max(0, at - 32) : at + 32]))
    after = "and the loss was higher after it" if paid else f"one of {count} such spikes"
    return Finding(
        message=f"{series.name} reached {values[at]:.3g} at step {steps[at]}, {values[at] / around:.0f} times the "
        f"{around:.3g} around it, {after}.",
        where=series.name,
        evidence=(
            Evidence(
                name="gradient norm",
                value=float(values[at]),
                expected=around,
                why=f"the median around it; {count} of {len(values)} values are such spikes",
                source=str(series.source),
                step=int(steps[at]),
            ),
        ),
        explained_by=explaining("FGD111"),
    )
