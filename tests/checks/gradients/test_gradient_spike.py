from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fgclip_doctor import Finding, Missing
from fgclip_doctor.run import Plan
from fgclip_doctor_checks.gradients.gradient_spike import gradient_spike
from tests import runs
from tests.checks.losses.healthy_logs import Floats, learning, noisy, run


def norms(level: float = 1.0, *, spikes: dict[int, float] | None = None, count: int = 300) -> Floats:
    values = level * np.exp(0.3 * np.random.default_rng(0).standard_normal(count))
    for index, factor in (spikes or {}).items():
        values[index] = factor * level
    return np.asarray(values)


def found(values: Floats, loss: Floats | None = None, *, plan: Plan | None = None, **thresholds: Any) -> list[Finding]:
    sound = noisy(np.random.default_rng(1), learning(len(values)), 0.05)
    return list(gradient_spike(run(sound if loss is None else loss, plan=plan, grad_norm=values), **thresholds))


OFTEN = dict.fromkeys((60, 110, 111, 170, 250), 30.0)


@pytest.mark.parametrize("level", [1e-4, 1.0, 40.0])
def test_fires_on_spikes_that_come_again(level: float) -> None:
    (finding,) = found(norms(level, spikes=OFTEN))
    assert "one of 5 such spikes" in finding.message


def test_fires_on_one_spike_that_the_loss_paid_for() -> None:
    loss = noisy(np.random.default_rng(1), learning(300), 0.05)
    loss[151:] += 1.0
    (finding,) = found(norms(spikes={150: 50.0}), loss)
    assert "the loss was higher after it" in finding.message
    assert finding.evidence[0].step == 151


@pytest.mark.parametrize(
    "values",
    [
        norms(40.0),
        norms(spikes={150: 80.0}),  # nothing came of it
        np.concatenate([norms(count=150), norms(20.0, count=150)]),  # rises, and stays
        norms(spikes={2: 50.0, 5: 60.0, 9: 70.0, 12: 50.0}),  # while it warms up
        norms() * (1 + 60 * np.exp(-np.arange(300) / 15)),  # falls from a high start
        np.exp(np.random.default_rng(0).standard_normal(3000)),  # wide, with no spikes of its own
    ],
)
def test_quiet_on_what_is_steady_or_bounded(values: Floats) -> None:
    assert not found(values)


def test_hundreds_of_spikes_in_a_long_log_are_one_finding() -> None:
    (finding,) = found(norms(spikes=dict.fromkeys(range(80, 20_000, 80), 80.0), count=20_000))
    assert "one of 249 such spikes" in finding.message


def test_a_planned_restart_explains_its_spike() -> None:
    loss = noisy(np.random.default_rng(1), learning(300), 0.05)
    loss[151:] += 1.0
    assert not found(norms(spikes={150: 50.0}), loss, plan=Plan(restarts=(151,)))


def test_flips_at_the_thresholds() -> None:
    assert found(norms(spikes=OFTEN), often=5)
    assert not found(norms(spikes=OFTEN), often=6)
    assert found(norms(spikes=OFTEN), factor=25.0)
    assert not found(norms(spikes=OFTEN), factor=40.0)


def test_skipped_without_evidence() -> None:
    with pytest.raises(Missing, match="30 times"):
        found(norms(count=45))
    with pytest.raises(Missing):
        list(gradient_spike(runs.run()))
