from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fgclip_doctor import Finding, Missing, Run
from fgclip_doctor.run import Plan
from fgclip_doctor_checks.losses.loss_diverges import loss_diverges
from tests import runs
from tests.checks.losses.healthy_logs import Floats, learning, noisy, run


def found(made: Run, **thresholds: Any) -> list[Finding]:
    return list(loss_diverges(made, **thresholds))


def thrown_back(to: float, count: int = 600, *, at: float = 0.6) -> Floats:
    """It learns from 3.4 to about 0.65, and is thrown back to `to`, for good."""
    values = learning(count, 3.4, 0.6, rate=8)
    values[int(at * count) :] = to
    return noisy(np.random.default_rng(0), values, 0.05)


def test_fires_on_a_loss_that_is_thrown_back() -> None:
    (finding,) = found(run(thrown_back(3.3)))
    assert "rose from 0.6" in finding.message
    assert "bits are lost" in finding.message
    assert finding.evidence[0].step == pytest.approx(360, abs=30)
    assert "FGD111" in finding.explained_by


@pytest.mark.parametrize("count", [15, 100, 200_000])
def test_fires_whatever_the_length(count: int) -> None:
    assert found(run(thrown_back(3.3, count), np.arange(1, count + 1) * 20))


def test_fires_on_a_slow_rise_and_without_a_yardstick() -> None:
    made = run(noisy(np.random.default_rng(0), np.concatenate([learning(300), np.linspace(0.65, 3.0, 300)]), 0.05))
    assert found(made)
    made.facts.clear()
    assert found(made)


def test_fires_on_far_more_than_the_bank_explains() -> None:
    made = run(thrown_back(9.0), plan=Plan(bank_on=361), facts={"scale": 10.0, "bank_size": 100, "candidates": 132})
    assert found(made)


@pytest.mark.parametrize(
    "made",
    [
        run(thrown_back(1.0)),
        run(noisy(np.random.default_rng(0), learning(600), 0.3)),
        run(np.concatenate([thrown_back(3.3)[:420], learning(180, 3.3, 0.5, rate=8)])),  # it came back
        run(thrown_back(3.3), learning_rate=np.where(np.arange(600) < 358, np.linspace(1e-3, 1e-6, 600), 1e-3)),
        run(thrown_back(3.3), plan=Plan(candidates={360: 4096})),
        run(thrown_back(3.3), plan=Plan(restarts=(360,))),
        run(thrown_back(0.63 * 4), facts={"accumulation": 4}),  # FGD404's
    ],
)
def test_quiet_on_what_comes_back_or_is_explained(made: Run) -> None:
    assert not found(made)


def test_a_bank_of_known_size_explains_its_jump_without_a_word() -> None:
    facts = {"scale": 14.24, "micro_batch": 4, "candidates": 132, "bank_size": 128}
    values = np.where(np.arange(200) < 100, 1.5, 5.05) + 0.05 * np.random.default_rng(0).standard_normal(200)
    assert not found(run(values, facts=facts))
    assert found(run(values, facts={**facts, "bank_size": 4, "candidates": 8}))


@pytest.mark.parametrize(("low", "expected"), [(45, 0), (55, 1)])
def test_a_bank_that_is_on_while_features_move_fast_is_no_merit(low: int, expected: int) -> None:
    """Rows of an encoder that was another one a moment ago are told by their age, and the loss is low for it."""
    values = np.where(np.arange(1, 101) <= low, 1.0, 9.0)
    facts = {"bank_size": 100, "candidates": 132, "bank_warmup": 0}
    made = run(noisy(np.random.default_rng(0), values, 0.05), facts=facts)
    assert len(found(made)) == expected
    del made.facts["bank_warmup"]  # it may have come on with the rise
    assert found(made)


def test_flips_at_the_threshold() -> None:
    made = run(thrown_back(2.5), facts={"accumulation": 1})
    assert found(made, lost=0.6)
    assert not found(made, lost=0.7)


def test_skipped_without_evidence() -> None:
    with pytest.raises(Missing, match="too few"):
        found(run(learning(11)))
    with pytest.raises(Missing, match="no loss"):
        found(runs.run())
