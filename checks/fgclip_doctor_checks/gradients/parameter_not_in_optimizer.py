"""FGD102."""

from collections.abc import Iterator

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check
from fgclip_doctor.parts import frozen, named, planned_frozen, recorded, scales, trained
from fgclip_doctor.run import Optimizer


@check("FGD102", "parameter-not-in-optimizer", Severity.ERROR)
def parameter_not_in_optimizer(run: Run) -> Iterator[Finding]:
    """A head or a scale is in no group of the optimizer while its peers are, so it is never updated.

    Why: parameters that live in the loss, that are made or unfrozen after the optimizer, or that a filter by name
    drops, get gradients that nobody applies. A checkpoint can't tell that from requires_grad being off (FGD101).
    Evidence: the parameter groups of the saved optimizer, matched with the weights by order and shape. Of parameters
    with equal shapes it may only be known that one of them is missing. A recording names the parameters and tells
    what is frozen, which is FGD101 then, and what gets no gradient either, as no loss of this stage uses it.
    Benign: what was declared to be frozen; a tower that is frozen with its head (LiT), everything frozen but adapters
    (LoRA), and scales that are all left out (a fixed temperature) are choices.
    Fix: build the optimizer from all that should learn, the loss's own parameters included, after the last module is
    made; if the part is frozen on purpose, ignore this rule.
    Sources: huggingface/sentence-transformers#2881 (the loss's classifier was left out); fastai/fastai#2133.
    """
    optimizer = named(run)
    heads, temperatures = dict(run.heads()), scales(run)
    if not heads:
        raise Missing("no head was found among the weights; [tool.fgclip-doctor.roles] names them")
    parts = {**heads, **temperatures}
    held = {role for role, tensor in parts.items() if optimizer.may_hold(tensor.name)}
    expected = {role for role in heads if trained(run, role)}
    if held & set(temperatures) and held & set(heads):
        expected |= set(temperatures)
    meant = {
        role
        for role, tensor in parts.items()
        if planned_frozen(run, tensor.name) or frozen(run, tensor.name) or _unused(run, tensor.name)
    }
    expected -= meant
    seen = "" if run.recording else ": frozen, or left out"
    source, groups = str(optimizer.source), f"{len(optimizer.indices)} parameters in {len(optimizer.groups)} groups"
    for role in sorted(expected - held):
        yield Finding(
            message=f"{parts[role].name} is in no group of the optimizer while its peers are{seen}: its "
            f"{parts[role].size:,} values are never updated.",
            where=parts[role].name,
            evidence=(Evidence(name="groups that hold it", value=0, expected=1, why=groups, source=source),),
        )
    wanted = {parts[role].name for role in expected}
    for tied in _tied(optimizer):
        slots = sum(tied.issuperset(names) for names in optimizer.names.values())
        missing = len(tied) - slots - len(tied - wanted)  # what needs no optimizer may be all that it lacks
        if missing > 0:
            listed = ", ".join(sorted(tied & wanted))
            yield Finding(
                message=f"{'One' if missing == 1 else missing} of {listed} is in no group of the optimizer, frozen "
                "or left out, and is never updated.",
                where=listed,
                evidence=(
                    Evidence(name="of these in groups", value=slots, expected=len(tied), why=groups, source=source),
                ),
            )


def _unused(run: Run, name: str) -> bool:
    seen = recorded(run, name)
    return seen is not None and seen.gradient == "none"


def _tied(optimizer: Optimizer) -> list[set[str]]:
    """The names that no index tells apart, directly or through others."""
    found: list[set[str]] = []
    for names in optimizer.names.values():
        if len(names) > 1:
            apart = [one for one in found if one.isdisjoint(names)]
            found = [*apart, set(names).union(*(one for one in found if one not in apart))]
    return found
