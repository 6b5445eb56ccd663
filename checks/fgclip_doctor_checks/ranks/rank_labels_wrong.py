"""FGD803: positives that are another rank's columns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import hypot, sqrt

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check, theory
from fgclip_doctor.ranks import Matrix, compared, matrices
from fgclip_doctor.recorded import LossSite
from fgclip_doctor_checks.causes import explaining


@check("FGD803", "rank-labels-wrong", Severity.ERROR)
def rank_labels_wrong(run: Run, *, calls: int = 8, bits: float = 0.5, errors: float = 5.0) -> Iterator[Finding]:
    """Some ranks are at chance where others know their pairs, so their targets point at columns of another rank.

    Why: Candidates are gathered in the order of the ranks, so rank r finds its own pairs from column r times the local
        batch on. A target that isn't moved there is right on the first rank and teaches wrong pairs on all the others.
    Evidence: A recording of two ranks or more. Learnt bits of each loss on each rank (the level of its own logits less
        the loss) and its top-1, over the last half of at least `calls` sampled calls: one rank has learnt `bits` or
        more; another nothing, `errors` standard errors under it, with a top-1 no better than luck. Where the targets
        stand is told beside it.
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
        read = {rank: one for rank, site in matrix.sites.items() if (one := _read(site, calls)) is not None}
        top = max(read.values(), key=lambda one: one.learnt, default=None)
        if top is None or len(read) < 2 or top.learnt < bits * theory.LN2:
            continue
        judged += 1
        lost = [rank for rank, one in read.items() if one.at_chance(beside=top, errors=errors)]
        if lost:
            found.append((matrix, read, lost))
    if not judged:
        raise Missing("no rank has learnt enough yet to tell it from one with wrong targets")
    if found:
        yield _finding(run, *found[0], len(found))


@dataclass(frozen=True)
class _Reading:
    """Of a loss on one rank, over the last half of its calls."""

    learnt: float  # nats
    error: float
    top1: float
    luck: float  # the top-1 that luck may give
    candidates: float

    def at_chance(self, *, beside: _Reading, errors: float) -> bool:
        behind = beside.learnt - self.learnt > errors * hypot(self.error, beside.error)
        return behind and self.learnt <= max(3 * self.error, 0.1 * beside.learnt) and self.top1 <= self.luck

    @property
    def bits(self) -> float:
        return theory.learnt_bits(-self.learnt, null_level=0.0, candidates=self.candidates)


def _read(site: LossSite, calls: int) -> _Reading | None:
    if len(site.loss) < calls:
        return None
    last = slice(len(site.loss) // 2, None)
    learnt, candidates = (site.null - site.loss)[last], float(site.candidates[last].mean())
    error = max(float(learnt.std(ddof=1)), 1e-9) / sqrt(len(learnt))
    chance = theory.chance_top1(candidates)
    luck = chance + 3 * sqrt(chance * (1 - chance) / float(site.anchors[last].sum()))
    return _Reading(float(learnt.mean()), error, float(site.top1[last].mean()), luck, candidates)


def _finding(run: Run, matrix: Matrix, read: dict[int, _Reading], lost: list[int], losses: int) -> Finding:
    best, worst = max(read, key=lambda rank: read[rank].learnt), lost[0]
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
