from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from fgclip_doctor import Finding, Missing, Run
from fgclip_doctor.run import Plan
from fgclip_doctor_checks.losses.yardstick_moved import yardstick_moved
from tests import features, runs
from tests.features import saved

FACTS = {"micro_batch": 4, "world_size": 1, "dimension": 512, "accumulation": 8, "regions_per_sample": 1.0}
BANK = features.cone(np.random.default_rng(0), 128, 512)


def found(values: ArrayLike, *, steps: ArrayLike | None = None, full: bool = True, **thresholds: Any) -> list[Finding]:
    pointer = 3 if full else 0
    stored = saved(BANK, pointer=pointer, full=full, more={"logit_scale_finegraind": np.array(2.6592)})
    roles = {**features.ROLES, "loss.region": "region_loss"}
    run = runs.run(stored, facts=FACTS, roles=roles, logged=[runs.series("region_loss", values, steps)])
    return list(yardstick_moved(run, **thresholds))


def curve(*levels: tuple[float, int], noise: float = 0.1) -> NDArray[np.float64]:
    """Stretches of a level each, with noise."""
    values = np.concatenate([np.full(count, level) for level, count in levels])
    return values + noise * np.random.default_rng(0).standard_normal(values.size)


def test_fires_where_the_bank_switches_on() -> None:
    (finding,) = found(curve((1.5, 50), (5.05, 150)))
    assert "the bank did switch on" in finding.message
    assert finding.evidence[0].step == 51
    assert finding.evidence[0].expected == pytest.approx(3.55, abs=0.01)


def test_fires_on_a_sparse_log_and_while_the_bank_fills() -> None:
    assert found(curve((1.5, 6), (5.0, 20)), steps=np.arange(10, 270, 10))
    assert found(curve((1.5, 50), (3.3, 1), (4.2, 1), (4.7, 1), (5.05, 100)))


def test_fires_by_the_logged_candidates() -> None:
    values = curve((1.5, 50), (5.05, 150))
    run = runs.run(facts={**FACTS, "scale": 14.24}, roles={"loss.region": "loss_region"})
    run.series["loss_region"] = runs.series("loss_region", values)
    run.series["candidates_region"] = runs.series("candidates_region", [4.2] * 50 + [90] + [132] * 149)
    (finding,) = yardstick_moved(run)
    assert "from 4 to 132" in finding.message
    run.series["candidates_region"] = runs.series("candidates_region", [4.2] * 200)
    with pytest.raises(Missing, match="changed the candidates"):
        list(yardstick_moved(run))
    run.series["candidates_region"] = runs.series("candidates_region", [4, 40] * 100)
    with pytest.raises(Missing, match="never settle"):
        list(yardstick_moved(run))


@pytest.mark.parametrize(
    "values",
    [
        curve((1.5, 200)),
        curve((2.0, 100), (1.3, 100)),
        curve((1.5, 100), (9.0, 100)),  # diverged: far more than the bank explains
        curve((1.5, 100), (2.5, 100)),
        curve((1.5, 100), (5.05, 20), (1.5, 100)),  # a spike that goes back
        curve((3.3, 200), noise=1.5),
        np.tile([1.5, 5.0], 100),
    ],
)
def test_quiet_on_what_the_bank_does_not_explain(values: NDArray[np.float64]) -> None:
    assert not found(values)


@pytest.mark.parametrize(
    ("values", "full", "reason"),
    [
        (curve((1.5, 50), (5.05, 100)), False, "changed the candidates"),  # the bank was never written
        (curve((1.5, 2), (5.05, 3)), True, "too few"),
    ],
)
def test_skipped_without_evidence(values: NDArray[np.float64], full: bool, reason: str) -> None:
    with pytest.raises(Missing, match=reason):
        found(values, full=full)
    with pytest.raises(Missing, match="no loss"):
        list(yardstick_moved(Run("test")))


def test_flips_at_the_threshold() -> None:
    def fires(rise: float) -> bool:
        return bool(found(curve((1.5, 50), (1.5 + rise, 50), noise=1e-6), agreement=0.1))

    assert fires(3.55 * 1.095)
    assert not fires(3.55 * 1.105)
    assert fires(3.55 * 0.905)
    assert not fires(3.55 * 0.895)


def test_fires_by_what_the_log_or_the_plan_says_alone() -> None:
    values = curve((1.5, 50), (4.0, 150))
    run = runs.run(facts={**FACTS, "scale": 14.24}, roles={"loss.region": "loss_region"})
    run.series["loss_region"] = runs.series("loss_region", values)
    run.plan = Plan(bank_on=51)
    (finding,) = yardstick_moved(run)
    assert "nothing got worse" in finding.message
    run.plan = Plan(bank_on=150)
    with pytest.raises(Missing, match="changed the candidates"):
        list(yardstick_moved(run))


def test_fires_on_ten_lines_of_a_log() -> None:
    values = [2.0, 1.7, 1.6, 1.4, 1.5, 5.0, 4.5, 5.5, 4.6, 5.4]
    (finding,) = found(values, steps=np.arange(10, 110, 10))
    assert finding.evidence[0].step == 60
    assert not found([2.0, 1.7, 1.6, 1.4, 1.5, 2.0, 1.5, 2.1, 1.6, 2.0], steps=np.arange(10, 110, 10))
