"""FGD102."""

from collections.abc import Iterator

from fgclip_doctor import Evidence, Finding, Run, Severity, check
from fgclip_doctor.parts import named, scales, trained


@check("FGD102", "parameter-not-in-optimizer", Severity.ERROR)
def parameter_not_in_optimizer(run: Run) -> Iterator[Finding]:
    """A head or a scale is in no group of the optimizer while its peers are, so it is never updated.

    Why: parameters that live in the loss, that are made or unfrozen after the optimizer, or that a filter by name
    drops, get gradients that nobody applies. A checkpoint can't tell that from requires_grad being off.
    Evidence: the parameter groups of the saved optimizer, matched with the weights by order and shape. Of parameters
    with equal shapes it may only be known that one of them is missing.
    Benign: a tower that is frozen with its head (LiT), everything frozen but adapters (LoRA), and scales that are all
    left out (a fixed temperature) are choices.
    Fix: build the optimizer from all that should learn, the loss's own parameters included, after the last module is
    made; if the part is frozen on purpose, ignore this rule.
    Sources: huggingface/sentence-transformers#2881 (the loss's classifier was left out); fastai/fastai#2133.
    """
    optimizer = named(run)
    heads, temperatures = dict(run.heads()), scales(run)
    parts = {**heads, **temperatures}
    held = {role for role, tensor in parts.items() if optimizer.may_hold(tensor.name)}
    expected = {role for role in heads if trained(run, role)}
    if held & set(temperatures) and held & set(heads):
        expected |= set(temperatures)
    source, groups = str(optimizer.source), f"{len(optimizer.indices)} parameters in {len(optimizer.groups)} groups"
    for role in sorted(expected - held):
        yield Finding(
            message=f"{parts[role].name} is in no group of the optimizer while its peers are: frozen, or left out.",
            where=parts[role].name,
            evidence=(Evidence(name="groups that hold it", value=0, expected=1, why=groups, source=source),),
        )
    for names in sorted(set(optimizer.names.values())):
        slots = list(optimizer.names.values()).count(names)
        ours = {tensor.name for role, tensor in parts.items() if role in expected | held}
        if slots < len(names) and ours.issuperset(names):
            listed = ", ".join(names)
            yield Finding(
                message=f"One of {listed} is in no group of the optimizer: frozen, or left out.",
                where=listed,
                evidence=(
                    Evidence(name="of these in groups", value=slots, expected=len(names), why=groups, source=source),
                ),
            )
