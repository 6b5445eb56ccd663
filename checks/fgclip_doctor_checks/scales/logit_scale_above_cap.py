"""FGD301."""

from collections.abc import Iterator
from math import exp, log

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check
from fgclip_doctor.events import learning_rate, log_scale, scales
from fgclip_doctor.provenance import drift, half_ulp, in_log_space, sigmoid
from fgclip_doctor_checks.causes import explaining


@check("FGD301", "logit-scale-above-cap", Severity.WARNING)
def logit_scale_above_cap(run: Run, *, cap: float = log(100)) -> Iterator[Finding]:
    """A logit scale is over its cap, so nothing bounds the sharpness of the softmax.

    Why: CLIP clips exp(logit_scale) at 100 "to prevent training instability"; over it the softmax saturates, and in
    float16 the scale overflows. Branch scales are the ones that a clamp forgets.
    Evidence: the value in log space, against ln 100 and what rounding of the stored type and one step may add (a clamp
    before the forward leaves the last update in the checkpoint). Without weights, the last logged value.
    Benign: resting at the cap; a parameter that holds a temperature or a raw scale (told by name and size); the
    sigmoid loss, which has no cap.
    Fix: clamp every scale, those of the branches too, to ln 100 after each optimizer step.
    Sources: Radford et al. 2021, section 2.5; openai/CLIP#530; open_clip's training loop (clamp_(0, ln 100)).
    """
    if sigmoid(run):
        raise Missing("the sigmoid loss has no cap on its scale")
    if not run.checkpoints:
        yield from _by_log(run, cap)
        return
    for scale in run.scales():
        if not in_log_space(scale):
            continue
        allowed = 1e-3 + half_ulp(cap, scale.tensor.dtype)
        if run.checkpoint.optimizer is not None:
            moved = drift(run, scale.tensor.name)
            allowed += moved.bound / max(moved.steps, 1)
        if scale.last > cap + allowed:
            yield Finding(
                message=f"{scale.tensor.name} is {scale.last:.4f}: a scale of {exp(scale.last):.1f}, over the cap of "
                f"{exp(cap):.0f}.",
                where=scale.tensor.name,
                evidence=(
                    Evidence(
                        name="logit scale",
                        value=round(scale.last, 5),
                        expected=f"at most {cap:.4f}",
                        why=f"ln 100, give or take {allowed:.2g} for rounding and one step",
                        source=str(scale.tensor.source),
                        step=run.checkpoint.step,
                    ),
                ),
                explained_by=explaining("FGD301", where=scale.tensor.name),
            )


def _by_log(run: Run, cap: float) -> Iterator[Finding]:
    """The scales whose last logged value is over the cap by more than two printed places and Adam's largest step."""
    logged = [one for one in scales(run) if len(log_scale(one)[1])]
    if not logged:
        raise Missing("no logit scale was found, in weights or in a log")
    rates = learning_rate(run)
    step = 3.2 * (float(rates.values.max()) if rates is not None else run.number("learning_rate", 0.01))
    for series in logged:
        last = float(log_scale(series)[1][-1])
        printed = (series.resolution or 0.0) / max(min(abs(float(series.values[-1])), 1.0), 1e-9)  # in logarithms
        allowed = 1e-3 + step + 2 * printed
        if last > cap + allowed:
            yield Finding(
                message=f"{series.name} is logged as {last:.4f}: a scale of {exp(min(last, 700.0)):.1f}, over the "
                f"cap of {exp(cap):.0f}.",
                where=series.name,
                evidence=(
                    Evidence(
                        name="logit scale",
                        value=round(last, 5),
                        expected=f"at most {cap:.4f}",
                        why=f"ln 100, give or take {allowed:.2g} for the decimal places and one step",
                        source=str(series.source),
                        step=int(series.steps[-1]),
                    ),
                ),
                explained_by=explaining("FGD301", where=series.name),
            )
