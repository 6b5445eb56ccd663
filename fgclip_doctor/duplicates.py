"""Rows of a memory bank that belong to one text: found by ids or by closeness, and masked or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fgclip_doctor.bank import Bank
from fgclip_doctor.run import Missing, Run, Tensor
from fgclip_doctor.terms import logged_candidates

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST_COPIES = 0.64  # of the pairs of rows: four fifths of the rows are one; beyond it the encoder may have collapsed
CALLS = 3  # sampled calls of a loss, each with all its anchors


def keeps_ids(bank: Bank) -> Tensor | None:
    """Integers beside the rows, one to a row, whether or not their values are known: a recording has names alone."""
    known = [one for one in bank.checkpoint.tensors.values() if one.shape in ((bank.size,), (1, bank.size))]
    return next((one for one in known if one.dtype.startswith(("int", "uint"))), None)


def ids_of(bank: Bank) -> NDArray[Any] | None:
    """What is kept beside the rows: integers, one to a row."""
    kept = keeps_ids(bank)
    try:
        ids = None if kept is None else kept.values().reshape(-1)
    except Missing:  # a recording has its name and no more
        return None
    return ids if ids is not None and (ids != ids[0]).any() else None


def others_alike(bank: Bank, same: float) -> NDArray[np.int64]:
    """How many other written rows belong to each row's text, by ids that are kept, else by cosines of 1 - `same`."""
    ids = ids_of(bank)
    return _counted(ids[: bank.written]) if ids is not None else _alike(bank, same)


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
        np.concatenate([(one >= 1 - distance).sum(axis=1) for one in blocks]) - 1 for distance in (same, 10 * same)
    )
    copies, apart = equal.sum() / len(rows) ** 2, (near - equal).sum() / len(rows) ** 2
    told = apart <= 0.25 and copies <= MOST_COPIES  # not all of them within so narrow a cone
    return equal if told and equal.sum() >= 0.5 * near.sum() else np.zeros_like(equal)


def masked(run: Run, bank: Bank, alike: float) -> tuple[bool, str] | None:
    """Whether fewer candidates than rows join a loss, as where the `alike` rows of an anchor's own text are left out,
    and where that was read; None where nothing tells. Raises `Missing` where the candidates vary too much.
    """
    import numpy as np

    if not bank.full:
        return None
    for site in run.recording.first.sites if run.recording else ():
        if site.kind == "softmax" and site.targets != "constant" and site.candidates.max() > 0.5 * bank.size:
            ratio = np.rint(site.candidates[0] / site.anchors[0])  # 1, or where they are gathered the number of ranks
            extra = site.candidates - ratio * site.anchors
            extra = extra[extra > 0.5 * bank.size][-16:]  # the bank is on, and full
            if len(extra) >= CALLS:  # they were counted, so a bank without a mask brings all its rows each time
                return bool((extra < bank.size - 1e-3).any()), run.watched.first.path
    log = logged_candidates(run, "region") or logged_candidates(run, "global")
    if log is None or len(log.values) < 16:
        return None
    first, last = log.values[:3], log.values[-max(5, len(log.values) // 8) :]
    first = first[: 1 if first[-1] > 1.25 * first[0] else 3]  # a bank that is on from the start fills in them
    error = float(np.hypot(first.std() / np.sqrt(len(first)), last.std() / np.sqrt(len(last))))
    rows = float(last.mean() - first.mean())
    if rows <= 0.5 * bank.size:
        return None
    fewer = rows < bank.size - 0.3 * alike - 2 * error
    if not fewer and error > 0.25 * alike:
        raise Missing("the candidates vary too much to tell whether the bank's rows are masked")
    return fewer, str(log.source)
