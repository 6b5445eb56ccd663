from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fgclip_doctor import Missing, Run
from fgclip_doctor.recorded import Gather, Reach
from fgclip_doctor_checks.ranks.gather_without_gradient import gather_without_gradient
from tests import runs
from tests.watched_ranks import rank, site, watched

CUT = Gather("torch.distributed.all_gather", (64,), needs_gradient=True, differentiable=False, calls=20)
WAYS = ("loss.py:12", "loss.py:13")


def run_of(reached: int, *, anchors: bool = True, columns: int = 8, **seen: object) -> Run:
    """Two ranks of four anchors each, with a loss each way."""
    sites = [site(name, reach=Reach(anchors, columns, reached)) for name in WAYS]
    return watched(*(rank(number, *sites, **seen) for number in (0, 1)))  # type: ignore[arg-type]


def test_fires_where_no_candidate_carries_a_gradient() -> None:
    (finding,) = gather_without_gradient(run_of(0))
    assert "halves it" in finding.message
    assert finding.evidence[0].value == 0


def test_says_so_where_the_own_rows_were_put_back() -> None:
    (finding,) = gather_without_gradient(run_of(4, gathers=[CUT]))
    assert "only its own rows" in finding.message
    assert finding.evidence[-1].name == "torch.distributed.all_gather"


def test_fires_on_a_whole_matrix_with_a_part_that_is_constant() -> None:
    sites = [site(name, anchors=8, reach=Reach(True, 8, 4)) for name in WAYS]
    (finding,) = gather_without_gradient(watched(rank(0, *sites), rank(1, *sites)))
    assert "1/2" in finding.message


def test_flips_at_the_candidates_of_all_ranks() -> None:
    assert list(gather_without_gradient(run_of(7)))
    assert not list(gather_without_gradient(run_of(8)))
    assert not list(
        gather_without_gradient(run_of(8, columns=56, gathers=[CUT]))
    )  # with a bank, whose rows are constant


@pytest.mark.parametrize("candidates", [[8.0, 12.0, 16.0, 20.0], [12.0, 20.0, 28.0, 36.0]])
def test_quiet_on_a_bank_that_fills(candidates: list[float]) -> None:
    """Its rows are constants by design: after the first step as many as another rank would have, or more."""
    sites = [site(name, calls=4, candidates=0, reach=Reach(True, 8, 4)) for name in WAYS]
    filling = [replace(one, candidates=np.array(candidates)) for one in sites]
    with pytest.raises(Missing, match="no loss over gathered candidates"):
        list(gather_without_gradient(watched(rank(0, *filling), rank(1, *filling))))


def test_quiet_on_one_locked_tower() -> None:
    """Its features are constants as anchors too."""
    ways = [site(WAYS[0], reach=Reach(False, 8, 8)), site(WAYS[1], reach=Reach(True, 8, 0))]
    assert not list(gather_without_gradient(watched(rank(0, *ways), rank(1, *ways))))


def test_quiet_on_the_keys_of_a_frozen_copy() -> None:
    copies = {"parameters": {"tower_m": runs.parameter("tower_m", trainable=False)}}
    assert not list(gather_without_gradient(run_of(0, **copies)))


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (watched(rank(0, site()), rank(1, site())), "graph"),
        (watched(rank(0, site(candidates=4, reach=Reach(True, 4, 4)))), "graph"),
        (watched(replace(rank(0, site()), world_size=1)), "one rank only"),
        (watched(rank(0)), "no contrastive loss"),
    ],
)
def test_skipped_without_evidence(run: Run, reason: str) -> None:
    with pytest.raises(Missing, match=reason):
        list(gather_without_gradient(run))
