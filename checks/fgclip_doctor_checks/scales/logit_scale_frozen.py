"""FGD303."""

from collections.abc import Iterator
from math import log

from fgclip_doctor import Evidence, Finding, Run, Severity, check
from fgclip_doctor.parts import branch_runs, named, without_gradient
from fgclip_doctor.provenance import drift, half_ulp, in_log_space
from fgclip_doctor.run import Scale


@check("FGD303", "logit-scale-frozen", Severity.WARNING)
def logit_scale_frozen(run: Run, *, cap: float = log(100)) -> Iterator[Finding]:
    """A logit scale can't move: its updates are rounded away, it gets no gradient, or no optimizer holds it.

    Why: the temperature is learnt in CLIP; one that is stuck at a wrong value keeps every loss that uses it wrong.
    Evidence: half an ulp of the stored value against the largest step of the learning rate, with Adam's state in 16
    bits too; the optimizer's groups; its state.
    Benign: a scale at its cap, where it rests anyway; a 16-bit export of 32-bit masters, whose state is in 32 bits; a
    model whose heads aren't trained either; the scale of a branch that does not run.
    Fix: keep scales in float32, in a group of the optimizer with a learning rate over zero (1e-4 and more is usual),
    and without weight decay. If the temperature is fixed on purpose, ignore this rule.
    Sources: Radford et al. 2021, section 2.5 (a learnt temperature); Micikevicius et al. 2018, section 3.1 (rounding).
    """
    for scale in run.scales():
        if in_log_space(scale) and scale.last >= cap - 0.02:
            continue
        if (stuck := _stuck(run, scale)) is None:
            continue
        reason, evidence, code = stuck
        yield Finding(
            message=f"{scale.tensor.name} can't move from {scale.last:.6g}: {reason}.",
            where=scale.tensor.name,
            evidence=(evidence,),
            explained_by=(code,),
        )


def _stuck(run: Run, scale: Scale) -> tuple[str, Evidence, str] | None:
    """Why a scale can't move, the number that shows it, and the code of its cause; None if nothing holds it."""
    optimizer, tensor = named(run), scale.tensor
    if not optimizer.may_hold(tensor.name):
        if not any(optimizer.may_hold(head.name) for _, head in run.heads()):
            return None
        evidence = Evidence(name="groups that hold it", value=0, expected=1, source=str(optimizer.source))
        return "it is in no group of the optimizer (frozen, or left out)", evidence, "FGD102"
    index = optimizer.index_of(tensor.name)
    if index is None:
        return None
    group, state = optimizer.group_of(index), optimizer.states.get(index)
    where = f"{optimizer.source}: state[{index}]"
    if group.initial_lr == 0:
        evidence = Evidence(name="learning rate", value=0.0, expected="over 0", source=str(optimizer.source))
        return "the learning rate of its group is 0", evidence, "FGD107"
    if optimizer.states and without_gradient(optimizer, index) and branch_runs(run, scale.role):
        evidence = Evidence(name="second moment", value=0.0, expected="over 0", why="of Adam's state", source=where)
        return "no gradient has ever reached it", evidence, "FGD103"
    if tensor.dtype not in ("bfloat16", "float16") or state is None or state.exp_avg is None:
        return None
    moved = drift(run, tensor.name)
    step, least = moved.bound / max(moved.steps, 1), half_ulp(scale.last, tensor.dtype)
    if state.exp_avg.dtype != tensor.dtype or step >= least:
        return None
    why = f"half an ulp of {tensor.dtype} at {scale.last:.6g}; Adam's state is in {tensor.dtype} too: no 32-bit copy"
    evidence = Evidence(
        name="largest step", value=step, expected=f"over {least:.4g}", why=why, source=str(tensor.source)
    )
    return f"its steps of at most {step:.2g} are under half an ulp of {tensor.dtype} ({least:.2g})", evidence, "FGD106"
