from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest

from fgclip_doctor import Missing, Run
from fgclip_doctor.recorded import LossSite
from fgclip_doctor_checks.ranks.rank_labels_wrong import rank_labels_wrong
from tests.watched_ranks import rank, site, watched

LOST = {"bits": -0.2, "top1": 0.1}
KNOWS_NOTHING = {"loss": np.full(12, 3.1), "top1": np.full(12, 0.1)}


def test_fires_where_one_rank_alone_knows_its_pairs() -> None:
    (finding,) = rank_labels_wrong(watched(rank(0, site()), rank(1, site(**LOST))))
    assert finding.message.startswith("1 of 2 ranks teach wrong pairs")
    assert "2.0 bits on rank 0" in finding.message
    assert "targets from column 0 of 8" in finding.evidence[1].why


def test_all_losses_are_one_finding() -> None:
    sites = [site("loss.py:12"), site("loss.py:12 #2")], [site("loss.py:12", **LOST), site("loss.py:12 #2", **LOST)]
    (finding,) = rank_labels_wrong(watched(rank(0, *sites[0]), rank(1, *sites[1])))
    assert "so it is with 2 losses" in finding.message


def learning(*bits: float, top1: Sequence[float], offset: int = 0, candidates: float = 8) -> LossSite:
    """A loss of 24 anchors a rank of two, with what each call has learnt."""
    known = np.array(bits)
    measured = {"loss": 3.0 - np.log(2) * known, "top1": np.array(top1)}
    return site(anchors=24, candidates=candidates, offset=offset, calls=len(bits), **measured)


LATE = {"bits": (0, 0.1, 0, 0.2, 0.1, 0.1, 0.2, 2.3, 2.5), "top1": (0, 0.04, 0, 0, 0.04, 0, 0.08, 0.3, 0.4)}
NEVER = {"bits": (0, 0.1, 0, 0, -0.1, 0, 0, -0.1, -0.2), "top1": (0, 0, 0.04, 0, 0, 0, 0, 0, 0.04)}


def late(offset: int = 0, candidates: float = 48, **seen: Sequence[float]) -> LossSite:
    return learning(*seen["bits"], top1=seen["top1"], offset=offset, candidates=candidates)


def test_two_calls_since_one_rank_knows_are_enough_where_the_targets_contradict_the_gather() -> None:
    """Its mean over the last half has as wide an error as a rank has that has only just begun to learn."""
    (finding,) = rank_labels_wrong(watched(rank(0, late(**LATE)), rank(1, late(**NEVER))))
    assert "2.4 bits on rank 0" in finding.message


@pytest.mark.parametrize(
    "other",
    [late(**LATE), late(24, **NEVER), late(0, 60, **NEVER)],
    ids=["own columns first", "targets of its own", "not gathered from the ranks alone"],
)
def test_two_calls_are_not_enough_for_others(other: LossSite) -> None:
    assert not list(rank_labels_wrong(watched(rank(0, late(**LATE)), rank(1, other))))


def test_noise_of_few_calls_is_no_fault() -> None:
    """Four differences scatter so little now and then that one in seventy such runs would be named by their spread."""
    rng = np.random.default_rng(0)

    def noisy() -> LossSite:
        learnt = np.repeat([0.0, 0.8], 5)[:, None] + rng.normal(0, 1.5, (10, 4))  # nats, (calls, anchors)
        top1 = rng.random((10, 4)) < 0.25
        return site(anchors=4, calls=10, loss=3 - learnt.mean(1), top1=top1.mean(1))

    for _ in range(400):
        with suppress(Missing):
            assert not list(rank_labels_wrong(watched(rank(0, noisy()), rank(1, noisy()))))


def test_ranks_are_compared_at_the_forwards_that_both_looked_at() -> None:
    """Else one that was looked at while it still knew nothing would seem behind."""
    early = site(calls=12)
    early = replace(early, forwards=early.forwards - 20)
    with pytest.raises(Missing, match="learnt enough"):
        list(rank_labels_wrong(watched(rank(0, site()), rank(1, replace(early, **KNOWS_NOTHING)))))
    assert list(rank_labels_wrong(watched(rank(0, site()), rank(1, replace(site(calls=12), **KNOWS_NOTHING)))))


@pytest.mark.parametrize(
    "other",
    [
        site(offset=4),
        site(bits=1.4, top1=0.6, offset=4),  # harder data on this rank
        site(bits=0.1, top1=0.6),  # low, and yet most positives come first
        site(),  # own columns first on every rank
    ],
)
def test_quiet_where_every_rank_knows_something(other: object) -> None:
    assert not list(rank_labels_wrong(watched(rank(0, site()), rank(1, other))))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (watched(rank(0, site(bits=0.1)), rank(1, site(**LOST))), "learnt enough"),
        (watched(rank(0, site(calls=7)), rank(1, site(calls=7, **LOST))), "learnt enough"),
        (watched(rank(0, site())), "one rank alone"),
        (watched(rank(0, site(targets="constant")), rank(1, site(targets="constant", **LOST))), "of its own"),
    ],
)
def test_skipped_without_evidence(run: Run, reason: str) -> None:
    with pytest.raises(Missing, match=reason):
        list(rank_labels_wrong(run))


def test_flips_at_the_bits_of_the_best_rank() -> None:
    run = watched(rank(0, site(bits=1.0)), rank(1, site(**LOST)))
    assert list(rank_labels_wrong(run, bits=0.9))
    with pytest.raises(Missing):
        list(rank_labels_wrong(run, bits=1.1))
