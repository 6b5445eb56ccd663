from __future__ import annotations

from dataclasses import replace

import pytest

from fgclip_doctor import Missing, Run
from fgclip_doctor_checks.ranks.ranks_see_same_batch import ranks_see_same_batch
from tests import runs
from tests.watched_ranks import SAME, rank, watched


def run_of(one: str, other: str) -> Run:
    """Ranks that were given the batches of these letters."""
    return watched(*(rank(r, digests=hashes(given)) for r, given in enumerate((one, other))))


def hashes(given: str) -> dict[str, dict[int, str]]:
    return {"parameters": SAME, "inputs": dict(enumerate(given, start=1))}


def test_fires_where_all_ranks_are_given_the_same() -> None:
    (finding,) = ranks_see_same_batch(run_of("abcd", "abcd"))
    assert "at each of 4 steps" in finding.message
    assert "50%" in finding.message


@pytest.mark.parametrize("other", ["wxyz", "xbcd", "abcx", "bcda"])
def test_quiet_where_a_batch_differs(other: str) -> None:
    assert not list(ranks_see_same_batch(run_of("abcd", other)))


def test_flips_at_the_number_of_steps() -> None:
    assert list(ranks_see_same_batch(run_of("abc", "abc")))
    with pytest.raises(Missing, match="too few"):
        list(ranks_see_same_batch(run_of("ab", "ab")))
    assert list(ranks_see_same_batch(run_of("ab", "ab"), steps=2))


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (runs.run(), "not recorded"),
        (watched(replace(rank(0), world_size=1)), "one rank only"),
        (watched(rank(0)), "one rank alone"),
        (run_of("aaaa", "aaaa"), "same batch at every step"),
        (watched(*(rank(r, digests={"inputs": dict(enumerate("abcd"))}) for r in (0, 1))), "a part of the parameters"),
        (watched(rank(0), rank(1)), "too few"),
    ],
)
def test_skipped_without_evidence(run: Run, reason: str) -> None:
    with pytest.raises(Missing, match=reason):
        list(ranks_see_same_batch(run))
