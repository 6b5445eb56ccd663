"""FGD101."""

from collections.abc import Iterator

from fgclip_doctor import Evidence, Finding, Run, Severity, check
from fgclip_doctor.parts import ELDER, TOWER_OF, frozen, planned_frozen, scales, tower


@check("FGD101", "parameter-frozen", Severity.ERROR)
def parameter_frozen(run: Run) -> Iterator[Finding]:
    """A head or a scale has requires_grad off while what it belongs to is trained.

    Why: freezing by name pattern, or freezing and unfreezing in the wrong order, takes more than was meant. The losses
    are computed all the same, and the part stays as it was loaded.
    Evidence: a recording, which saw requires_grad. A checkpoint can't tell a frozen parameter from one that no group
    holds: of that, FGD102 speaks.
    Benign: a tower that is frozen with its head (LiT), everything frozen but adapters (LoRA), scales that are all
    frozen (a fixed temperature), and what the plan declares as frozen.
    Fix: print the names for which requires_grad is False just before the optimizer is made, and compare them with
    those that you meant. If it is meant, declare it: frozen = [...] under [tool.fgclip-doctor.plan].
    Sources: mlfoundations/open_clip#253 (freezing took the wrong layers); ultralytics/yolov5#1213.
    """
    rank = run.watched.first
    heads, temperatures = dict(run.heads()), scales(run)
    expected = {role for role in heads if _belongs_to_trained(run, role)}
    if any(not frozen(run, one.name) for one in temperatures.values()):
        expected |= set(temperatures)
    trainable = sum(one.trainable for one in rank.parameters.values())
    for role, tensor in {**heads, **temperatures}.items():
        if role not in expected or not frozen(run, tensor.name) or planned_frozen(run, tensor.name):
            continue
        yield Finding(
            message=f"{tensor.name} has requires_grad off while what it belongs to is trained: its {tensor.size:,} "
            "values stay as they were loaded.",
            where=tensor.name,
            evidence=(
                Evidence(
                    name="requires_grad",
                    value=False,
                    expected=True,
                    why=f"{trainable} of {len(rank.parameters)} parameters have it",
                    source=rank.path,
                    step=run.step,
                ),
            ),
        )


def _belongs_to_trained(run: Run, role: str) -> bool:
    """Whether most of the tower below a head can train, or the head that it is a copy of.

    Of a tower that no name tells, that is so where whatever is no head and no scale can train.
    """
    body = tower(run, TOWER_OF.get(role, ""))
    if not body:
        body = [name for name in run.watched.first.parameters if name not in run.roles.values()]
        if any(frozen(run, name) for name in body):
            return False
    elder = run.roles.get(ELDER.get(role, ""), "")
    held = sum(not frozen(run, name) for name in body)
    return 2 * held > len(body) or (elder in run.tensors and not frozen(run, elder))
