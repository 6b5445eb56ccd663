"""What the ranks of a watched run tell of each other: the same loss on each, and what their hashes agree on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fgclip_doctor.recorded import LossSite, Rank, Recording
from fgclip_doctor.run import Missing, Run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Matrix:
    """One contrastive loss whose positives are among the batch, as each rank computes it."""

    name: str
    sites: Mapping[int, LossSite]  # by rank
    world_size: int

    @property
    def anchors(self) -> float:
        """On one rank, in a forward."""
        from statistics import median  # imports decimal and random, which every command would wait for

        return float(median(float(median(site.anchors)) for site in self.sites.values()))

    @property
    def candidates(self) -> float:
        """The least that a forward had: a bank may have joined them later."""
        return float(min(site.candidates.min() for site in self.sites.values()))

    @property
    def calls(self) -> dict[int, NDArray[np.intp]]:
        """The entries of each rank's site at the forwards at which all ranks called it, in order, by rank."""
        from functools import reduce

        import numpy as np

        forwards = [site.forwards for site in self.sites.values()]
        if all(np.array_equal(one, forwards[0]) for one in forwards):
            return {rank: np.arange(len(forwards[0])) for rank in self.sites}
        found = {rank: np.unique(site.forwards, return_index=True) for rank, site in self.sites.items()}
        common = reduce(np.intersect1d, forwards)
        return {rank: first[np.searchsorted(made, common)] for rank, (made, first) in found.items()}

    @property
    def contradicted(self) -> bool:
        """Whether the positives of all ranks would be the same columns of what looks gathered from all ranks.

        Right only where each rank puts its own rows first, and then they all learn alike.
        """
        gathered = all((abs(one.candidates - self.world_size * one.anchors) < 0.5).all() for one in self.sites.values())
        return gathered and len({one.offset for one in self.sites.values()}) == 1

    @property
    def gathered(self) -> bool:
        """Whether there are more candidates than one rank has anchors, and always were."""
        return all((site.candidates > 1.2 * site.anchors).all() for site in self.sites.values())


def several(run: Run) -> Recording:
    """The recording of a run on several ranks."""
    recording = run.watched
    if recording.first.world_size < 2:
        raise Missing("the run has one rank only")
    return recording


def compared(run: Run) -> tuple[Rank, ...]:
    """The ranks of a recording that holds more than one, of one and the same model."""
    recording = several(run)
    shapes = [{name: one.shape for name, one in rank.parameters.items()} for rank in recording.ranks]
    if len(shapes) < 2:
        raise Missing("one rank alone was recorded")
    if any(one != shapes[0] for one in shapes):
        raise Missing("the ranks hold different parts of the model")
    return recording.ranks


def matrices(run: Run) -> list[Matrix]:
    """The softmax losses in which each anchor has a positive of its own in the batch, in order of their place."""
    recording = several(run)
    names = dict.fromkeys(site.name for rank in recording.ranks for site in rank.sites)
    found = []
    for name in names:
        sites = {rank.rank: site for rank in recording.ranks for site in rank.sites if site.name == name}
        if all(one.kind == "softmax" and one.targets in ("diagonal", "shifted") for one in sites.values()):
            found.append(Matrix(name, sites, recording.first.world_size))
    if not found:
        raise Missing("no contrastive loss was seen in which each anchor has a positive of its own")
    return found


def agreement(ranks: tuple[Rank, ...], what: str) -> Iterator[tuple[int, bool]]:
    """At each step at which every rank has a hash of `what`: whether they are all the same."""
    known = [rank.digests.get(what, {}) for rank in ranks]
    for step in sorted(set.intersection(*map(set, known))):
        yield step, len({one[step] for one in known}) == 1
