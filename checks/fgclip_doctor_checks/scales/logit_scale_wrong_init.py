"""FGD302."""

from collections.abc import Iterator
from dataclasses import replace
from math import exp, log

from fgclip_doctor import Evidence, Finding, Run, Severity, check
from fgclip_doctor.events import learning_rate, log_scale, scales
from fgclip_doctor.provenance import drift, half_ulp, in_log_space, origin, sigmoid
from fgclip_doctor.run import Checkpoint, Missing, Scale
from fgclip_doctor.scale_forms import LARGEST, too_soft
from fgclip_doctor_checks.causes import explaining

SCRATCH, TRAINED, SIGMOID = log(1 / 0.07), log(100), log(10)
YOUNG = log(1.5)  # a model whose scale has grown by less since its start is no finished CLIP
ROUNDED = 5e-4  # of a value that was typed with three or four digits: 4.605, 14.28
DUE = f"{TRAINED:.4f} (fine-tuning) or {SCRATCH:.4f} (from scratch)"
SLACK = 30.0  # over what a scale adds to a logit: SigLIP's bias of -10, and more
RAW = {100.0: "exp(4.6052) itself", 1 / 0.07: "exp(2.6593) itself", 0.07: "a temperature", 0.01: "a temperature"}


@check("FGD302", "logit-scale-wrong-init", Severity.WARNING)
def logit_scale_wrong_init(run: Run, *, widest: float = 0.1) -> Iterator[Finding]:
    """A logit scale started from a value that is wrong for how the run started, or was stored raw.

    Why: CLIP ends its training at a scale of 100; trained features under the scale of a new model (14.3) give a loss
    far from the one they were trained for. A raw scale or a temperature in a log-space parameter is off by orders.
    Evidence: where the scale can have started, from its value in the first checkpoint and what the learning rates allow
    it to have moved; how the run started, from the norm gains; the base's own scale, with --base. From a recording: the
    value at the first look since the training was last begun, and losses that no such scale could give, which are those
    of its exp(). From a log alone: a first logged value of 1, which is wrong for every start. However far it may have
    come, a scale can't have started right if all that is within its reach lies between 2 and 5.
    Benign: a value that the base or the configuration declares; a branch scale at 14.3 beside a learnt global one that
    is still near it. The default of 2.6592 that transformers writes into every configuration declares nothing. Without
    a base, nothing else is said of a scale that may have moved by more than `widest`.
    Fix: fine-tuning: start from the scale of the pretrained weights, for branches too (CLIP: ln 100 = 4.6052). From
    scratch: ln(1/0.07) = 2.6592; with the sigmoid loss ln 10 = 2.3026.
    Sources: Radford et al. 2021, section 2.5; Zhai et al. 2023 (SigLIP), section 3.3; huggingface/transformers#13430.
    """
    if not run.checkpoints:
        yield from _by_log(run, widest)
        return
    judged = 0
    reasons: list[str] = []
    for scale in run.scales():
        first, value = _first(run, scale)
        try:
            found, reach = _judge(run, scale, first, value, widest)
        except Missing as reason:
            reasons.append(str(reason))
            continue
        judged += 1
        if found is None:
            continue
        wrong, right, why = found
        yield Finding(
            message=f"{scale.tensor.name} started from {wrong}, where {right} was due: {why}.",
            where=scale.tensor.name,
            evidence=(
                Evidence(
                    name="logit scale",
                    value=round(value, 5),
                    expected=right,
                    why=f"it can have moved by {reach:.2g} at most since the start; {why}",
                    source=str(first.tensors[scale.tensor.name].source),
                    step=first.step,
                ),
            ),
            explained_by=explaining("FGD302", where=scale.tensor.name),
        )
    if not judged:
        raise Missing(reasons[0])


def _first(run: Run, scale: Scale) -> tuple[Checkpoint, float]:
    """The first checkpoint with the scale, and its value there.

    Of a recording, the first look since the training was last begun, unless it then went on with an optimizer's state:
    several trainings of one script, one after the other, are one recording.
    """
    name = scale.tensor.name
    first = next(one for one in run.checkpoints if name in one.tensors)
    series = run.series.get(name)
    rank = run.recording.first if run.recording else None
    if rank is None or rank.updates_before or series is None or series.source.path != rank.path:
        return first, first.tensors[name].item()
    begun = series.legs[-1].start
    step = int(series.steps[begun])
    return replace(first, step=step, trainer_step=step, optimizer=None), float(series.values[begun])


def _judge(
    run: Run, scale: Scale, first: Checkpoint, value: float, widest: float
) -> tuple[tuple[str, str, str] | None, float]:
    """The wrong start, the right one and why, or None for a scale that may have started right; and its reach."""
    tensor = first.tensors[scale.tensor.name]
    reach = drift(run, tensor.name, until=first).reach(value)
    own = run.base.tensors.get(tensor.name) if run.base else None
    reach += half_ulp(value, tensor.dtype)

    def may_be(start: float) -> bool:
        return abs(value - start) <= reach + half_ulp(start, tensor.dtype) + ROUNDED * abs(start)

    declared = run.number("logit_scale_init", SCRATCH)
    if reach > widest and own is None:
        own_rate = (first.optimizer or run.checkpoint.optimizer) is not None  # it may be another than is configured
        if not (own_rate and too_soft(value, reach, tensor.name.rpartition(".")[2]) and in_log_space(scale)) or may_be(
            declared
        ):
            raise Missing(f"{tensor.name} may have moved by {reach:.2g} since the start")
        return _soft(value, reach), reach
    if (own is not None and may_be(own.item())) or (abs(declared - SCRATCH) > 1e-3 and may_be(declared)):
        return None, reach
    if own is not None:
        return (f"{value:.4g}", f"{own.item():.4f}", f"that is {own.name} of the base"), reach
    named_so = in_log_space(scale) or "logit_scale" in tensor.name
    for raw, what in RAW.items():
        if named_so and may_be(raw) and not may_be(0.0):  # 0 is where a collapsed scale is clamped
            return (
                f"{raw:.4g}",
                f"{log(raw if raw > 1 else 1 / raw):.4f}",
                f"{raw:.4g} is {what}, not its logarithm",
            ), reach
    if named_so and not in_log_space(scale) and 11 < value < 2 * exp(TRAINED):
        return (
            f"{value:.4g}",
            f"{log(value):.4f}",
            "no loss is computed with its exp(): it is the scale, not its logarithm",
        ), reach
    if named_so and may_be(1.0):
        return ("1", DUE, f"1 is what torch.ones makes: a scale of {exp(1.0):.2f}"), reach
    if in_log_space(scale) and value - reach > LARGEST and (place := _beyond(run, value)):
        return (
            f"{value:.4g}",
            f"{log(value):.4f}",
            f"the loss at {place} is one of its exp(): {value:.4g} is the scale, not its logarithm",
        ), reach
    if not in_log_space(scale) or sigmoid(run):
        return None, reach
    if too_soft(value, reach, tensor.name.rpartition(".")[2]):
        return _soft(value, reach), reach
    start = origin(run)
    if start.pretrained and may_be(SCRATCH) and not _beside_young(run, scale, first):
        return (f"{SCRATCH:.4g}", f"{TRAINED:.4f}", f"the run started from trained weights ({start.why})"), reach
    if not start.pretrained and may_be(TRAINED):
        return (f"{TRAINED:.4g}", f"{SCRATCH:.4f}", f"the run started from new weights ({start.why})"), reach
    return None, reach


def _beyond(run: Run, scale: float) -> str:
    """A recorded loss that began higher than cosines can make it that are multiplied by this scale; "" without one."""
    for site in run.recording.first.sites if run.recording else ():
        columns = float(site.candidates[0]) if site.kind == "sigmoid" else 1.0  # as the loss of an anchor sums over
        if site.contrastive and site.loss[0] > columns * (2 * scale + SLACK):
            return f"{site.name} ({float(site.loss[0]):.4g} at first)"
    return ""


def _soft(value: float, reach: float) -> tuple[str, str, str]:
    low, high = value - reach, value + reach
    between = f"between {low:.3g} and {high:.3g}" if high - low > 0.01 else f"{value:.4g}"
    ones = "; 1 is what torch.ones makes" if low < 1 < high else ""
    return between, DUE, f"that is a scale of {exp(low):.2g} to {exp(high):.2g}, where no training starts{ones}"


def _beside_young(run: Run, scale: Scale, first: Checkpoint) -> bool:
    """Whether the global scale came with the weights, and not far from 14.3: then that is what they are used to."""
    elder = first.tensors.get(run.roles.get("scale.global", ""))
    if elder is None or elder.name == scale.tensor.name:
        return False
    learnt = abs(elder.item() - SCRATCH)
    return drift(run, elder.name, until=first).reach(elder.item()) + ROUNDED * SCRATCH < learnt < YOUNG


def _by_log(run: Run, widest: float) -> Iterator[Finding]:
    """The scales that a log has at 1 before they can have come there from where a scale starts."""
    rates = learning_rate(run)
    if rates is None and "learning_rate" not in run.facts:
        raise Missing("the learning rate is not known; --fact learning_rate=VALUE states it")
    rate = run.number("learning_rate", float(rates.values.max()) if rates is not None else 0.0)
    logged = [one for one in scales(run) if "logit" in one.name.lower() and len(log_scale(one)[1])]
    if not logged:
        raise Missing("no logit scale was found, in weights or in a log")
    for series in logged:
        steps, values = log_scale(series)
        first, step = float(values[0]), int(steps[0])
        reach = 3.2 * rate * max(step, 1)
        if reach <= widest and abs(first - 1.0) <= reach + max(ROUNDED, series.resolution or 0.0):
            yield Finding(
                message=f"{series.name} is {first:.4g} at step {step}: 1 is what torch.ones makes, a scale of "
                f"{exp(1.0):.2f}, where {DUE} was due.",
                where=series.name,
                evidence=(
                    Evidence(
                        name="logit scale",
                        value=round(first, 5),
                        expected=DUE,
                        why=f"it can have moved by {reach:.2g} at most since the start",
                        source=str(series.source),
                        step=step,
                    ),
                ),
                explained_by=explaining("FGD302", where=series.name),
            )
