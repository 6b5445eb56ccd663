from __future__ import annotations

from math import log

import numpy as np
import pytest

from fgclip_doctor import Missing, Run
from fgclip_doctor.recorded import Gather
from fgclip_doctor.run import Plan
from fgclip_doctor_checks.ranks.negatives_local import negatives_local
from tests import runs
from tests.watched_ranks import rank, site, watched

TWO = {"world_size": 2, "micro_batch": 64}
LOCAL = site(candidates=4)
GATHER = Gather("torch.distributed.all_gather", (64,), needs_gradient=False, differentiable=False, calls=9)


def logged(values: object, name: str = "loss_global", **facts: object) -> Run:
    series = runs.series(name, values)  # type: ignore[arg-type]
    return runs.run(facts={**TWO, **facts}, roles={"loss.global": "loss_global"}, logged=[series])


def flat(level: float, spread: float = 0.005) -> object:
    return level + spread * np.random.default_rng(0).standard_normal(20)


def test_fires_on_recorded_losses_of_one_rank() -> None:
    (finding,) = negatives_local(watched(rank(0, LOCAL), rank(1, LOCAL)))
    assert "contrasts 4 candidates on each of 2 ranks, not 8" in finding.message


def test_fires_on_logged_candidates_and_flips_at_them() -> None:
    run = logged(np.full(20, 64.0), "candidates_global")
    assert "not 128" in next(negatives_local(run)).message
    assert list(negatives_local(logged(np.full(20, 76.0), "candidates_global")))
    assert not list(negatives_local(logged(np.full(20, 78.0), "candidates_global")))


def test_fires_on_a_start_at_the_local_chance_level() -> None:
    assert list(negatives_local(logged(flat(log(64)))))
    assert not list(negatives_local(logged(flat(log(128)))))
    assert not list(negatives_local(logged(flat(log(64) + 0.04))))


def test_quiet_where_the_global_loss_is_gathered() -> None:
    """FG-CLIP's region and hard-negative losses are local by design."""
    sites = (site("global", candidates=8), site("region", candidates=4))
    assert not list(negatives_local(watched(rank(0, *sites), rank(1, *sites))))


def test_quiet_where_each_rank_computes_the_whole_matrix() -> None:
    whole = site(anchors=8, candidates=8)
    run = watched(rank(0, whole, gathers=[GATHER]), rank(1, whole, gathers=[GATHER]), micro_batch=4)
    assert not list(negatives_local(run))


def test_quiet_where_it_is_planned() -> None:
    run = logged(np.full(20, 64.0), "candidates_global")
    run.plan = Plan(candidates={0: 64})
    with pytest.raises(Missing, match="plan"):
        list(negatives_local(run))


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (runs.run(), "one rank"),
        (logged(flat(log(64), 0.1)), "doesn't start at chance"),
        (logged([4.16] * 4), "start of the global loss"),
        (runs.run(facts=TWO), "no total loss"),
        (watched(rank(0, LOCAL, digests={}), rank(1, LOCAL, digests={})), "parts of one model"),
        (watched(rank(0, LOCAL, gathers=[GATHER]), rank(1, LOCAL)), "micro_batch"),
        (watched(rank(0, site(kind="sigmoid", candidates=4)), rank(1)), "no contrastive loss"),
    ],
)
def test_skipped_without_evidence(run: Run, reason: str) -> None:
    with pytest.raises(Missing, match=reason):
        list(negatives_local(run))
