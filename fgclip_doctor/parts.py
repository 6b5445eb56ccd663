"""The model's parts as a check sees them: towers, the heads on them, and which of them the optimizer trains."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from fgclip_doctor.recorded import Parameter
from fgclip_doctor.run import Missing, Optimizer, Run, Tensor

IMAGE = re.compile(r"(?:^|[._])(?:vis(?:ion|ual)|image|img)", re.IGNORECASE)
TEXT = re.compile(
    r"(?:^|[._])(?:te?xt|caption|language|bert)|^(?:\w+\.)?(?:transformer|token_embedding|ln_final|positional)",
    re.IGNORECASE,
)
ADAPTER = re.compile(r"(?:^|[._])(?:lora|adapter|ia3|prompt|prefix|hada|vera|dora)", re.IGNORECASE)
TOWER_OF = {"head.image": "image", "head.region": "image", "head.text": "text", "head.text_long": "text"}
ELDER = {"head.region": "head.image", "head.text_long": "head.text"}  # the head that a branch head is copied from
WATCHED = 5  # optimizer steps that must have been recorded before "no gradient so far" means anything
FLOATS = ("float16", "float32", "float64", "bfloat16")


def modality(name: str) -> str:
    """'image', 'text', or '' for a tensor that belongs to neither tower by its name."""
    return "image" if IMAGE.search(name) else "text" if TEXT.search(name) else ""


def side(run: Run, name: str) -> str:
    """'image', 'text', or '' for a tensor that belongs to neither tower, by its name or by where its tower is."""
    for one in ("image", "text"):
        path = run.roles.get(f"tower.{one}", "")
        if path and name.startswith(f"{path}."):
            return one
    return modality(name)


def tower(run: Run, which: str) -> list[str]:
    """The parameters of the image or the text tower: inside a module of it, in no role, and no adapter."""
    played = set(run.roles.values())
    path = run.roles.get(f"tower.{which}", "")  # of one tower for both sides, the same
    return [
        name
        for name, tensor in run.tensors.items()
        if (name.startswith(f"{path}.") if path else name.count(".") > 1 and side(run, name) == which)
        and name not in played
        and tensor.dtype in FLOATS
        and tensor.shape
        and not ADAPTER.search(name)
    ]


def scales(run: Run) -> dict[str, Tensor]:
    """The logit scales by role; empty where there are none."""
    return {role: run.role(role) for role in run.roles if role.startswith("scale.") and run.has_role(role)}


def named(run: Run) -> Optimizer:
    """The optimizer of the latest checkpoint; `Missing` if it isn't known which parameter has which index."""
    optimizer = run.optimizer
    if not optimizer.names:
        why = f" ({optimizer.naming})" if optimizer.naming else ""
        raise Missing(f"which parameter has which index of {optimizer.source} is not known{why}")
    return optimizer


def planned_frozen(run: Run, name: str) -> bool:
    """Whether the user declared that this parameter is not meant to train, by a pattern or by a module around it."""
    return any(fnmatchcase(name, pattern) or name.startswith(f"{pattern}.") for pattern in run.plan.frozen)


def recorded(run: Run, name: str) -> Parameter | None:
    """What was seen of a parameter while the run was watched, by the first rank."""
    return run.recording.first.parameters.get(name) if run.recording else None


def frozen(run: Run, name: str) -> bool:
    """Whether the parameter was seen to have `requires_grad` off, which only a recording tells."""
    seen = recorded(run, name)
    return seen is not None and not seen.trainable


def held_share(optimizer: Optimizer, names: Iterable[str]) -> float:
    """The share of these parameters that the optimizer may hold: 0 for a frozen tower, or one with adapters only."""
    held = [optimizer.may_hold(name) for name in names]
    return sum(held) / len(held) if held else 0.0


def trained(run: Run, role: str) -> bool:
    """Whether the tower below a head is trained, or, for the head of a branch, the head that it is a copy of."""
    optimizer = named(run)
    elder = run.roles.get(ELDER.get(role, ""), "")
    in_training = held_share(optimizer, tower(run, TOWER_OF.get(role, ""))) >= 0.5
    return in_training or (elder in run.tensors and optimizer.may_hold(elder))


def without_gradient(optimizer: Optimizer, index: int) -> bool:
    """Whether Adam's state shows that the parameter never had a gradient (at a learning rate over zero)."""
    if optimizer.group_of(index).initial_lr == 0:
        return False
    state = optimizer.states.get(index)
    if state is None or state.step == 0:
        return True
    if state.exp_avg_sq is None or not state.exp_avg_sq.statistics.finite:
        return False
    return state.exp_avg_sq.statistics.maximum == 0


def dead(run: Run, optimizer: Optimizer, index: int) -> bool:
    """Whether a parameter never had a gradient: as it was recorded, else by Adam's state."""
    names = optimizer.names.get(index, ())
    seen = recorded(run, names[0]) if len(names) == 1 else None
    if seen is None or run.recording is None or seen.gradient == "unknown":
        return without_gradient(optimizer, index)
    learns = seen.gradient == "some" or optimizer.group_of(index).initial_lr == 0
    return not learns and run.recording.step >= WATCHED


def branch_runs(run: Run, role: str) -> bool:
    """Whether the loss of this head or scale shows any sign of being computed; a branch may be off on purpose."""
    optimizer = named(run)

    def learns(other: str) -> bool:
        index = optimizer.index_of(run.roles.get(other, ""))
        return index is not None and not without_gradient(optimizer, index)

    if role == "scale.global":
        return True
    if f"loss.{role.partition('.')[2]}" in run.roles:
        index = optimizer.index_of(run.roles[role])  # zeros for a scale are also those of a loss with weight 0
        return role.startswith("head.") or index is None or index not in optimizer.states
    if role == "scale.region":
        return learns("head.region") or run.has_role("bank.image_keys")
    if role == "head.region":
        return not run.has_role("scale.region") or learns("scale.region") or run.has_role("bank.image_keys")
    return role.startswith("head.")
