"""FGD201: a memory bank that is there, and that nothing uses."""

import re
from collections.abc import Iterator

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check
from fgclip_doctor.bank import (
    Bank,
    among_candidates,
    banks,
    forwards,
    memory_bank,
    steps_done,
    switched_off,
    waits_longer,
    warmup_over,
)
from fgclip_doctor.run import Series, Tensor
from fgclip_doctor_checks.causes import explaining

COUNTER = re.compile(r"clock|step|iter|count|update|tick|seen|call|forward", re.IGNORECASE)  # an epoch is no such


@check("FGD201", "bank-never-active", Severity.ERROR)
def bank_never_active(run: Run, *, patience: int = 200, share: float = 0.2) -> Iterator[Finding]:
    """The memory bank is there, but nothing was ever enqueued, or nothing is any more.

    Why: A bank that no code switches on leaves the batch alone as negatives, and no error says so. Typical causes: a
        flag that starts False and is never set, an enqueue behind a default argument or on a discarded replica, a
        warmup counted in a clock that never gets there, a pointer that isn't written back.
    Evidence: The pointer, the fill flag and the saved switch, the rows against random rows, and rows that are
        bit-identical in two checkpoints or looks of a recording; beside the steps and forwards done, the bank's warmup
        and, where they were recorded, the candidates of the losses. A full bank whose rows no recorded loss has had
        among them is named where the model itself keeps a longer warmup than the configuration, and is still in it; or
        where its ring has wrapped and a flag beside it, of whatever name, was never set, or a counter beside it is far
        from the warmup that is over. A pointer that moves over rows that stay 0 needs no warmup to be a fault.
    Benign: A warmup that may still be running, in whatever clock it is counted; of unknown length, it may last for
        `patience` steps and a `share` of the run, or until a recorded loss has as many candidates as there are with all
        rows. A pointer at 0 over encoded rows is a ring that has just wrapped. A
        bank that the configuration switches off is not missed; in a recording, a buffer or a module's ``queue_on`` or
        ``bank_enabled`` beside a warmup is no configuration, but what is set when that is over. That no recorded loss
        has the rows among its candidates proves nothing by itself: they may serve as positives, or in a loss that is
        written by hand or compiled.
    Fix: Switch the bank on when the counter passes the warmup, count both in optimizer steps, print the activation, and
        assert that the pointer advances.
    Sources: He et al. 2020, "Momentum Contrast"; Wang et al. 2020, "Cross-Batch Memory for Embedding Learning" (start
        iteration); lightly-ai/lightly#968 (a bank of random noise through a whole training).
    """
    bank = memory_bank(run)
    if switched_off(run):
        raise Missing("the configuration switches the memory bank off")
    message = _written_elsewhere(bank)
    over = warmup_over(run, patience=patience, share=share, checkpoint=bank.checkpoint)
    if not message and not over and not _counted(run, bank):
        raise Missing("the bank may still be in its warmup")
    for reason in (_unused, _frozen, _waiting, _unready, _not_counted_down):
        message = message or reason(run, bank)
    if message:
        source = bank.sources
        warmup = run.facts.get("bank_warmup")
        yield Finding(
            message=message,
            where=bank.names,
            evidence=(
                Evidence(name="pointer", value=bank.pointer, why="it moves with every enqueue", source=source),
                Evidence(name="fill flag", value=bank.full, why="set when the pointer first wraps", source=source),
                Evidence(name="saved switch", value=bank.enabled, why="None where it isn't saved", source=source),
                Evidence(
                    name="optimizer steps done",
                    value=steps_done(run, bank.checkpoint),
                    expected=f"bank in use after {warmup.value}" if warmup else "bank in use",
                    why=f"{forwards(run, bank.checkpoint)} forwards; the warmup is over by every clock",
                    source=str(warmup.source) if warmup else bank.checkpoint.path,
                ),
                *_candidates(run, bank),
                *(one for rows in bank.look() if rows.count for one in rows.evidence()),
            ),
            explained_by=explaining("FGD201"),
        )


def _counted(run: Run, bank: Bank, steps: int = 20) -> bool:
    """Whether a recorded loss has had as many candidates for so long that all rows must be among them."""
    for site in run.recording.first.sites if run.recording else ():
        beside = site.candidates - bank.size  # the anchors of all ranks, or as in MoCo the positive alone
        world = run.recording.first.world_size if run.recording else 1
        whole = (beside == site.anchors) | (beside == world * site.anchors) | (beside == 1)
        if whole.any() and int(site.steps[whole].max() - site.steps[whole].min()) >= steps:
            return True
    return False


def _candidates(run: Run, bank: Bank) -> Iterator[Evidence]:
    """Of each recorded loss, the most candidates that it ever had: whether the rows counted all the same."""
    for site in run.recording.first.sites if run.recording else ():
        if site.kind == "softmax" and site.targets != "constant":
            yield Evidence(
                name=f"candidates at {site.name}, at most",
                value=float(site.candidates.max()),
                why=f"{bank.size} rows more where the bank counts; {float(site.candidates.min()):g} at least",
                source=run.recording.first.path if run.recording else "",
            )


def _written_elsewhere(bank: Bank) -> str | None:
    """What shows that rows are enqueued into something that isn't the bank, as a copy of it."""
    if not bank.pointer or any(norms.any() for norms in bank.norms.values()):
        return None
    return (
        f"The pointer of the memory bank moves (to {bank.pointer}), and its {bank.size} rows are all 0: what is "
        "enqueued is written to something else, as a copy of it."
    )


def _unused(run: Run, bank: Bank) -> str | None:
    """What shows that the bank of one checkpoint isn't used."""
    if bank.enabled is False and _was_on(run):
        return None
    if bank.enabled is False:
        return f"The memory bank ({bank.size} rows) is still switched off: its negatives have never counted."
    if bank.pointer or bank.full:
        return None
    if bank.pointer == 0 and (few := bank.overwritten()):
        return (
            f"The pointer of the memory bank never moves: every enqueue writes to its first rows (about {few}), and "
            f"{bank.size - few} of {bank.size} are still those of its initialisation."
        )
    verdicts = {rows.verdict for rows in bank.look()}
    if not bank.blank and "encoded" in verdicts:
        return None  # a ring that wrapped exactly
    state = "all its rows are alike" if bank.blank else "its rows are still those of its initialisation"
    if not bank.blank and bank.full is None and "undecided" in verdicts:
        raise Missing("without a fill flag, a pointer at 0 may have wrapped, and the rows are too few to tell")
    if not bank.blank and bank.full is None and bank.pointer is None:
        raise Missing("neither the pointer nor the fill flag of the bank was saved")
    return (
        f"Nothing was ever enqueued in the memory bank: its pointer is at {bank.pointer or 0} and {state}, so its "
        f"{bank.size} negatives are lost."
    )


def _was_on(run: Run) -> bool:
    """Whether a recording has seen the switch on at any look."""
    switch = run.series.get(run.roles.get("bank.enabled", ""))
    return switch is not None and bool(switch.values.any())


def _frozen(run: Run, bank: Bank) -> str | None:
    """What shows that the rows stood still since an earlier checkpoint."""
    for old in banks(run)[:-1]:
        before, now = old.checkpoint.step, bank.checkpoint.step
        if before is None or now is None or now - before < 2 or old.keys.keys() != bank.keys.keys():
            continue
        if all(old.keys[name].digest == bank.keys[name].digest for name in bank.keys):
            return (
                f"Not one row of the memory bank has changed between step {before} and step {now}: its {bank.size} "
                "negatives are lost, or stale."
            )
    return None


def _waiting(run: Run, bank: Bank) -> str | None:
    """What shows that rows are enqueued for losses that go on without them."""
    own = waits_longer(run, bank)
    if own is None or bank.written != bank.size or among_candidates(run, bank) is not False:
        return None
    return (
        f"The memory bank is full, and no loss has had one of its {bank.size} rows among its candidates: the model's "
        f"own {own.name} is {own.item():g}, where the configuration says {run.number('bank_warmup'):g}."
    )


def _wrapped(run: Run) -> bool:
    """Whether a recording has seen the pointer come round."""
    pointer = run.series.get(run.roles.get("bank.pointer", "")) if run.recording else None
    return pointer is not None and bool((pointer.values[1:] < pointer.values[:-1]).any())


def _beside(bank: Bank) -> list[Tensor]:
    """The scalars of the modules that hold the bank."""
    modules = {key.name.rpartition(".")[0] for key in bank.keys.values()}
    return [
        one for name, one in bank.checkpoint.tensors.items() if one.size == 1 and name.rpartition(".")[0] in modules
    ]


def _counts_up_to(warmup: float, seen: Series) -> bool:
    """Whether a number began at 0, as counters do and settings don't, and has never come to `warmup`."""
    return bool(seen.values[0] == 0 and seen.values.max() < warmup)


def _not_counted_down(run: Run, bank: Bank) -> str | None:
    """What shows that the bank waits for a counter beside it that will not get there."""
    if "bank_warmup" not in run.facts or not _wrapped(run) or among_candidates(run, bank) is not False:
        return None
    warmup = run.number("bank_warmup")
    numbers = [
        one
        for one in _beside(bank)
        if one.dtype.startswith(("int", "float"))
        and one.name in run.series
        and one.name != run.roles.get("bank.pointer")
    ]
    counters = [one for one in numbers if COUNTER.search(one.name.rpartition(".")[2])]
    late = next((one for one in counters if _counts_up_to(warmup, run.series[one.name])), None)
    if late is None or not any(one.item() == warmup for one in numbers):
        return None
    return (
        f"The memory bank is full, and no loss has had one of its {bank.size} rows among its candidates: it waits "
        f"until {warmup:g}, and {late.name} is at {late.item():g} after {steps_done(run, bank.checkpoint)} steps."
    )


def _unready(run: Run, bank: Bank) -> str | None:
    """What shows that a ring has wrapped, and that a flag beside it, of whatever name, still keeps it out of losses."""
    if not _wrapped(run) or among_candidates(run, bank) is not False:
        return None
    flags = (one.name for one in _beside(bank) if one.dtype == "bool")
    unset = next((one for one in flags if one in run.series and not run.series[one].values.any()), None)
    if unset is None:
        return None
    return (
        f"The ring of the memory bank has wrapped, {unset} was never set, and no loss has had one of its {bank.size} "
        "rows among its candidates: they are lost."
    )
