"""What is measured of a contrastive loss: small ones together on the host, a large one on its device."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fgclip_doctor.live.fetch import Fetcher

FEW = 1 << 14  # logits that are measured on the host, at a fifth of what torch's forty small operations cost
WAITING = 1 << 18  # logits that wait for others at most
LOWEST = -5e3  # a logit below it is masked out: the mildest of the customary masks adds -1e4, and scales end at 1,000
EXACT = 4e-6  # of float32: by how much two products of the same vectors differ that were summed differently
COARSE = 1e-4  # a larger share of neighbours that are equal is one of coarse numbers
MEASURED = ("anchors", "candidates", "loss", "null", "top1", "twins", "first", "last", "lowest", "highest")

Array = npt.NDArray[Any]
Arrived = Callable[[list[float]], None]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a loss: where, of which kind, and what it was given."""

    site: str
    kind: str  # "softmax" or "sigmoid"
    logits: Tensor  # (anchors, candidates)
    targets: Tensor | None  # (anchors,), or for a sigmoid loss (anchors, candidates) or None
    ignored: int


@dataclass(frozen=True, slots=True)
class _Waiting:
    logits: Array  # (anchors, candidates)
    targets: Array  # (anchors,)
    ignored: int
    arrived: Arrived


class Losses:
    """Hands out numbers in the order of `MEASURED` for each call of a loss.

    Those of small matrices wait for one another until `measure`, as numpy takes as long for seven as for two.
    """

    def __init__(self, fetcher: Fetcher) -> None:
        self.fetcher = fetcher
        self.waiting: list[_Waiting] = []

    def add(self, call: Call, arrived: Arrived) -> bool:
        """False where there is nothing to measure, as of soft targets."""
        logits, targets, kind, ignored = call.logits.detach(), call.targets, call.kind, call.ignored
        shape = logits.shape
        if kind == "softmax":
            if targets is None or targets.shape != shape[:1] or targets.is_floating_point():
                return False
        elif shape[0] > shape[1] or (targets is not None and targets.shape != shape):
            return False
        given = [logits if logits.dtype == torch.float32 else logits.float()]
        given += [targets.detach()] if targets is not None else []
        if logits.numel() <= FEW and type(logits) is Tensor:

            def here(copies: list[Tensor]) -> None:  # and not the call itself, which holds the graph
                values = [one.numpy() for one in copies]
                if kind == "softmax":
                    self.waiting.append(_Waiting(values[0].copy(), values[1].copy(), ignored, arrived))
                    if sum(one.logits.size for one in self.waiting) > WAITING:
                        self.measure()
                else:
                    with np.errstate(all="ignore"):
                        arrived([float(one) for one in _sigmoid(np, np.arange(shape[1]), *values)])

            self.fetcher.copy(given, here)
            return True
        with torch.no_grad():
            index = torch.arange(max(shape), device=logits.device)
            found = _softmax(ignored, index, *given) if kind == "softmax" else _sigmoid(torch, index, *given)
            self.fetcher.take([one if isinstance(one, Tensor) else logits.new_full((), one) for one in found], arrived)
        return True

    def measure(self) -> None:
        """Hand out those that have waited."""
        waiting, self.waiting = self.waiting, []
        if waiting:
            with np.errstate(all="ignore"):
                found = _softmaxes(waiting)
            for one, values in zip(waiting, found, strict=True):
                one.arrived(values)


def _softmaxes(losses: Sequence[_Waiting]) -> list[list[float]]:
    """Of several losses at once: all of their logits one after the other, (logits,), as rows of several widths."""
    anchors = np.array([len(one.logits) for one in losses])
    logits = np.concatenate([one.logits.ravel() for one in losses])
    widths = np.repeat([one.logits.shape[1] for one in losses], anchors)  # (rows,)
    starts: Array = np.cumsum(widths) - widths  # of rows among the logits
    firsts: Array = np.cumsum(anchors) - anchors  # of losses among the rows
    row_of = np.repeat(np.arange(len(widths)), widths)  # (logits,)
    targets = np.concatenate([one.targets for one in losses])
    columns = np.minimum(np.maximum(targets, 0), widths - 1)
    kept = targets != np.repeat([one.ignored for one in losses], anchors)

    highest = np.maximum.reduceat(logits, starts)
    row = np.log(np.add.reduceat(np.exp(logits - highest[row_of]), starts)) + highest
    allowed = logits > LOWEST
    if allowed.all():
        counts, level = widths, np.add.reduceat(logits, starts) / widths
    else:
        counts = np.maximum(np.add.reduceat(allowed, starts, dtype=np.intp), 1)
        level = np.add.reduceat(np.where(allowed, logits, 0), starts) / counts
    positive = logits[starts + columns]
    best = np.flatnonzero(logits == highest[row_of])
    best = best[np.minimum(np.searchsorted(best, starts), len(best) - 1)] if len(best) else starts - 1  # all are NaN
    hit = best == starts + columns
    near = np.abs(logits - positive[row_of]) <= (EXACT * np.maximum(np.abs(positive), 1))[row_of]
    same = np.add.reduceat(near, starts, dtype=np.intp) > 1
    of_each = np.stack([counts, row - positive, row - level, hit, same])  # (5, rows)
    number = np.add.reduceat(kept, firsts, dtype=np.intp)  # (losses,)
    share = kept / np.repeat(np.maximum(number, 1), anchors)
    *means, twins = np.add.reduceat(of_each * share, firsts, axis=1)
    for place in np.flatnonzero(np.logical_or.reduceat(same, firsts)).tolist():
        if _is_coarse(losses[place].logits):
            twins[place] = math.nan
    offsets = columns - (np.arange(len(widths)) - np.repeat(firsts, anchors))
    ends = [way.reduceat(of, firsts) for of in (offsets, columns) for way in (np.minimum, np.maximum)]
    table: list[list[float]] = np.stack([number, *means, twins, *ends], axis=1).tolist()
    return table


def _softmax(ignored: int, index: Tensor, logits: Tensor, targets: Tensor) -> Sequence[Tensor]:
    """The same of one loss, on its device: `logits` (anchors, candidates), `targets` (anchors,)."""
    anchors, candidates = logits.shape
    kept = targets != ignored  # (anchors,)
    columns = targets.clip(0, candidates - 1)
    allowed = logits > LOWEST
    highest = logits.amax(1)  # (anchors,)
    row = (logits - highest[:, None]).exp().sum(1).log() + highest
    counts = allowed.sum(1).clip(1)
    level = torch.where(allowed, logits, 0.0).sum(1) / counts
    positive = logits[index[:anchors], columns]
    hit = logits.argmax(1) == columns
    near = (logits - positive[:, None]).abs() <= EXACT * positive.abs().clip(1)[:, None]
    of_each = torch.stack([counts, row - positive, row - level, hit, near.sum(1) > 1])  # (5, anchors)
    number = kept.sum()
    *means, twins = (of_each * (kept / number.clip(1))).sum(1)
    offsets = columns - index[:anchors]
    return (
        *(number, *means, torch.where(_is_coarse(logits), math.nan, twins)),
        *(offsets.min(), offsets.max(), columns.min(), columns.max()),
    )


def _is_coarse(logits: Any) -> Any:
    """Whether numbers are so coarse, (), as in bfloat16, that neighbours are equal by themselves.

    Only then does another candidate that has the positive's very logit not show that it is the positive, again.
    """
    usable = logits[:, 1:] > LOWEST
    equal = (logits[:, 1:] == logits[:, :-1]) & usable
    equal = equal & ~equal.all(0)  # a candidate that is there twice is so for every anchor
    return equal.sum() > COARSE * usable.sum()


def _sigmoid(xp: Any, index: Any, given: Any, targets: Any = None) -> Sequence[Any]:
    """Of ``label * logit``, or of logits with a matrix of targets. The positives are taken to be the diagonal.

    With `xp`, which is torch or numpy; `index` counts from 0 beyond either side of the logits.
    """
    anchors, candidates = given.shape
    positives = index[:anchors, None] == index[:candidates]
    logits = given if targets is not None else xp.where(positives, given, -given)
    off = 0.0 if targets is None else ((targets > 0.5) != positives).any()  # 0: the diagonal it is
    others = xp.where(positives, 0.0, logits).sum(1) / (candidates - 1)  # the mean negative of each row
    signed = xp.where(positives, logits, -logits)
    mean_instead = xp.where(positives, others[:, None], -logits)
    hit = (logits.argmax(1) == index[:anchors]).sum() / anchors
    loss, null = (_softplus(xp, -one).sum() / anchors for one in (signed, mean_instead))
    return (float(anchors), float(candidates), loss, null, hit, math.nan, off, off, 0.0, float(anchors - 1))


def _softplus(xp: Any, values: Any) -> Any:
    return xp.log1p(xp.exp(-xp.abs(values))) + values.clip(0)
