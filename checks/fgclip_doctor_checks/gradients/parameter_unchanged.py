"""FGD104."""

from collections.abc import Iterator
from math import log

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check
from fgclip_doctor.parts import ELDER, TOWER_OF, branch_runs, planned_frozen, scales, tower, without_gradient
from fgclip_doctor.provenance import half_ulp
from fgclip_doctor.run import Checkpoint, Optimizer, Tensor
from fgclip_doctor_checks.causes import explaining

SAMPLE = 24  # tensors of a tower that are compared: enough to see that it moved


@check("FGD104", "parameter-unchanged", Severity.ERROR)
def parameter_unchanged(run: Run, *, cap: float = log(100)) -> Iterator[Finding]:
    """A parameter is bit-identical to an earlier checkpoint, or to the base, while its peers moved.

    Why: whatever the configuration says, this parameter is not being trained: it is frozen, left out, cut off from the
    loss, or the optimizer steps another tensor than the one that the model uses.
    Evidence: the bytes of the tensor in two checkpoints, or in the base. Heads and scales are compared, and every
    parameter whose gradients Adam's state proves.
    Benign: what was declared to be frozen; a tower that is frozen with its head; a temperature that is fixed
    everywhere, or rests at its cap; the scale of a branch that is off, or whose loss has a weight of 0; a learning rate
    of zero, or one below the rounding of the stored type (a 16-bit export hides small steps).
    Fix: build the optimizer after the last parameter is made, for assigning a new nn.Parameter orphans the old one.
    Where Adam's state shows no gradients, mend what explains this finding first.
    Sources: pytorch.org, torch.optim ("construct the optimizer after moving the model"); fastai/fastai#2133.
    """
    now = run.checkpoint
    before = next((one for one in run.checkpoints[:-1] if one.tensors), run.base)
    if before is None or not before.tensors:
        raise Missing("only one checkpoint and no --base: nothing to compare with")
    if before.step is not None and before.step == now.step:
        raise Missing("both checkpoints are of the same step")
    resting = {scale.name for scale in scales(run).values() if abs(scale.item() - cap) <= 0.02}
    learning = list(_with_gradient(run))
    if 2 * sum(_same(run, before, name) is False for name in learning) <= len(learning):
        learning = []  # the learning rate's warmup may have begun at zero
    for name in dict.fromkeys([*_expected(run, before), *learning]):
        tensor = run.tensors[name]
        if not _same(run, before, name) or _hidden(run, tensor) or name in resting or planned_frozen(run, name):
            continue
        yield Finding(
            message=f"{name} is bit-identical at step {now.step} and in {before.path}, while its peers moved: "
            f"its {tensor.size:,} values don't train.",
            where=name,
            evidence=(
                Evidence(
                    name="bytes",
                    value=tensor.digest[:12],
                    expected=f"another hash than in {before.path}",
                    why="peers changed between the two, and a step of the learning rate is not rounded away",
                    source=str(tensor.source),
                    step=now.step,
                ),
            ),
            explained_by=explaining("FGD104"),
        )


def _expected(run: Run, before: Checkpoint) -> Iterator[str]:
    """Heads on a tower that moved, branch heads whose elder moved, and scales of which one moved."""
    heads = dict(run.heads())
    moved = {role for role, head in heads.items() if _same(run, before, head.name) is False}
    for role, head in heads.items():
        body = tower(run, TOWER_OF.get(role, ""))
        body = body[:: max(1, len(body) // SAMPLE)]
        if ELDER.get(role) in moved or 2 * sum(_same(run, before, name) is False for name in body) > len(body):
            yield head.name
    temperatures = scales(run)
    if any(_same(run, before, scale.name) is False for scale in temperatures.values()):
        yield from (scale.name for role, scale in temperatures.items() if _branch_trains(run, role, moved))


def _branch_trains(run: Run, role: str, moved: set[str]) -> bool:
    """Whether a scale has a loss to learn from: that of a branch may be off, or have a weight of 0, on purpose."""
    optimizer = run.checkpoint.optimizer
    if role == "scale.global":
        return True
    if optimizer is None or not optimizer.names:
        return role.replace("scale.", "head.") in moved
    index = optimizer.index_of(run.roles[role])
    return index is None or not without_gradient(optimizer, index) or branch_runs(run, role)


def _same(run: Run, before: Checkpoint, name: str) -> bool | None:
    """Whether a tensor is bit-identical in both; None where they can't be compared."""
    old, new = before.tensors.get(name), run.tensors[name]
    if old is None or (old.dtype, old.shape) != (new.dtype, new.shape):
        return None
    return old.digest == new.digest


def _with_gradient(run: Run) -> Iterator[str]:
    """Parameters that the optimizer certainly holds and that had gradients at a learning rate over zero."""
    optimizer = run.checkpoint.optimizer
    if optimizer is None:
        return
    for index, names in optimizer.names.items():
        state = optimizer.states.get(index)
        if (
            len(names) == 1
            and names[0] in run.tensors
            and state
            and state.exp_avg_sq
            and max(state.exp_avg_sq.statistics.maximum, 0.0) ** 0.5 > _epsilon(optimizer, index)
        ):
            yield names[0]


def _epsilon(optimizer: Optimizer, index: int) -> float:
    """Adam's eps: gradients far below it move nothing, however high the learning rate."""
    eps = optimizer.group_of(index).options.get("eps")
    return eps if isinstance(eps, float) else 1e-8


def _hidden(run: Run, tensor: Tensor) -> bool:
    """Whether rounding alone can keep the stored value: a step is at most about lr, and may be a quarter of it."""
    optimizer = run.checkpoint.optimizer
    rates = [
        group.initial_lr or 0.0
        for group in (optimizer.groups if optimizer else ())
        if optimizer and any(tensor.name in optimizer.names.get(index, (tensor.name,)) for index in group.parameters)
    ]
    rate = max(rates) if rates else run.number("learning_rate", 1.0)
    size = tensor.statistics.norm / max(tensor.size, 1) ** 0.5
    return rate <= 4 * half_ulp(size, tensor.dtype) if tensor.dtype in ("bfloat16", "float16", "float32") else rate == 0
