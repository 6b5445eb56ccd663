from __future__ import annotations

from dataclasses import replace
from math import log
from typing import Any

import numpy as np
import pytest

from fgclip_doctor import Missing, Run
from fgclip_doctor_checks.scales.logit_scale_above_cap import logit_scale_above_cap
from tests.runs import adam, checkpoint, run, series

CAP = log(100)


def scaled(value: float, dtype: str = "float32", name: str = "logit_scale", **facts: Any) -> Run:
    return run(checkpoint({name: np.array(value)}, dtype=dtype), roles={"scale.region": name}, facts=facts)


def test_over_the_cap() -> None:
    [finding] = logit_scale_above_cap(scaled(4.8))
    assert finding.where == "logit_scale"
    assert "121.5" in finding.message


@pytest.mark.parametrize(
    ("value", "dtype"), [(2.6592, "float32"), (CAP, "float32"), (CAP, "float16"), (CAP, "bfloat16"), (CAP, "float64")]
)
def test_up_to_the_cap_is_quiet(value: float, dtype: str) -> None:
    assert not list(logit_scale_above_cap(scaled(value, dtype)))


@pytest.mark.parametrize(("over", "expected"), [(0.9e-3, 0), (1.1e-3, 1)])
def test_flips_at_its_tolerance(over: float, expected: int) -> None:
    assert len(list(logit_scale_above_cap(scaled(CAP + over)))) == expected


def test_the_next_value_of_bfloat16_is_over_the_cap() -> None:
    assert list(logit_scale_above_cap(scaled(4.625, "bfloat16")))


def test_one_step_after_a_clamp_is_quiet() -> None:
    weights = checkpoint({"logit_scale": np.array(CAP + 0.01)}).tensors
    trained = run(checkpoint(weights, optimizer=adam(weights, lr=0.01)), roles={"scale.global": "logit_scale"})
    assert not list(logit_scale_above_cap(trained))


@pytest.mark.parametrize(("value", "name"), [(100.0, "logit_scale"), (14.3, "logit_scale"), (5.0, "temperature")])
def test_raw_scales_and_temperatures_are_not_judged(value: float, name: str) -> None:
    assert not list(logit_scale_above_cap(scaled(value, name=name)))


def test_skipped_for_the_sigmoid_loss_and_without_scales() -> None:
    with pytest.raises(Missing, match="sigmoid"):
        list(logit_scale_above_cap(scaled(4.8, loss_kind="sigmoid")))
    with pytest.raises(Missing, match="no logit scale"):
        list(logit_scale_above_cap(run(checkpoint({"x": np.ones(3)}))))


@pytest.mark.parametrize(
    ("name", "last", "findings"),
    [
        ("logit_scale", 5.0, 1),
        ("logit_scale", CAP + 0.0013, 0),
        ("logit_scale", CAP + 0.0020, 1),
        ("logit_scale", CAP, 0),
        ("train/logit_scale", 100.0, 0),
        ("train/logit_scale", 150.0, 1),
        ("temperature", 0.01, 0),
        ("temperature", 0.005, 1),
    ],
)
def test_a_log_is_read_without_weights(name: str, last: float, findings: int) -> None:
    log_alone = run(logged=[series(name, [last, last]), series("learning_rate", [1e-4, 1e-4])])
    assert len(list(logit_scale_above_cap(log_alone))) == findings


def test_a_rounded_log_at_the_cap_is_quiet() -> None:
    rounded = replace(series("temperature", [0.0098, 0.0098]), resolution=1e-4)
    assert not list(logit_scale_above_cap(run(logged=[rounded])))
