"""FGD803: positives that are another rank's columns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check, theory
from fgclip_doctor.ranks import Matrix, compared, matrices
from fgclip_doctor_checks.causes import explaining

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SPREAD_FROM = 8  # calls: their spread is an error bar; of fewer, the hits alone are counted


@check("FGD803", "rank-labels-wrong", Severity.ERROR)
def rank_labels_wrong(
    run: Run, *, calls: int = 8, bits: float = 0.5, errors: float = 5.0, expected: float = 3.5
) -> Iterator[Finding]:
    """Some ranks are at chance where others know their pairs, so their targets point at columns of another rank.

    Why: Candidates are gathered in the order of the ranks, so rank r finds its own pairs from column r times the local
        batch on. A target that isn't moved there is right on the first rank and teaches wrong pairs on all the others.
    Evidence: A recording of two ranks or more. Learnt bits of each loss on each rank (the level of its own logits less
        the loss) and its top-1, at the same calls: of the last half of at least `calls` sampled ones, those since one
        rank had learnt `bits`. Another has learnt nothing and lies `errors` standard errors under it, by the
        differences from call to call or by its hits, with a top-1 no better than luck. `expected` are enough where
        the targets contradict the gather by themselves: as many candidates as all ranks have anchors, targets in the
        same columns on each rank, and all ranks but one are lost.
    Benign: Own columns first on every rank, or interleaved ranks with targets to match: then all ranks know their
        pairs. A run that knows nothing yet on any rank says nothing of its targets.
    Fix: Add rank times the local batch to the targets, and the rows of the ranks before where local batches differ;
        add nothing where nothing was gathered. The mean over ranks, which trainers log, hides this: log one per rank.
    Sources: lightly-ai/lightly#1177 (an offset without a gather); UKPLab/sentence-transformers#3453; Radford et al.
        2021, figure 3 (labels are the numbers of the rows).
    """
    compared(run)
    judged = 0
    found: list[tuple[Matrix, dict[int, _Reading], list[int]]] = []
    for matrix in matrices(run):
        read = _read(matrix, calls, bits * theory.LN2)
        if len(read) < 2:
            continue
        judged += 1
        top = max(read.values(), key=lambda one: one.mean)
        lost = [rank for rank, one in read.items() if one.at_chance(beside=top, errors=errors)]
        if not lost and matrix.contradicted:
            lost = [rank for rank, one in read.items() if one.at_chance(beside=top, errors=expected)]
            lost = lost if len(lost) == len(read) - 1 else []
        if lost:
            found.append((matrix, read, lost))
    if not judged:
        raise Missing("no rank has learnt enough yet to tell it from one with wrong targets")
    if found:
        yield _finding(run, *found[0], len(found))


@dataclass(frozen=True)
class _Reading:
    """Of a loss on one rank, at the calls that are compared."""

    learnt: NDArray[np.float64]  # nats, by call
    top1: float
    anchors: float  # in all calls
    candidates: float

    @property
    def mean(self) -> float:
        return float(self.learnt.mean())

    @property
    def error(self) -> float:
        return _error(self.learnt)

    @property
    def luck(self) -> float:
        """The top-1 that luck may give."""
        chance = theory.chance_top1(self.candidates)
        return chance + 3 * sqrt(chance * (1 - chance) / self.anchors)

    def at_chance(self, *, beside: _Reading, errors: float) -> bool:
        unlearnt = self.mean <= max(3 * self.error, 0.1 * beside.mean) and self.top1 <= self.luck
        return unlearnt and max(self._behind(beside), self._misses(beside)) > errors

    def _behind(self, other: _Reading) -> float:
        """Standard errors by which this rank has learnt less than the other, call by call."""
        apart = other.learnt - self.learnt
        return float(apart.mean()) / _error(apart) if len(apart) >= SPREAD_FROM else 0.0

    def _misses(self, other: _Reading) -> float:
        """Standard errors by which fewer of its positives come first, if they did as often on both ranks."""
        both = self.anchors + other.anchors
        share = (self.anchors * self.top1 + other.anchors * other.top1) / both
        spread = sqrt(share * (1 - share) * both / (self.anchors * other.anchors))
        return (other.top1 - self.top1) / spread if spread else 0.0

    @property
    def bits(self) -> float:
        return theory.learnt_bits(-self.mean, null_level=0.0, candidates=self.candidates)


def _error(values: NDArray[np.float64]) -> float:
    return max(float(values.std(ddof=1)), 1e-9) / sqrt(len(values))


def _read(matrix: Matrix, calls: int, nats: float) -> dict[int, _Reading]:
    """The ranks at the calls that all of them made, since one has learnt so many nats; none if none has."""
    import numpy as np

    common = matrix.calls
    last = {rank: places[len(places) // 2 :] for rank, places in common.items() if len(places) >= max(calls, 2)}
    learnt = {rank: (matrix.sites[rank].null - matrix.sites[rank].loss)[places] for rank, places in last.items()}
    best = max(learnt.values(), key=lambda one: float(one.mean()), default=np.zeros(2))
    since = int(np.argmax(best >= nats))
    if len(best) - since < 2 or float(best[since:].mean()) < nats:
        return {}
    read = {}
    for rank, places in last.items():
        site, kept = matrix.sites[rank], places[since:]
        anchors = site.anchors[kept]
        top1 = float(np.average(site.top1[kept], weights=anchors))
        read[rank] = _Reading(learnt[rank][since:], top1, float(anchors.sum()), float(site.candidates[kept].mean()))
    return read


def _finding(run: Run, matrix: Matrix, read: dict[int, _Reading], lost: list[int], losses: int) -> Finding:
    best, worst = max(read, key=lambda rank: read[rank].mean), lost[0]
    paths = {rank.rank: rank.path for rank in run.watched.ranks}
    return Finding(
        message=f"{len(lost)} of {len(read)} ranks teach wrong pairs: the loss at {matrix.name} has learnt "
        f"{read[best].bits:.1f} bits on rank {best}, and on rank {worst} positives are found no better than by luck"
        + (f"; so it is with {losses} losses." if losses > 1 else "."),
        where=matrix.name,
        evidence=tuple(
            Evidence(
                name=f"rank {rank}: learnt bits",
                value=round(one.bits, 3),
                expected=round(read[best].bits, 3),
                why=f"+- {one.error / theory.LN2:.2g}; top-1 {one.top1:.3f} where luck gives up to {one.luck:.3f}; "
                f"targets from column {matrix.sites[rank].offset} of {one.candidates:.4g}",
                source=paths[rank],
            )
            for rank, one in sorted(read.items())
        ),
        explained_by=explaining("FGD803"),
    )
