from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fgclip_doctor import Finding, Missing
from fgclip_doctor_checks.scales.logit_scale_collapsing import logit_scale_collapsing
from tests import runs
from tests.checks.losses.healthy_logs import Floats, learning, run

CHANCE = np.full(300, np.log(32))


def found(scale: Floats, loss: Floats = CHANCE, name: str = "logit_scale", **thresholds: Any) -> list[Finding]:
    return list(logit_scale_collapsing(run(loss, **{name: scale}), **thresholds))


def falling(end: float, start: float = 14.28) -> Floats:
    """The logarithm of a scale that falls to `end`."""
    return np.linspace(np.log(start), np.log(end), 300)


def test_fires_on_a_scale_that_goes_to_one_with_the_loss_at_chance() -> None:
    (finding,) = found(falling(1.05))
    assert "a scale of 1.1" in finding.message
    assert "the loss is at chance" in finding.message


@pytest.mark.parametrize(
    ("name", "values"), [("scale/logit_scale", np.exp(falling(1.5))), ("temperature", np.exp(-falling(1.5)))]
)
def test_knows_raw_scales_and_temperatures(name: str, values: Floats) -> None:
    assert found(values, name=name)


def test_quiet_on_what_settles_or_learns() -> None:
    assert not found(falling(6.0))
    assert not found(falling(60.0, 100.0))
    assert not found(falling(1.05), learning(300))
    assert not found(falling(1.05)[::-1].copy())


def test_fires_on_checkpoints_alone() -> None:
    saved = [runs.checkpoint({"logit_scale": np.array(value)}, step) for step, value in ((100, 2.66), (500, 0.2))]
    made = runs.run(*saved, roles={"scale.global": "logit_scale"})
    (finding,) = logit_scale_collapsing(made)
    assert "no loss was logged" in finding.message
    with pytest.raises(Missing, match="more than once"):
        list(logit_scale_collapsing(runs.run(saved[1], roles={"scale.global": "logit_scale"})))


def test_flips_at_the_thresholds() -> None:
    made = falling(4.0)
    assert found(made, low=4.5)
    assert not found(made, low=4.0)
    assert found(made, fall=3.3)
    assert not found(made, fall=3.6)
    assert found(falling(1.5), CHANCE * 0.91)
    assert not found(falling(1.5), CHANCE * 0.89)


def test_skipped_without_evidence() -> None:
    with pytest.raises(Missing, match="sigmoid"):
        list(logit_scale_collapsing(runs.run(facts={"loss_kind": "sigmoid"})))
    with pytest.raises(Missing, match="no logit scale"):
        list(logit_scale_collapsing(runs.run()))
