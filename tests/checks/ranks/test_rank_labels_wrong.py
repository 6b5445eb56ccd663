from __future__ import annotations

import pytest

from fgclip_doctor import Missing, Run
from fgclip_doctor_checks.ranks.rank_labels_wrong import rank_labels_wrong
from tests.watched_ranks import rank, site, watched

LOST = {"bits": -0.2, "top1": 0.1}


def test_fires_where_one_rank_alone_knows_its_pairs() -> None:
    (finding,) = rank_labels_wrong(watched(rank(0, site()), rank(1, site(**LOST))))
    assert finding.message.startswith("1 of 2 ranks teach wrong pairs")
    assert "2.0 bits on rank 0" in finding.message
    assert "targets from column 0 of 8" in finding.evidence[1].why


def test_all_losses_are_one_finding() -> None:
    sites = [site("loss.py:12"), site("loss.py:12 #2")], [site("loss.py:12", **LOST), site("loss.py:12 #2", **LOST)]
    (finding,) = rank_labels_wrong(watched(rank(0, *sites[0]), rank(1, *sites[1])))
    assert "so it is with 2 losses" in finding.message


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
