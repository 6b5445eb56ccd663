"""FGD303."""

from collections.abc import Iterator
from math import exp, inf, log

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check, dynamics
from fgclip_doctor.events import learning_rate, log_scale, scales
from fgclip_doctor.parts import FLOATS, branch_runs, frozen, held_share, named, planned_frozen, without_gradient
from fgclip_doctor.provenance import drift, half_ulp, in_log_space
from fgclip_doctor.run import Optimizer, Scale
from fgclip_doctor_checks.causes import explaining

LOGARITHMS = log(5), log(100)  # where a scale lies that is kept as one, under whatever name
LOOKS = 5  # of a recording, in which a scale that moves would have moved


@check("FGD303", "logit-scale-frozen", Severity.WARNING)
def logit_scale_frozen(run: Run, *, cap: float = log(100)) -> Iterator[Finding]:
    """A logit scale can't move: its updates are rounded away, it gets no gradient, or no optimizer holds it.

    Why: the temperature is learnt in CLIP; one that is stuck at a wrong value keeps every loss that uses it wrong.
    Evidence: half an ulp of the stored value against the largest step of the learning rate, with Adam's state in 16
    bits too, or in a recording that saw it stand still; the optimizer's groups; its state. From a log alone, or a
    stated scale: a value that never changes, lies on bfloat16's grid to the last decimal place, and that the learning
    rate can't move on it.
    Benign: a scale that was declared to be frozen, or at its cap, where it rests anyway; a 16-bit export of 32-bit
    masters, whose state is in 32 bits; a fixed temperature: scales that a recording saw with requires_grad off, all of
    them, or that no group holds and that are no logarithms; a model whose heads aren't trained either; the scale of a
    branch that does not run; a logged value of few decimal places, which may be on the grid by chance or be fixed on
    purpose.
    Fix: keep scales in float32, in a group of the optimizer with a learning rate over zero (1e-4 and more is usual),
    and without weight decay. If the temperature is fixed on purpose, ignore this rule.
    Sources: Radford et al. 2021, section 2.5 (a learnt temperature); Micikevicius et al. 2018, section 3.1 (rounding).
    """
    if not run.checkpoints:
        yield from _by_log(run, cap)
        return
    for scale in run.scales():
        if (in_log_space(scale) and scale.last >= cap - 0.02) or planned_frozen(run, scale.tensor.name):
            continue
        if (stuck := _stuck(run, scale)) is None:
            continue
        reason, evidence, case = stuck
        yield Finding(
            message=f"{scale.tensor.name} can't move from {scale.last:.6g}: {reason}.",
            where=scale.tensor.name,
            evidence=(evidence,),
            explained_by=explaining("FGD303", case),
        )


def _stuck(run: Run, scale: Scale) -> tuple[str, Evidence, str] | None:
    """Why a scale can't move, the number that shows it, and the case among its causes; None if nothing holds it."""
    optimizer, tensor = named(run), scale.tensor
    if not optimizer.may_hold(tensor.name):
        if all(frozen(run, one.tensor.name) for one in run.scales()):
            return None  # seen to have requires_grad off: a temperature that is fixed on purpose
        heads = [head.name for _, head in run.heads()]
        if not (any(map(optimizer.may_hold, heads)) if heads else _all_but(run, optimizer)):
            return None
        others = any(optimizer.may_hold(one.tensor.name) for one in run.scales())
        if not others and not LOGARITHMS[0] < scale.last < LOGARITHMS[1]:
            return None  # a temperature, which many fix; one that is learnt is kept as a logarithm, as a rule
        evidence = Evidence(name="groups that hold it", value=0, expected=1, source=str(optimizer.source))
        return "it is in no group of the optimizer (frozen, or left out)", evidence, "not-held"
    index = optimizer.index_of(tensor.name)
    if index is None:
        return None
    group, state = optimizer.group_of(index), optimizer.states.get(index)
    where = f"{optimizer.source}: state[{index}]"
    known = "initial_lr" in group.options or any(one.initial_lr for one in optimizer.groups)  # else a schedule's end
    if group.initial_lr == 0 and known:
        evidence = Evidence(name="learning rate", value=0.0, expected="over 0", source=str(optimizer.source))
        return "the learning rate of its group is 0", evidence, "rate-zero"
    if optimizer.states and without_gradient(optimizer, index) and branch_runs(run, scale.role):
        evidence = Evidence(name="second moment", value=0.0, expected="over 0", why="of Adam's state", source=where)
        return "no gradient has ever reached it", evidence, "no-gradient"
    if tensor.dtype not in ("bfloat16", "float16") or state is None:
        return None
    moved = drift(run, tensor.name)
    step, least = moved.bound / max(moved.steps, 1), half_ulp(scale.last, tensor.dtype)
    if state.exp_avg is None:
        seen = run.series.get(tensor.name) if run.recording is not None else None
        known = seen is not None and len(seen.values) >= LOOKS and dynamics.constant(seen.values)
        told = f"which the optimizer updates itself, and it stood still in {run.step} steps"
    else:
        known = state.exp_avg.dtype == tensor.dtype
        told = f"and Adam's state is in {tensor.dtype} too: no 32-bit copy"
    if not known or step >= least:
        return None
    why = f"half an ulp of {tensor.dtype} at {scale.last:.6g}, {told}"
    evidence = Evidence(
        name="largest step", value=step, expected=f"over {least:.4g}", why=why, source=str(tensor.source)
    )
    return (
        f"its steps of at most {step:.2g} are under half an ulp of {tensor.dtype} ({least:.2g})",
        evidence,
        "rounding",
    )


def _all_but(run: Run, optimizer: Optimizer) -> bool:
    """Of a model whose heads have no known names: whether it is trained."""
    matrices = [name for name, one in run.tensors.items() if len(one.shape) == 2 and one.dtype in FLOATS]
    return held_share(optimizer, matrices) > 0.5


def _by_log(run: Run, cap: float) -> Iterator[Finding]:
    """The scales that a log, or else the user, gives to more decimal places than anybody types."""
    rates = learning_rate(run)
    rate = run.number("learning_rate", float(rates.values.max()) if rates is not None else inf)
    logged = [(one.name, *log_scale(one), one.resolution, str(one.source)) for one in scales(run)]
    stated = run.number("scale", 0.0)
    known = [(name, float(v[-1]), int(s[-1] - s[0]), r, at) for name, s, v, r, at in logged if dynamics.constant(v, r)]
    if stated > 0 and not logged:
        known = [("scale", log(stated), 0, 5e-6, str(run.facts["scale"].source))]
    if not known and not logged:
        raise Missing("no logit scale was found, in weights or in a log")
    if rate == inf:
        raise Missing("the learning rate is not known; --fact learning_rate=VALUE states it")
    for name, value, span, resolution, source in known:
        least = half_ulp(value, "bfloat16")
        printed = max(resolution or 1e-6, 1e-6)
        on_grid = round(value / (2 * least)) * 2 * least
        if value >= cap - 0.02 or printed > 1e-4 or abs(value - on_grid) > printed or 3.2 * rate >= least:
            continue
        if abs(on_grid - round(on_grid, 3)) < 1e-9 or (name != "scale" and span < 20):
            continue  # as many decimal places as one types, or hardly looked at
        stood = f" has stood at {value:.6g} for {span} steps, which" if span else f" of {exp(value):.6g}"
        yield Finding(
            message=f"{name}{stood} is exactly a bfloat16 ({on_grid:.7g}): it is stored so, and can't move, for "
            f"steps of at most {3.2 * rate:.2g} are under half an ulp ({least:.2g}), unless 32-bit masters are kept.",
            where=name,
            evidence=(
                Evidence(
                    name="largest step",
                    value=3.2 * rate,
                    expected=f"over {least:.4g}",
                    why=f"Adam's bound at a learning rate of {rate:g}; half an ulp of bfloat16 at {on_grid:.6g}",
                    source=source,
                ),
            ),
            explained_by=explaining("FGD303", "rounding"),
        )
