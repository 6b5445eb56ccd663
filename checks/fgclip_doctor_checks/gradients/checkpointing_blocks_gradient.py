"""FGD105."""

import re
from collections.abc import Iterator

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check
from fgclip_doctor.parts import FLOATS, dead, named, planned_frozen, side
from fgclip_doctor.run import Optimizer

BLOCK = re.compile(r"\.(?:layers?|blocks|resblocks|h)\.(\d+)\.")
INPUTS = re.compile(r"embed|conv1|patch|positional|stem", re.IGNORECASE)


@check("FGD105", "checkpointing-blocks-gradient", Severity.ERROR)
def checkpointing_blocks_gradient(run: Run) -> Iterator[Finding]:
    """Reentrant gradient checkpointing over frozen inputs: what is inside is in the optimizer and gets no gradient.

    Why: torch.utils.checkpoint with use_reentrant=True gives an output without a gradient where no input needs one, as
    behind frozen embeddings. All that is checkpointed, adapters too, then stays as it is, with no more than a warning.
    Evidence: a recording, which saw the calls and the gradients. From a checkpoint: blocks from the first one on that
    are in the optimizer without Adam's state, in a tower with no embedding in the optimizer, while gradients reach what
    comes after (torch's warning in a log makes sure of the cause); not where, without it, the arguments say that
    nothing is checkpointed, or that it is not reentrant.
    Benign: a tower that is frozen throughout (the warning is harmless then); blocks that are in no optimizer.
    Fix: gradient_checkpointing_kwargs={"use_reentrant": False}, or model.enable_input_require_grads() on both towers.
    Don't silence the warning "None of the inputs have requires_grad=True" before you know what is inside.
    Sources: torch.utils.checkpoint; huggingface/transformers#21381, #23170; kohya-ss/sd-scripts#91.
    """
    if run.recording is not None:
        yield from _recorded(run)
        return
    warned = "cut_off" in run.facts
    for name in ("gradient_checkpointing", "reentrant"):
        if not warned and name in run.facts and run.facts[name].value is False:
            return
    optimizer = named(run)
    if not optimizer.states or max(run.step, optimizer.step or 0) < 1:
        raise Missing("the optimizer keeps no state per parameter, or has not made a step")
    certain = {names[0]: index for index, names in optimizer.names.items() if len(names) == 1}
    alive = {name for name, index in certain.items() if not dead(run, optimizer, index)}
    for which in ("image", "text"):
        inside = [name for name in run.tensors if side(run, name) == which and run.tensors[name].dtype in FLOATS]
        blocks: dict[int, list[str]] = {}
        for name in inside:
            if (found := BLOCK.search(name)) and name in certain and not planned_frozen(run, name):
                blocks.setdefault(int(found[1]), []).append(name)
        inputs = [name for name in inside if not BLOCK.search(name) and INPUTS.search(name)]
        if not inputs or any(optimizer.may_hold(name) for name in inputs):
            continue
        cut = [place for place in sorted(blocks) if alive.isdisjoint(blocks[place])]
        if cut and cut == sorted(blocks)[: len(cut)] and alive:
            lost = [name for place in cut for name in blocks[place]]
            yield _finding(run, which, lost, f"{len(cut)} of {len(blocks)} blocks of the {which} tower", optimizer)


def _finding(run: Run, which: str, lost: list[str], what: str, optimizer: Optimizer) -> Finding:
    values = sum(run.tensors[name].size for name in lost)
    return Finding(
        message=f"{what}, from the first one on, are in the optimizer and never had a gradient ({values:,} values "
        "don't train), behind frozen embeddings: as reentrant gradient checkpointing does.",
        where=lost[0],
        evidence=(
            Evidence(
                name="parameters without a gradient",
                value=len(lost),
                expected=0,
                why=f"in the optimizer without Adam's state, while the embeddings of the {which} tower are in no group",
                source=str(optimizer.source),
                step=run.step,
            ),
        ),
    )


def _recorded(run: Run) -> Iterator[Finding]:
    """The modules that were seen under reentrant checkpointing with no input that needs a gradient."""
    rank = run.watched.first
    for tower in dict.fromkeys(name.split(".")[0] for name in rank.reentrant):
        modules = [name for name in rank.reentrant if name.split(".")[0] == tower]
        inside = [
            one
            for one in rank.parameters.values()
            if one.trainable
            and not planned_frozen(run, one.name)
            and one.name.startswith(tuple(f"{m}." for m in modules))
        ]
        lost = [one for one in inside if one.gradient == "none"]
        if lost:
            yield Finding(
                message=f"{len(lost)} of {len(inside)} trainable parameters in {len(modules)} modules of {tower} never "
                "had a gradient: they run under reentrant checkpointing, and none of their inputs needs one.",
                where=modules[0],
                evidence=(
                    Evidence(
                        name="parameters without a gradient",
                        value=len(lost),
                        expected=0,
                        why=f"{modules[0]} was called by CheckpointFunction with no input that requires a gradient",
                        source=rank.path,
                        step=run.step,
                    ),
                ),
            )
