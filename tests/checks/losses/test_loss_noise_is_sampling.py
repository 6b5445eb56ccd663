from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fgclip_doctor import Finding, Missing, Run
from fgclip_doctor_checks.losses.loss_noise_is_sampling import loss_noise_is_sampling
from tests.checks.losses.healthy_logs import Floats, run

SMALL = {"micro_batch": 4, "candidates": 132, "scale": 14.24, "accumulation": 1}  # null noise 0.30


def found(made: Run, **thresholds: Any) -> list[Finding]:
    return list(loss_noise_is_sampling(made, **thresholds))


def around(spread: float, count: int = 200) -> Floats:
    return np.asarray(5.1 + spread * np.random.default_rng(0).standard_normal(count))


def test_fires_on_the_noise_of_four_anchors() -> None:
    (finding,) = found(run(around(0.3), facts=SMALL))
    assert "sampling noise" in finding.message
    assert finding.evidence[0].value == pytest.approx(0.3, abs=0.04)


def test_fires_on_a_handful_of_values() -> None:
    assert found(run(np.array([5.1, 5.0, 4.5, 5.5, 4.6, 5.4]), np.arange(60, 120, 10), facts=SMALL))


def test_fires_on_means_over_the_accumulation() -> None:
    assert found(run(around(0.3 / 8**0.5), facts={**SMALL, "accumulation": 8}), least=0.2)


@pytest.mark.parametrize("spread", [0.9, 0.02])
def test_quiet_on_another_noise(spread: float) -> None:
    assert not found(run(around(spread), facts=SMALL), least=0.0)


def test_quiet_on_swings_and_on_what_falls() -> None:
    swings = 5.1 + 0.4 * np.sin(np.arange(200) / 8)
    assert not found(run(swings, facts=SMALL))
    assert not found(run(around(0.3) - np.linspace(0, 2, 200), facts=SMALL))


def test_flips_at_the_threshold() -> None:
    made = run(around(0.3), facts=SMALL)
    (finding,) = found(made)
    width = 4 * float(str(finding.evidence[0].value))
    assert found(made, least=0.99 * width)
    assert not found(made, least=1.01 * width)


def test_skipped_without_a_yardstick() -> None:
    made = run(around(0.3), facts=SMALL)
    del made.facts["scale"]
    with pytest.raises(Missing, match="known candidates and scale"):
        found(made)
