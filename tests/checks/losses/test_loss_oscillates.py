from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fgclip_doctor import Finding, Missing, Run
from fgclip_doctor_checks.losses.loss_oscillates import loss_oscillates
from tests.checks.losses.healthy_logs import Floats, cosine, noisy, run

EPOCH = {"dataset_size": 100 * 32 * 4}  # steps of 32 samples, 4 times


def found(made: Run, **thresholds: Any) -> list[Finding]:
    return list(loss_oscillates(made, **thresholds))


def swings(level: float = 2.0, swing: float = 1.0, *, cycle: float = 73.0, count: int = 600) -> Floats:
    """Regular swings of so much from one extreme to the next."""
    values = level + swing / 2 * np.sin(2 * np.pi * np.arange(count) / cycle)
    return noisy(np.random.default_rng(0), values, 0.02)


def irregular(count: int = 1200) -> Floats:
    """Swings of every length, as of a system that is driven by chance."""
    rng = np.random.default_rng(5)
    phase = np.cumsum(2 * np.pi / rng.uniform(40, 200, count))
    return noisy(rng, 2.0 + 0.6 * np.sin(phase + np.cumsum(0.25 * rng.standard_normal(count))), 0.02)


def growing(factor: float, count: int = 600) -> Floats:
    sizes = 0.1 * np.exp(np.linspace(0, np.log(factor) * 1.5, count))  # between the middles of the outer thirds
    return np.asarray(3.0 + sizes * np.random.default_rng(0).standard_normal(count))


def test_fires_on_swings_that_are_no_epochs() -> None:
    (finding,) = found(run(swings(), facts=EPOCH))
    assert "swings by 0.9" in finding.message
    assert "in about 7" in finding.message  # 73 steps


def test_fires_on_irregular_swings_whatever_an_epoch_is() -> None:
    assert found(run(irregular()))


@pytest.mark.parametrize("steps", [np.arange(10, 12010, 10), np.arange(1, 1201) ** 2 // 10 + np.arange(1, 1201)])
def test_fires_on_sparse_and_irregular_steps(steps: Any) -> None:
    assert found(run(irregular(), steps))


def test_fires_on_noise_that_grows() -> None:
    (finding,) = found(run(growing(6.0), facts={"scale": 10.0}))
    assert "times as noisy" in finding.message


def test_finds_swings_in_a_million_points() -> None:
    assert found(run(irregular(1_000_000)))


@pytest.mark.parametrize(
    "made",
    [
        run(swings(cycle=100.0), facts=EPOCH),  # an epoch
        run(swings(cycle=50.0)),  # may be an epoch
        run(swings(swing=0.3), facts=EPOCH),  # 15 % of the level
        run(swings(), facts=EPOCH, learning_rate=cosine(600, cycles=8, warmup=1)),
        run(np.asarray(5.1 + 0.3 * np.random.default_rng(0).standard_normal(600))),  # sampling noise
        run(growing(6.0)[::-1].copy()),  # calms down
        run(growing(1.3)),
    ],
)
def test_quiet_on_what_only_looks_so(made: Run) -> None:
    assert not found(made)


def test_growing_noise_is_no_fault_under_the_null_noise() -> None:
    assert found(run(growing(6.0), facts={"scale": 10.0}))
    assert not found(run(growing(6.0), facts={"scale": 100.0, "micro_batch": 2, "candidates": 200}))


def test_flips_at_the_thresholds() -> None:
    made = run(swings(), facts=EPOCH)
    turns = 16  # 8.2 cycles, without the first 5 %
    assert not found(made, turns=turns + 2)
    assert found(made, turns=turns - 2)
    assert found(made, share=0.4)
    assert not found(made, share=0.6)
    assert found(made, least=0.8)
    assert not found(made, least=1.2)
    louder = run(growing(6.0), facts={"scale": 10.0})
    assert found(louder, growing=4.0)
    assert not found(louder, growing=9.0)


def test_skipped_without_evidence() -> None:
    with pytest.raises(Missing, match="24 times"):
        found(run(swings(count=40)))
    with pytest.raises(Missing, match="no loss"):
        found(Run("test"))
