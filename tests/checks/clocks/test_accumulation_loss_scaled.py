from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fgclip_doctor import Finding, Missing
from fgclip_doctor.run import Plan
from fgclip_doctor_checks.clocks.accumulation_loss_scaled import accumulation_loss_scaled
from tests import runs
from tests.checks.losses.healthy_logs import Floats, learning, noisy, run

RNG = np.random.default_rng(0)
ONE, TWO = noisy(RNG, learning(200)), noisy(RNG, learning(200, 3.0, 1.0))
ROLES = {"loss.total": "loss", "loss.global": "loss_global", "loss.region": "loss_region"}


def of_terms(factor: float, accumulation: float = 4) -> list[Finding]:
    logged = [
        runs.series("loss", factor * (ONE + 0.1 * TWO)),
        runs.series("loss_global", ONE),
        runs.series("loss_region", TWO),
    ]
    return list(accumulation_loss_scaled(runs.run(facts={"accumulation": accumulation}, roles=ROLES, logged=logged)))


@pytest.mark.parametrize(("factor", "what"), [(4, "not divided"), (0.25, "divided by it twice")])
def test_fires_where_a_term_counts_as_often_as_is_accumulated(factor: float, what: str) -> None:
    (finding,) = of_terms(factor)
    assert what in finding.message


@pytest.mark.parametrize(("factor", "fires"), [(4 * 1.004, True), (4 * 1.006, False), (1, False), (2, False)])
def test_flips_at_the_tolerance(factor: float, fires: bool) -> None:
    assert bool(of_terms(factor)) is fires


@pytest.mark.parametrize(("terms", "fires"), [(4, False), (2, True)])
def test_a_mean_of_as_many_terms_as_are_accumulated_is_meant(terms: int, fires: bool) -> None:
    parts = [noisy(RNG, learning(200, 3.0 + n, 1.0)) for n in range(terms)]
    logged = [runs.series("loss", sum(parts) / 4), *(runs.series(f"loss_{n}", one) for n, one in enumerate(parts))]
    found = list(accumulation_loss_scaled(runs.run(facts={"accumulation": 4}, roles=ROLES, logged=logged)))
    assert bool(found) is fires


def alone(values: Floats, **facts: Any) -> list[Finding]:
    stated = {"accumulation": 8, "scale": 14.24, "candidates": 32, "micro_batch": 32, **facts}
    return list(accumulation_loss_scaled(run(values, facts=stated)))


def test_fires_on_a_first_loss_of_eight_times_chance() -> None:
    (finding,) = alone(8 * noisy(RNG, learning(200, 3.5), 0.03))
    assert "8 times" in finding.message
    assert not alone(noisy(RNG, learning(200, 3.5), 0.03))


@pytest.mark.parametrize(("level", "fires"), [(0.87, True), (0.83, False), (1.14, True), (1.3, False)])
def test_flips_at_the_levels_of_features_that_know_nothing(level: float, fires: bool) -> None:
    """Chance is 3.466 and the null level 3.66 at this scale."""
    first = 8 * level * (3.466 if level < 1 else 3.66)
    assert bool(alone(np.full(50, first))) is fires


def test_shuffled_captions_at_a_high_scale_are_no_such_factor() -> None:
    assert not alone(noisy(RNG, learning(200, 14.0, 9.0), 0.03), scale=100.0)


def jumping(factor: float, at: int = 100) -> Floats:
    values = noisy(np.random.default_rng(1), learning(200, 1.2, 0.6), 0.02)
    values[at:] *= factor
    return values


def test_fires_on_a_jump_by_the_accumulation() -> None:
    (finding,) = alone(jumping(8))
    assert "at step 101" in finding.message
    assert alone(jumping(1 / 8))
    assert not alone(jumping(5))


def test_the_gradient_norm_has_to_follow() -> None:
    norms = np.where(np.arange(200) < 100, 1.0, 8.0) * np.exp(0.05 * RNG.standard_normal(200))
    facts = {"accumulation": 8, "scale": 14.24}
    assert list(accumulation_loss_scaled(run(jumping(8), facts=facts, grad_norm=norms)))
    assert not list(accumulation_loss_scaled(run(jumping(8), facts=facts, grad_norm=np.ones(200) + 0.1 * norms / 8)))


def test_a_planned_bank_explains_a_jump() -> None:
    assert not list(accumulation_loss_scaled(run(jumping(8), facts={"accumulation": 8}, plan=Plan(bank_on=101))))


def test_skipped_without_evidence() -> None:
    with pytest.raises(Missing, match="nothing is accumulated"):
        of_terms(1, 1)
    with pytest.raises(Missing, match="accumulation is not known"):
        list(accumulation_loss_scaled(runs.run()))
    with pytest.raises(Missing):
        list(accumulation_loss_scaled(runs.run(facts={"accumulation": 2})))
