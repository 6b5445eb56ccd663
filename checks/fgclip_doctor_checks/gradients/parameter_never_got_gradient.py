"""FGD103."""

import re
from collections.abc import Iterator

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check
from fgclip_doctor.parts import (
    TOWER_OF,
    WATCHED,
    branch_runs,
    dead,
    named,
    planned_frozen,
    recorded,
    scales,
    tower,
    without_gradient,
)
from fgclip_doctor.provenance import from_one, gains
from fgclip_doctor.run import Optimizer
from fgclip_doctor_checks.causes import explaining

BLOCK = re.compile(r"\.(?:layers?|blocks|resblocks|h)\.(\d+)\.")
LEFT_OUT = re.compile(r"pool|embed|position|token|adapter|lora|prompt|decoder|cls|lm_head|mlm", re.IGNORECASE)
PATIENCE = 20  # recorded steps after which a module without a role should have had a gradient


@check("FGD103", "parameter-never-got-gradient", Severity.ERROR)
def parameter_never_got_gradient(run: Run, *, share: float = 0.25) -> Iterator[Finding]:
    """A head, a scale or the start of a tower is in the optimizer, but no gradient has ever reached it.

    Why: requires_grad and a place in the optimizer don't make a parameter learn: a detach, an unused branch or a loss
    that is never added leaves it as it was, and nothing raises an error.
    Evidence: a recording, which saw the gradients; else Adam's state: there is none for a parameter whose gradient was
    always None, and a second moment of exactly zero where it was always zero. Where it isn't known which parameter has
    which index, a `share` of all of them without a gradient is told by its count; and so is a module of that size,
    whatever its name, that is as it was initialised. In a recording of 20 steps, any
    module that has a matrix counts, whatever it is called.
    Benign: what was declared to be frozen; a tower of trained weights without any state, its head included, which was
    frozen and handed to the optimizer all the same (of a checkpoint alone); the last blocks of a tower (features are
    often taken before them), poolers, tables and adapters; the scale of a branch that does not run at all; a learning
    rate of zero; a run without a step.
    Fix: follow the loss back to the parameter: look for detach(), no_grad(), a head that is computed but not used, and
    reentrant checkpointing over frozen inputs. If the branch is off on purpose, freeze the parameter.
    Sources: torch.optim.Adam (state is made at the first gradient); 2U1/Qwen-VL-Series-Finetune#193.
    """
    optimizer = run.optimizer
    if max(run.step, optimizer.step or 0) < 1:
        raise Missing("the run has not made a step")
    if run.recording and run.recording.step < WATCHED:
        raise Missing(f"{run.recording.step} steps were recorded, and gradients may come later")
    if not optimizer.states:
        raise Missing("the optimizer keeps no state per parameter, or has not made a step")
    if not optimizer.names:
        yield from _unnamed(run, share)
        return
    without = {index for index in optimizer.indices if dead(run, optimizer, index)}
    without -= {i for i in without if all(planned_frozen(run, name) for name in optimizer.names.get(i, ("",)))}
    alive = {name for index in optimizer.indices if index not in without for name in optimizer.names.get(index, ())}
    parts = {tensor.name: role for role, tensor in run.heads()}
    parts |= {tensor.name: role for role, tensor in scales(run).items()}
    asleep = {side for side in ("image", "text") if _frozen_tower(run, side, without, alive)}
    for index in sorted(without):
        names = optimizer.names.get(index, ())
        if index not in optimizer.states and any(TOWER_OF.get(parts.get(name, "")) in asleep for name in names):
            continue
        if names and parts.keys() >= set(names) and all(branch_runs(run, parts[name]) for name in names):
            listed = names[0] if len(names) == 1 else f"One of {', '.join(names)}"
            yield _finding(run, optimizer, index, f"{listed} is in the optimizer", ", ".join(names))
    certain = {names[0]: index for index, names in optimizer.names.items() if len(names) == 1}
    for module, inside in _modules(run, set(parts), alive).items():
        if inside[0] in certain:
            yield _finding(run, optimizer, certain[inside[0]], f"{module} is in the optimizer", inside[0])
    for side in sorted({"image", "text"} - asleep):
        blocks: dict[int, list[str]] = {}
        for name in tower(run, side):
            if name in certain and (found := BLOCK.search(name)):
                blocks.setdefault(int(found[1]), []).append(name)
        cut = [block for block, inside in sorted(blocks.items()) if alive.isdisjoint(inside)]
        if cut and cut[0] == min(blocks):
            first = blocks[cut[0]][0]
            what = f"The {side} tower is in the optimizer with {len(blocks)} blocks"
            yield _finding(run, optimizer, certain[first], what, first, f"{len(cut)} of them, from block {cut[0]} on")
            alive |= set(blocks[cut[0]])
    for module, index in _new_modules(run, without, alive, share).items():
        yield _finding(run, optimizer, index, f"{module} is in the optimizer", optimizer.names[index][0])


def _frozen_tower(run: Run, side: str, without: set[int], alive: set[str]) -> bool:
    """Whether all of a tower was given to the optimizer frozen: it has no state at all, and was trained before."""
    if run.recording is not None:  # it saw the gradients, and has no weights that would tell of a training
        return False
    optimizer, body = run.optimizer, tower(run, side)
    held = [index for index in optimizer.indices if set(optimizer.names.get(index, ())) & set(body)]
    if not held or not alive.isdisjoint(body) or any(i in optimizer.states or i not in without for i in held):
        return False
    trained = [from_one(gain) > 0 for gain in gains(run.checkpoint) if gain.name in body]
    return any(trained)


def _new_modules(run: Run, without: set[int], alive: set[str], share: float) -> dict[str, int]:
    """The outermost modules, whatever they are called, that hold a `share` of the parameters, none with a gradient,
    and whose norm gains are all where a new model's are: nobody freezes a tower that knows nothing."""
    optimizer = run.optimizer
    found: dict[str, list[int]] = {}
    for index in sorted(without) if run.recording is None else ():
        words = optimizer.names.get(index, ("",))[0].split(".")[:-1]
        while len(words) > 1 and not any(one.startswith(".".join(words[:-1]) + ".") for one in alive):
            words.pop()
        module = ".".join(words)
        if module and not any(one.startswith(f"{module}.") for one in alive):
            found.setdefault(module, []).append(index)
    new = {
        name: [from_one(gain) == 0 for gain in gains(run.checkpoint) if gain.name.startswith(f"{name}.")]
        for name in found
    }
    return {
        name: inside[0]
        for name, inside in found.items()
        if len(inside) >= share * len(optimizer.indices) and new[name] and all(new[name])
    }


def _modules(run: Run, known: set[str], alive: set[str]) -> dict[str, list[str]]:
    """Modules with a matrix, by name, none of whose trained parameters was seen with a gradient: the outermost ones.

    Without those that play a role, those in a stack of blocks, and what is often there and not used.
    """
    if run.recording is None or run.recording.step < PATIENCE:
        return {}
    matrices = [
        one.name
        for one in run.recording.first.parameters.values()
        if one.trainable
        and one.group is not None
        and one.gradient in ("none", "zero")
        and len(one.shape) > 1
        and one.name not in alive | known
        and not (LEFT_OUT.search(one.name) or BLOCK.search(f".{one.name}") or planned_frozen(run, one.name))
    ]
    found: dict[str, list[str]] = {}
    for name in matrices:
        words = name.split(".")[:-1] or [name]
        while len(words) > 1 and not any(one.startswith(".".join(words[:-1]) + ".") for one in alive):
            words.pop()
        found.setdefault(".".join(words), []).append(name)
    return found


def _unnamed(run: Run, share: float) -> Iterator[Finding]:
    """A large share of parameters without a gradient, whichever they are."""
    optimizer = run.optimizer
    without = [index for index in optimizer.indices if without_gradient(optimizer, index)]
    if len(without) < share * len(optimizer.indices) or len(without) == len(optimizer.indices):
        named(run)  # says why there are no names
        return
    yield Finding(
        message=f"{len(without)} of the {len(optimizer.indices)} parameters in the optimizer never had a gradient in "
        f"{run.step} steps, as of a whole tower; which ones isn't known ({optimizer.naming}).",
        where=str(optimizer.source),
        evidence=(
            Evidence(
                name="parameters without a gradient",
                value=len(without),
                expected=f"under {share:.0%} of {len(optimizer.indices)}",
                why=f"no state in Adam, or a second moment of zero; the first is number {without[0]}",
                source=str(optimizer.source),
                step=run.step,
            ),
        ),
    )


def _finding(run: Run, optimizer: Optimizer, index: int, what: str, where: str, part: str = "it") -> Finding:
    state, seen = optimizer.states.get(index), recorded(run, optimizer.names[index][0])
    value = "absent" if state is None or state.exp_avg_sq is None else "all zero"
    shown = f"Adam's state is {value}"
    if seen is not None:
        value = seen.gradient
        shown = "it was None at every step" if value == "none" else "it was zero at every step"
    return Finding(
        message=f"{what}, but in {run.step} steps no gradient has reached {part}: {shown}.",
        where=where,
        evidence=(
            Evidence(
                name="exp_avg_sq" if seen is None else "gradient",
                value=value,
                expected="over 0" if seen is None else "some",
                why=f"{len(optimizer.states)} of {len(optimizer.indices)} parameters have a state",
                source=f"{optimizer.source}: state[{index}]",
                step=run.step,
            ),
        ),
        explained_by=explaining("FGD103"),
    )
