"""FGD206: positives that serve as negatives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check
from fgclip_doctor.bank import Bank, memory_bank
from fgclip_doctor.recorded import LossSite
from fgclip_doctor.terms import logged_candidates
from fgclip_doctor_checks.causes import explaining

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fgclip_doctor.run import Tensor


CALLS = 3  # sampled calls of a loss, each with all its anchors


@check("FGD206", "bank-holds-positives", Severity.WARNING)
def bank_holds_positives(
    run: Run, *, anchors: float = 0.1, same: float = 1e-4, reuse: float = 0.45
) -> Iterator[Finding]:
    """Rows of the memory bank that are positives of an anchor are among its negatives.

    Why: Each of them pushes away what its anchor should be drawn to. With m of them the loss can't get under
        ln (1 + m), which is 0.69 for one, however good the features are.
    Evidence: The best of: a recording, in which the positive's very logit stands among the candidates once more for
        95 % of the anchors of the last three calls, image to text and text to image: the batch was enqueued before its
        loss. The candidates, recorded or logged: those that the bank brings are all its rows, so none is masked, while
        over a share `anchors` of the rows have another with their caption (by the ids kept beside the rows, else by a
        cosine within `same` of 1, five times as often as rows that are merely close show it). Duplicates alone, where
        nothing is kept beside the rows that a mask could be made from. Or, of a bank that isn't filled yet and keeps no
        ids, a size of `reuse` times the pairs of the data: reshuffled each epoch, an anchor then meets its own last
        visit with a probability of (K/N)^2 / 2.
    Benign: Duplicates that are masked, as rows of the anchor's own caption or id should be: fewer candidates than rows
        show it. MoCo lives with positives for 6 % of its anchors. In a narrow cone all rows are near each other.
    Fix: Keep the caption's or the sample's id beside each row, and mask equal ids; enqueue after the loss; a bank of a
        tenth of the data at most.
    Sources: facebookresearch/moco#24 and #9; msight-tech/research-xbm (enqueues before `xbm_loss`); van den Oord et al.
        2018 (negatives are drawn from other pairs).
    """
    bank = memory_bank(run)
    ids = _ids(bank)
    evidence = _twins(run)
    if evidence is None:
        evidence = _masks_nothing(run, bank, ids, anchors, same, reuse)
    if evidence is not None:
        yield Finding(
            message=f"The memory bank holds positives as negatives: {evidence.why}.",
            where=bank.names,
            evidence=(evidence,),
            explained_by=explaining("FGD206"),
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
    if not both or run.recording is None:
        return None
    return Evidence(
        name=f"anchors whose positive is a candidate twice, at {both[0].name}",
        value=1.0,
        expected=0.0,
        why="the batch was enqueued before its loss, so every positive is a negative too, and the loss stays over 0.69",
        source=run.recording.first.path,
    )


def _masks_nothing(
    run: Run, bank: Bank, ids: NDArray[Any] | None, anchors: float, same: float, reuse: float
) -> Evidence | None:
    import numpy as np

    if not bank.written or bank.written < 16:
        return _oversized(run, bank, ids, reuse)
    if any(rows.verdict == "noise" for rows in bank.look(0, bank.written)):
        raise Missing("the rows of the bank are noise, and nobody's positives")
    twins = _counted(ids[: bank.written]) if ids is not None else _alike(bank, same)
    share, mean = float((twins > 0).mean()), float(twins.mean())
    if share < anchors:
        return None
    brought = _brought(run, bank)
    if brought is None:
        if _keeps_ids(bank):
            raise Missing("the bank keeps ids beside its rows, and the candidates that would show a mask aren't known")
        why = f"{share:.0%} of its rows have another with the same text, and it keeps no ids to mask them by"
    else:
        rows, error, _ = brought
        if rows < bank.size - 0.3 * mean - 2 * error:
            return None
        if error > 0.25 * mean:
            raise Missing("the candidates vary too much to tell whether the bank's rows are masked")
        why = (
            f"{share:.0%} of its rows share their text with another, and all {bank.size} are candidates of every anchor"
        )
    floor = float(np.log1p(twins).mean())
    return Evidence(
        name="rows with the text of another",
        value=round(share, 3),
        expected=f"under {anchors:g}",
        why=f"{why}: {mean:.2g} positives among an anchor's negatives, so its loss stays over {floor:.2g} on average",
        source=bank.sources if brought is None else brought[2],
    )


def _keeps_ids(bank: Bank) -> Tensor | None:
    """Integers beside the rows, one to a row, whether or not their values are known: a recording has names alone."""
    known = [one for one in bank.checkpoint.tensors.values() if one.shape in ((bank.size,), (1, bank.size))]
    return next((one for one in known if one.dtype.startswith(("int", "uint"))), None)


def _ids(bank: Bank) -> NDArray[Any] | None:
    """What is kept beside the rows: integers, one to a row."""
    kept = _keeps_ids(bank)
    try:
        ids = None if kept is None else kept.values().reshape(-1)
    except Missing:  # a recording has its name and no more
        return None
    return ids if ids is not None and (ids != ids[0]).any() else None


def _counted(ids: NDArray[Any]) -> NDArray[np.int64]:
    import numpy as np

    _, inverse, counts = np.unique(ids, return_inverse=True, return_counts=True)
    others: NDArray[np.int64] = counts[inverse] - 1
    return others


def _alike(bank: Bank, same: float, block: int = 1024) -> NDArray[np.int64]:
    """How many other written rows each text row is equal to; none, where the rows lie that close by themselves.

    Of directions that are merely close, at least ten times as many are within ten times the distance, and as a rule
    far more: there are two dimensions or more in which to differ.
    """
    import numpy as np

    modality = "text" if "text" in bank.keys else next(iter(bank.keys))
    rows = bank.rows(modality)[: bank.written][-8192:].astype(np.float32)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = (rows / np.where(lengths > 0, lengths, 1))[(lengths > 0)[:, 0]]
    if len(rows) < 2:
        raise Missing("the rows of the bank are not finite, or zero")
    blocks = [rows[at : at + block] @ rows.T for at in range(0, len(rows), block)]
    equal, near = (
        np.concatenate([(one >= 1 - apart).sum(axis=1) for one in blocks]) - 1 for apart in (same, 10 * same)
    )
    told = near.sum() <= 0.25 * len(rows) ** 2  # not all of them within so narrow a cone
    return equal if told and equal.sum() >= 0.5 * near.sum() else np.zeros_like(equal)


def _brought(run: Run, bank: Bank) -> tuple[float, float, str] | None:
    """Candidates that a full bank brings, with their error: recorded at a loss, or as logged."""
    import numpy as np

    if not bank.full:
        return None
    for site in run.recording.first.sites if run.recording else ():
        if site.kind == "softmax" and site.targets != "constant" and site.candidates.max() > 0.5 * bank.size:
            ratio = np.rint(site.candidates[0] / site.anchors[0])  # 1, or where they are gathered the number of ranks
            extra = site.candidates - ratio * site.anchors
            extra = extra[extra > 0.5 * bank.size][-16:]  # the bank is on, and full
            if len(extra) >= CALLS:
                return float(extra.mean()), float(extra.std() / np.sqrt(len(extra))), run.watched.first.path
    log = logged_candidates(run, "region") or logged_candidates(run, "global")
    if log is None or len(log.values) < 16:
        return None
    first, last = log.values[:3], log.values[-max(5, len(log.values) // 8) :]
    error = float(np.hypot(first.std() / np.sqrt(len(first)), last.std() / np.sqrt(len(last))))
    extra_mean = float(last.mean() - first.mean())
    return (extra_mean, error, str(log.source)) if extra_mean > 0.5 * bank.size else None


def _oversized(run: Run, bank: Bank, ids: NDArray[Any] | None, reuse: float) -> Evidence | None:
    if ids is not None:
        raise Missing("the bank is empty yet, and keeps ids that a mask can be made from")
    pairs = run.number("dataset_size") * run.number("regions_per_sample", 1.0)
    if bank.size < reuse * pairs:
        return None
    often = min(1.0, (bank.size / pairs) ** 2 / 2)
    return Evidence(
        name="rows to pairs in the data",
        value=round(bank.size / pairs, 3),
        expected=f"under {reuse:g}",
        why=f"once it is full, {often:.0%} of the anchors or more meet their own pair in it, and no ids are kept",
        source=str(run.fact("dataset_size").source),
    )
