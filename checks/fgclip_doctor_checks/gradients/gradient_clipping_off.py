"""FGD109."""

import re
from collections.abc import Iterator

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check, dynamics, moments
from fgclip_doctor.events import between, gradient_norms, warmed_up
from fgclip_doctor.run import Fact, Source

BY_NORM = re.compile(r"norm|gradient_clipping|--fact")  # Lightning's gradient_clip_val may be of values


@check("FGD109", "gradient-clipping-off", Severity.WARNING)
def gradient_clipping_off(
    run: Run, *, tolerance: float = 0.1, factor: float = 10.0, errors: float = 8.0, often: int = 3
) -> Iterator[Finding]:
    """Gradients are not clipped, though a threshold is configured, or though they have spikes.

    Why: contrastive gradients have heavy tails. Without clipping one batch can move the model further than a hundred
    others; and a threshold that is configured in one place may be read in another.
    Evidence: the norm of the gradients that the optimizer was given, as recorded before its steps (`often` times) or
    from Adam's second moment, over the configured threshold by `tolerance` of it: with clipping that can't be. A
    threshold in the trainer's arguments that DeepSpeed's configuration leaves out. A threshold of 0 beside logged norms
    with spikes (`factor` times those around them, `often` times or more).
    Benign: a logged norm over the threshold: it is the norm before clipping, and says nothing. No clipping where the
    norms are steady. Weight decay inside of the gradients (Adam's, not AdamW's), of which the moments tell too.
    Fix: max_grad_norm=1.0; under DeepSpeed "gradient_clipping": "auto" in its configuration, where absent is off; in a
    loop of your own clip_grad_norm_ after scaler.unscale_ and before optimizer.step.
    Sources: axolotl-ai-cloud/axolotl#1381; DeepSpeed, GRADIENT_CLIPPING_DEFAULT = 0; huggingface/open-r1#609.
    """
    threshold = run.fact("max_grad_norm")
    asked = run.facts.get("clipping_asked")
    if asked is not None and asked.value > 0 and threshold.value == 0:
        message = f"max_grad_norm is {asked.value:g}, but DeepSpeed's configuration has no gradient_clipping."
        why = f"DeepSpeed's own default; the trainer's threshold is in {asked.source}"
        yield _finding(message, "clipping threshold", 0.0, asked.value, why, threshold.source, threshold)
    elif threshold.value > 0:
        yield from _unclipped(run, threshold, tolerance, often)
    else:
        yield from _spiky(run, threshold, factor, errors, often)


def _spiky(run: Run, threshold: Fact, factor: float, errors: float, often: int) -> Iterator[Finding]:
    """The logged norms with spikes."""
    logged = gradient_norms(run)
    if not logged:
        raise Missing("clipping is off, and no gradient norm was logged that would tell whether it is needed")
    for series in logged:
        steps, values = dynamics.finite(series.steps, series.values)
        settled = (steps > max(20, warmed_up(run))) & (values > 0)
        steps, values = steps[settled], values[settled]
        if len(values) < 30:
            continue
        spikes = dynamics.spikes(values, factor=factor, errors=errors).tolist()
        found = [one for one in spikes if between(run, steps[one] - 2, steps[one] + 2) is None]
        if len(found) >= often:
            worst = max(found, key=lambda one: float(values[one]))
            message = f"Clipping is off, and {series.name} has {len(found)} spikes, up to {values[worst]:.3g} at step "
            why = f"{len(found)} of {len(values)} records are {factor:g} times those around them; max_grad_norm is 0"
            at = float(values[worst])
            yield _finding(f"{message}{steps[worst]}.", "gradient norm", at, None, why, series.source, threshold)


def _unclipped(run: Run, threshold: Fact, tolerance: float, often: int) -> Iterator[Finding]:
    """The norm of what the optimizer was given, where it is over the threshold."""
    source = threshold.source
    if not BY_NORM.search(f"{source.path if source.path == '--fact' else ''} {source.key}"):
        raise Missing(f"{source.key} may be a threshold for values, and not for the norm")
    seen = moments.recorded_norms(run)
    if seen is not None:
        over = seen.values[seen.values > (1 + tolerance) * threshold.value]
        norm, at = (float(over.max()), seen.source) if len(over) >= often else (0.0, seen.source)
        how = f"in {len(over)} of {len(seen.values)} steps that were recorded"
    else:
        norm, at, how = _by_moments(run), run.optimizer.source, "root mean square"
    if norm > (1 + tolerance) * threshold.value:
        message = (
            f"The gradients that the optimizer was given have a norm of {norm:.4g} ({how}), over the threshold of "
            f"{threshold.value:g}: they are not clipped."
        )
        why = f"at most the threshold, if every gradient was clipped; the threshold is in {source}"
        yield _finding(message, "gradient norm", norm, threshold.value, why, at, threshold)


def _by_moments(run: Run) -> float:
    if not moments.decoupled(run.optimizer):
        raise Missing("weight decay may be in the gradients, so Adam's state doesn't tell their norm")
    norm = moments.norm(run.optimizer, run.optimizer.indices)
    if norm is None:
        raise Missing("the optimizer keeps no second moment, which would tell the norm that it was given")
    return norm


def _finding(
    message: str, name: str, value: float, expected: float | None, why: str, source: Source, threshold: Fact
) -> Finding:
    evidence = Evidence(name=name, value=value, expected=expected, why=why, source=str(source))
    return Finding(message=message, where=threshold.source.key or "max_grad_norm", evidence=(evidence,))
