"""FGD203: a bank that a resumed run won't have."""

import re
from collections.abc import Iterator

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check
from fgclip_doctor.bank import memory_bank, warmup_over
from fgclip_doctor.recorded import State

POINTER = re.compile(r"ptr|pointer|cursor|idx|index", re.IGNORECASE)
PARAMETER = (".weight", ".bias")
NAMED = re.compile(r"queue|bank|memory|xbm|(^|[._])keys?$", re.IGNORECASE)


@check("FGD203", "bank-not-in-checkpoint", Severity.WARNING)
def bank_not_in_checkpoint(run: Run) -> Iterator[Finding]:
    """The memory bank or its pointer isn't in the checkpoint, so a resume starts from another bank.

    Why: What is a plain tensor, a non-persistent buffer or a Python attribute isn't saved. After a resume the rows are
        noise again, or they are there but count as unwritten, and the loss jumps for no visible reason.
    Evidence: The configuration asks for a bank, and no tensor of the checkpoint holds it; or the rows are there without
        their pointer. In a dry run (`gate -- COMMAND`), what the model carried from step to step and a load of its own
        state dict did not bring back: matrices with rows of length 1, and the bank's pointer and flag.
    Benign: Exported weights without trainer state aren't meant for resuming. A bank may be created only when its warmup
        ends. A fill flag isn't asked for: MoCo's bank has none, and until a ring wraps, its pointer tells as much. One
        that shifts its rows instead of overwriting them needs no pointer, and should ignore this rule.
    Fix: Register rows, pointer and flag with `register_buffer(..., persistent=True)`; without them, fill the bank anew
        before its loss counts.
    Sources: KevinMusgrave/pytorch-metric-learning 4520db7 (the memory became a buffer); lightly-ai/lightly#993.
    """
    if run.recording and (state := run.recording.first.state):
        yield from _after_a_load(run, state)
        return
    checkpoint = run.checkpoint
    if checkpoint.optimizer is None and checkpoint.scheduler is None and checkpoint.trainer_step is None:
        raise Missing("no optimizer or trainer state: these weights may be an export that nobody resumes")
    tensors = run.whole_model
    if not (run.has_role("bank.image_keys") or run.has_role("bank.text_keys")):
        asked = [run.facts[name] for name in ("bank_size", "bank_enabled") if name in run.facts]
        if not asked or not all(fact.value for fact in asked):
            raise Missing("no memory bank was found, and the configuration doesn't ask for one")
        rows = run.number("bank_size", 0.0)
        sized = {name for name, one in tensors.items() if len(one.shape) == 2 and rows in one.shape}
        like = next((n for n in tensors if NAMED.search(n) or (n in sized and not n.endswith(PARAMETER))), None)
        if like is not None:
            raise Missing(f"{like} may be the bank; [tool.fgclip-doctor.roles] can name it")
        if not warmup_over(run):
            raise Missing("the bank may still be in its warmup, and not yet created")
        yield Finding(
            message="The configuration asks for a memory bank, but the checkpoint holds none, so a resume lacks it.",
            where=checkpoint.path,
            evidence=tuple(
                Evidence(
                    name=fact.name,
                    value=fact.value,
                    expected="rows in the checkpoint",
                    why=f"none of the {len(tensors)} tensors is named like a bank or a queue",
                    source=str(fact.source),
                )
                for fact in asked
            ),
        )
        return
    bank = memory_bank(run)
    others = {name for name, one in tensors.items() if one.size == 1 and name != run.roles.get("clock.forwards")}
    like = next((name for name in sorted(others) if "int" in tensors[name].dtype or POINTER.search(name)), None)
    if bank.pointer is None and like is not None:
        raise Missing(f"{like} may be the pointer of the bank; [tool.fgclip-doctor.roles] can name it")
    if bank.pointer is None:
        yield Finding(
            message="The rows of the memory bank are saved, but its pointer isn't: a resumed run can't tell which rows "
            "are the oldest, or which were written at all.",
            where=bank.names,
            evidence=(
                Evidence(
                    name="pointer", value=None, expected="a saved buffer", why="beside the rows", source=bank.sources
                ),
            ),
        )


def _after_a_load(run: Run, state: State) -> Iterator[Finding]:
    """What of the bank a copy of the model did not get back."""
    steering = {run.roles.get("bank.pointer"), run.roles.get("bank.full")}
    lost = [one for one in state.unsaved if one.bank or one.name in steering]
    if not lost:
        if state.skipped or not any(role.startswith("bank.") for role in run.roles):
            raise Missing(state.skipped or "no memory bank was found")
        return
    names = ", ".join(one.name for one in lost)
    rows = any(one.bank for one in lost)
    yield Finding(
        message=f"{names}: kept from step to step, and not in what the model saves, so a resumed run starts with "
        + ("other rows than it had." if rows else "the rows that it had, and doesn't know which were written."),
        where=names,
        evidence=tuple(
            Evidence(
                name=one.name,
                value="not saved",
                expected="in the state dict",
                why="a copy of the model that loaded its state dict doesn't have it",
                source=run.watched.first.path,
                step=state.step,
            )
            for one in lost
        ),
    )
