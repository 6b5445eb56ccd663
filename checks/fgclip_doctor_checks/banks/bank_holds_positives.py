"""FGD206: positives that serve as negatives."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check
from fgclip_doctor.bank import Bank, memory_bank
from fgclip_doctor.duplicates import CALLS, ids_of, keeps_ids, masked, others_alike
from fgclip_doctor.recorded import LossSite
from fgclip_doctor_checks.causes import explaining


@check("FGD206", "bank-holds-positives", Severity.WARNING)
def bank_holds_positives(
    run: Run, *, anchors: float = 0.1, same: float = 1e-4, reuse: float = 0.45, told: float = 1.0
) -> Iterator[Finding]:
    """Rows of the memory bank that are positives of an anchor are among its negatives.

    Why: Each of them pushes away what its anchor should be drawn to. With m of them the loss can't get under
        ln (1 + m), which is 0.69 for one, however good the features are.
    Evidence: The best of: a recording, in which the positive's very logit stands among the candidates once more for
        95 % of the anchors of the last three calls, image to text and text to image: the batch was enqueued before its
        loss. The candidates, recorded or logged: those that the bank brings are all its rows, so none is masked, while
        over a share `anchors` of the rows have another with their caption (by the ids kept beside the rows, else by a
        cosine within `same` of 1, five times as often as rows that are merely close show it). Duplicates alone, where
        nothing is kept beside the rows that a mask could be made from. Or, of a bank without ids in a run that sees its
        data more than once, a size of `reuse` times their pairs: reshuffled each epoch, an anchor then meets its own
        last visit with a probability of (K/N)^2 / 2.
    Benign: Duplicates that are masked, as rows of the anchor's own caption or id should be: fewer candidates than rows
        show it. MoCo lives with positives for 6 % of its anchors. In a narrow cone all rows are near each other, and an
        untrained text tower puts many captions in one place: cosines are believed where the rows tell `told` bits of
        their partners.
    Fix: Keep the caption's or the sample's id beside each row, and mask equal ids; enqueue after the loss; a bank of a
        tenth of the data at most.
    Sources: facebookresearch/moco#24 and #9; msight-tech/research-xbm (enqueues before `xbm_loss`); van den Oord et al.
        2018 (negatives are drawn from other pairs).
    """
    bank = memory_bank(run)
    evidence = _twins(run) or _masks_nothing(run, bank, anchors, same, reuse, told)
    if evidence is not None:
        yield Finding(
            message=f"The memory bank holds positives as negatives: {evidence.why}.",
            where=bank.names,
            evidence=(evidence,),
            explained_by=explaining("FGD206"),
        )


def _since_the_bank(site: LossSite) -> bool:
    """Whether no positive stood there twice while the batch's own were the candidates: captions don't repeat then."""
    import numpy as np

    twins = np.zeros(0) if site.twins is None else site.twins
    alone = site.candidates[: len(twins)] < 1.5 * site.anchors[: len(twins)]
    before = twins[alone & np.isfinite(twins)]
    return (
        len(before) >= CALLS // 2
        and float(before.max()) <= 0.05
        and bool(site.candidates[-1] >= 1.5 * site.anchors[-1])
    )


def _twins(run: Run) -> Evidence | None:
    """The batch itself in the bank, in both directions of a loss."""
    import numpy as np

    sites = run.recording.first.sites if run.recording else ()
    again: list[LossSite] = []
    for site in sites:
        twins = site.twins[np.isfinite(site.twins)][-CALLS:] if site.twins is not None else np.empty(0)
        if site.kind == "softmax" and len(twins) == CALLS and (twins >= 0.95).all():
            again.append(site)
    both = [one for one in again if any(o is not one and np.array_equal(o.anchors, one.anchors) for o in again)]
    both += [one for one in again if _since_the_bank(one)]
    if not both or run.recording is None:
        return None
    return Evidence(
        name=f"anchors whose positive is a candidate twice, at {both[0].name}",
        value=1.0,
        expected=0.0,
        why="the batch was enqueued before its loss, so every positive is a negative too, and the loss stays over 0.69",
        source=run.recording.first.path,
    )


def _masks_nothing(run: Run, bank: Bank, anchors: float, same: float, reuse: float, told: float) -> Evidence | None:
    import numpy as np

    if not bank.written or bank.written < 16:
        if keeps_ids(bank):
            raise Missing("the bank is empty yet, and keeps ids that a mask can be made from")
        return _oversized(run, bank, reuse)
    if any(rows.verdict == "noise" for rows in bank.look(0, bank.written)):
        raise Missing("the rows of the bank are noise, and nobody's positives")
    others = others_alike(bank, same)
    share, mean = float((others > 0).mean()), float(others.mean())
    if share < anchors:
        if keeps_ids(bank) or not {"dataset_size", "steps_per_epoch"} & run.facts.keys():
            return None
        hidden = masked(run, bank, reuse)
        return None if hidden and hidden[0] else _oversized(run, bank, reuse)
    if ids_of(bank) is None and bank.retrieval().bits < told:
        raise Missing("the rows of the bank find their partners no better than by luck: any two may lie together")
    hidden = masked(run, bank, mean)
    if hidden is None:
        if keeps_ids(bank):
            raise Missing("the bank keeps ids beside its rows, and the candidates that would show a mask aren't known")
        why = f"{share:.0%} of its rows have another with the same text, and it keeps no ids to mask them by"
    elif hidden[0]:
        return None
    else:
        why = (
            f"{share:.0%} of its rows share their text with another, and all {bank.size} are candidates of every anchor"
        )
    floor = float(np.log1p(others).mean())
    return Evidence(
        name="rows with the text of another",
        value=round(share, 3),
        expected=f"under {anchors:g}",
        why=f"{why}: {mean:.2g} positives among an anchor's negatives, so its loss stays over {floor:.2g} on average",
        source=bank.sources if hidden is None else hidden[1],
    )


def _oversized(run: Run, bank: Bank, reuse: float) -> Evidence | None:
    """A bank that holds so much of the data that anchors meet their own last visit in it, epoch after epoch."""
    epoch = run.number("steps_per_epoch", 0.0)
    if run.number("num_epochs", 2.0) <= 1 or run.number("max_steps", inf) <= epoch:
        return None  # no anchor comes again
    source, samples = "dataset_size", run.number("dataset_size", 0.0)
    if not samples and epoch:
        source = "steps_per_epoch"
        samples = epoch * run.number("micro_batch") * run.number("accumulation", 1.0) * run.number("world_size", 1.0)
    pairs = (samples or run.number("dataset_size")) * run.number("regions_per_sample", 1.0)
    if bank.size < reuse * pairs:
        return None
    often = min(1.0, (bank.size / pairs) ** 2 / 2)
    return Evidence(
        name="rows to pairs in the data",
        value=round(bank.size / pairs, 3),
        expected=f"under {reuse:g}",
        why=f"once it is full, {often:.0%} of the anchors or more meet their own pair in it, and no ids are kept",
        source=str(run.fact(source).source),
    )
