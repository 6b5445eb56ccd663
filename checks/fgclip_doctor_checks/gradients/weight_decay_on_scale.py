"""FGD108."""

from collections.abc import Iterator

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check
from fgclip_doctor.parts import FLOATS, named, scales
from fgclip_doctor.provenance import drift
from fgclip_doctor.run import Tensor


@check("FGD108", "weight-decay-on-scale", Severity.WARNING)
def weight_decay_on_scale(run: Run, *, smallest: float = 1e-3, strength: float = 0.1) -> Iterator[Finding]:
    """Logit scales, biases or norm gains are in a group with weight decay, which pulls them to zero.

    Why: decay towards zero lowers a logit scale (a softer softmax) and norm gains for no gain in generalisation; group
    rules by name miss what they were not written for.
    Evidence: the group's weight decay, and the pull so far: the sum of lr * weight_decay over steps, times the value.
    Of a recording, that of the scales.
    Benign: a pull under 0.001 in all, as small decay at fine-tuning rates gives, is not worth a group. Nor is one that
    in no step moves a value by a `strength` of what Adam can, which is lr: AdamW's default of 0.01 for all parameters
    takes 0.05 of it from a scale of 4.6 and 0.01 from a gain of 1, and gradients decide where they go.
    Fix: give parameters with fewer than two dimensions, logit scales among them, a group with weight_decay=0.
    Sources: open_clip's rule (p.ndim < 2, "bn", "ln", "bias" or "logit_scale" are excluded); Loshchilov & Hutter 2019.
    """
    optimizer = named(run)
    temperatures = {scale.name for scale in scales(run).values()}
    others: list[tuple[float, Tensor]] = []
    for group in optimizer.groups:
        if not group.weight_decay or group.options.get("decoupled_weight_decay") is False:
            continue  # coupled decay goes through Adam's normalisation, and its size isn't known
        for names in (optimizer.names.get(index, ()) for index in group.parameters):
            tensors = [run.tensors[name] for name in names if name in run.tensors]
            if not tensors or any(len(tensor.shape) > 1 or tensor.dtype not in FLOATS for tensor in tensors):
                continue
            tensor = tensors[0]
            try:
                largest = max(abs(tensor.statistics.minimum), abs(tensor.statistics.maximum))
            except Missing:
                continue  # of a recording, which holds the values of scales only
            if group.weight_decay * largest < strength:
                continue
            pull = drift(run, tensor.name).decay * largest
            if pull >= smallest and tensor.name in temperatures:
                yield _finding(tensor, pull, group.weight_decay, f"{tensor.name} is decayed", smallest)
            elif pull >= smallest:
                others.append((pull, tensor))
    if others:
        pull, tensor = max(others, key=lambda other: other[0])
        what = f"{len(others)} biases, norm gains and other vectors are decayed, {tensor.name} the most"
        decay = max(group.weight_decay for group in optimizer.groups)
        yield _finding(tensor, pull, decay, what, smallest)


def _finding(tensor: Tensor, pull: float, decay: float, what: str, smallest: float) -> Finding:
    return Finding(
        message=f"{what}: weight_decay {decay:g} has pulled it {pull:.2g} towards zero so far.",
        where=tensor.name,
        evidence=(
            Evidence(
                name="pull of the decay",
                value=round(pull, 6),
                expected=f"under {smallest:g}",
                why="sum of lr * weight_decay over the steps, times the largest value",
                source=str(tensor.source),
            ),
        ),
    )
