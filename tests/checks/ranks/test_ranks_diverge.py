from __future__ import annotations

from dataclasses import replace

import pytest

from fgclip_doctor import Missing, Run
from fgclip_doctor_checks.ranks.ranks_diverge import ranks_diverge
from tests import runs
from tests.watched_ranks import rank, watched


def hashes(*steps: str) -> dict[str, dict[int, str]]:
    return {"parameters": dict(enumerate(steps, start=1))}


def run_of(one: str, other: str) -> Run:
    return watched(rank(0, digests=hashes(*one)), rank(1, digests=hashes(*other)))


def test_fires_where_the_ranks_part() -> None:
    (finding,) = ranks_diverge(run_of("abcdef", "abxyzw"))
    assert "since step 3" in finding.message
    assert "50%" in finding.message
    assert finding.evidence[0].value == 4


def test_fires_where_they_never_agreed() -> None:
    (finding,) = ranks_diverge(run_of("abcd", "wxyz"))
    assert "from the start" in finding.message


@pytest.mark.parametrize("other", ["abcdef", "aXcXeX", "aXXXXf"])  # averaged every so many steps
def test_quiet_where_they_agree_again(other: str) -> None:
    assert not list(ranks_diverge(run_of("abcdef", other)))


def test_flips_at_the_number_of_steps() -> None:
    assert not list(ranks_diverge(run_of("abcd", "abxy")))
    assert list(ranks_diverge(run_of("abcde", "abxyz")))
    assert list(ranks_diverge(run_of("abcd", "abxy"), steps=2))


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (runs.run(), "not recorded"),
        (watched(replace(rank(0), world_size=1)), "one rank only"),
        (watched(rank(0)), "one rank alone"),
        (watched(rank(0), rank(1, parameters={"other": runs.parameter("other")})), "different parts"),
        (watched(rank(0, digests={}), rank(1, digests={})), "only a part"),
    ],
)
def test_skipped_without_evidence(run: Run, reason: str) -> None:
    with pytest.raises(Missing, match=reason):
        list(ranks_diverge(run))
