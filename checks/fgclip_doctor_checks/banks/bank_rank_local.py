"""FGD208: a bank of one rank's rows."""

from collections.abc import Iterator
from itertools import pairwise

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check
from fgclip_doctor.bank import ROLES, memory_bank
from fgclip_doctor.ranks import agreement, compared
from fgclip_doctor.ring import pointers, rows_per_step


@check("FGD208", "bank-rank-local", Severity.WARNING)
def bank_rank_local(run: Run, *, steps: int = 3, tolerance: float = 0.15) -> Iterator[Finding]:
    """Each rank fills a memory bank of its own, and one of them is saved.

    Why: Without a gather before the enqueue, a bank turns over as many times more slowly as there are ranks, and of
        what the ranks encoded only a part ever serves on each. Where buffers are broadcast, the first rank's bank
        overwrites the others at every forward, and what they enqueued is lost.
    Evidence: A recording: the ranks' hashes of the bank differ at `steps` or more of the steps at which all wrote one,
        the last of them included, while those of the parameters agree. Else a log of the pointer, or checkpoints: it
        advances by the rows of one rank, within `tolerance`, where those of all are expected. Stretches in which the
        ring may have turned more than once are left out.
    Benign: Banks that are local on purpose (lightly's `gather_distributed=False`): ignore this rule. An enqueue in the
        last forward of a step alone, where there are as many forwards as ranks, can't be told from it: it is skipped.
    Fix: Gather features and captions over the ranks, then enqueue the same rows in the same order on every rank.
    Sources: lightly-ai/lightly#1018; bl0/moco#15; HobbitLong/CMC#5; facebookresearch/moco (gathers before the enqueue).
    """
    recorded = run.recording is not None and len(run.recording.ranks) > 1
    evidence = _recorded(run, steps) if recorded else _counted(run, tolerance)
    if evidence is not None:
        yield Finding(
            message="Each rank fills a memory bank of its own: "
            + (
                f"the ranks' rows differ at {evidence.value} of the steps looked at."
                if recorded
                else f"the pointer advances by {evidence.value:.4g} rows a step, those of one rank, and not by "
                f"{evidence.expected:.4g}."
            ),
            where=memory_bank(run).names,
            evidence=(evidence,),
        )


def _recorded(run: Run, steps: int) -> Evidence | None:
    ranks = compared(run)
    if not all(same for _, same in agreement(ranks, "parameters")):
        raise Missing("the ranks' parameters differ, and so do their banks")
    leaves = {run.roles.get(role, "").rpartition(".")[2] for role in ROLES.values()} - {""}
    names = [name for name in ranks[0].digests if name.rpartition(".")[2] in leaves]  # saved and watched under other
    seen = {name: list(agreement(ranks, name)) for name in names}  # prefixes
    if not any(seen.values()):
        raise Missing("the recording has no hashes of the bank of each rank")
    name = next((name for name, found in seen.items() if found and not found[-1][1]), None)
    if name is None:
        return None
    apart = [step for step, same in seen[name] if not same]
    if len(apart) < steps:
        return None
    return Evidence(
        name="steps at which the ranks' banks differ",
        value=len(apart),
        expected=0,
        why=f"of {len(seen[name])} at which every rank wrote a hash of {name}; the parameters agree",
        source=", ".join(rank.path for rank in ranks),
        step=apart[0],
    )


def _counted(run: Run, tolerance: float) -> Evidence | None:
    import numpy as np

    ranks, accumulation = run.number("world_size"), run.number("accumulation")
    if ranks < 2:
        raise Missing("the run has one rank only")
    if accumulation > 1 and abs(accumulation / ranks - 1) < 2 * tolerance:
        raise Missing("an enqueue in one forward of each step advances the pointer as a bank of one rank does")
    expected = rows_per_step(run)
    advanced, steps, source = _advance(run, expected)
    if steps < 3:
        raise Missing("the ring may have turned more than once between two looks at its pointer")
    rate = advanced / steps
    if not np.isclose(rate * ranks, expected, rtol=tolerance):
        return None
    return Evidence(
        name="rows enqueued a step",
        value=rate,
        expected=expected,
        why=f"over {steps} steps; {expected:.4g} rows a step on {ranks:.0f} ranks, {expected / ranks:.4g} on one",
        source=source,
    )


def _advance(run: Run, expected: float) -> tuple[int, int, str]:
    """Rows enqueued and the steps that this took, where the ring can't have turned; and where it was read."""
    bank = memory_bank(run)
    try:
        known = pointers(run)
        looks = [(int(step), int(value)) for step, value in zip(known.steps, known.values, strict=True)]
        source = known.source
    except Missing:
        looks, source = [], bank.sources
    if bank.full is False and bank.pointer and bank.checkpoint.step is not None and len(looks) < 2:
        warmup = run.number("bank_warmup", 0.0)
        if "bank_clock" in run.facts and run.facts["bank_clock"].value == "forward":
            warmup /= run.number("accumulation")
        looks = [(int(warmup), 0), (bank.checkpoint.step, bank.pointer)]
        return bank.pointer, bank.checkpoint.step - int(warmup), source
    advanced = steps = 0
    for (before, old), (after, new) in pairwise(looks):
        if after > before and old != new and expected * (after - before) < 0.8 * bank.size:
            advanced += (new - old) % bank.size
            steps += after - before
    return advanced, steps, source
