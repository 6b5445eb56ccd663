from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fgclip_doctor import Missing, Run
from fgclip_doctor.run import Plan
from fgclip_doctor_checks.gradients.learning_rate_group_wrong import learning_rate_group_wrong
from tests.runs import checkpoint, group, optimizer, run, series, state

TEXT = [f"text_model.encoder.layers.{block}.mlp.fc1.weight" for block in range(2)]
IMAGE = [name.replace("text", "vision") for name in TEXT]
ROLES = {"head.text": "text_projection.weight", "head.image": "visual_projection.weight", "scale.global": "logit_scale"}
NAMES = [*IMAGE, *TEXT, *ROLES.values()]


def trained(rates: Mapping[str, float], *, scheduled: bool = True, plan: Plan | None = None, **facts: Any) -> Run:
    """Parameters in groups by their rates: `rates` by prefix of the name, else 1e-4."""
    of = {name: next((rate for part, rate in rates.items() if name.startswith(part)), 1e-4) for name in NAMES}
    groups = []
    for place, rate in enumerate(sorted(set(of.values()))):
        peak = {"initial_lr": rate} if scheduled else {}
        groups.append(group(place, [NAMES.index(name) for name in NAMES if of[name] == rate], lr=rate, **peak))
    held = optimizer(groups, [state(index) for index in range(len(NAMES))], dict(enumerate(NAMES)))
    weights = {name: np.array(4.6) if name == "logit_scale" else np.ones((8, 4)) for name in NAMES}
    made = run(checkpoint(weights, optimizer=held), facts={"learning_rate": 1e-4, **facts}, roles=ROLES)
    made.plan = plan or Plan()
    return made


@pytest.mark.parametrize("name", ["text_projection.weight", "logit_scale"])
def test_a_part_at_zero_is_named(name: str) -> None:
    [finding] = learning_rate_group_wrong(trained({name: 0.0}))
    assert (finding.where, finding.evidence[0].expected) == (name, 1e-4)


def test_everything_at_zero() -> None:
    [finding] = learning_rate_group_wrong(trained({"": 0.0}))
    assert "nothing is trained" in finding.message


@pytest.mark.parametrize(
    "quiet",
    [
        trained({}),
        trained({"vision_model": 0.0}),
        trained({"": 0.0}, scheduled=False),
        trained({"logit_scale": 0.0}, plan=Plan(frozen=("logit_scale",))),
    ],
    ids=["one rate", "a tower at zero", "the end of a schedule without a trace", "as planned"],
)
def test_quiet(quiet: Run) -> None:
    assert not list(learning_rate_group_wrong(quiet))


RATES = {"learning_rate.text_model_lr": 2e-6, "learning_rate.logit_scale_lr": 1e-3, "learning_rate.projection_lr": 1e-5}


def test_configured_rates_that_no_group_has() -> None:
    found = list(learning_rate_group_wrong(trained({}, **RATES)))
    assert [one.where for one in found] == [name.partition(".")[2] for name in RATES]
    assert [one.evidence[0].expected for one in found] == list(RATES.values())


@pytest.mark.parametrize(
    "quiet",
    [
        trained({"text_model": 2e-6, "logit": 1e-3, "text_proj": 1e-5, "visual_proj": 1e-5}, **RATES),
        trained({"text_model": 2e-6}, **{"learning_rate.text_model_lr": 2e-6}),
        trained({"vision_model": 2e-6}, **{"learning_rate.text_model_lr": 2e-6}),
        trained({"": 4e-4}, **{"learning_rate.text_model_lr": 2e-6}),
        trained({}, **{"learning_rate.text_model_lr": 1e-4}),
    ],
    ids=["all used", "the towers' only, as FG-CLIP has it", "used elsewhere", "all rates are scaled", "the same rate"],
)
def test_rates_that_are_used_or_not_needed_are_quiet(quiet: Run) -> None:
    assert not list(learning_rate_group_wrong(quiet))


def test_the_rate_of_a_frozen_tower_is_not_needed() -> None:
    frozen = [name for name in NAMES if name not in TEXT]
    held = optimizer([group(0, list(range(len(frozen))), lr=1e-4, initial_lr=1e-4)], [], dict(enumerate(frozen)))
    facts = {"learning_rate": 1e-4, "learning_rate.text_model_lr": 2e-6}
    weights = {name: np.ones((8, 4)) for name in NAMES}
    assert not list(learning_rate_group_wrong(run(checkpoint(weights, optimizer=held), facts=facts, roles=ROLES)))


@pytest.mark.parametrize(
    ("values", "resolution", "expected"),
    [
        ([0.0] * 10, None, 1),
        ([0.0] * 10, 1.0, 1),
        ([0.0] * 10, 1e-4, 0),
        ([0.0] * 9, None, 0),
        ([0.0, *[1e-5] * 10], None, 0),
    ],
    ids=["zero", "printed as 0", "printed as 0.0000", "too few", "a warmup"],
)
def test_a_log_alone(values: list[float], resolution: float | None, expected: int) -> None:
    logged = replace(series("learning_rate", values), resolution=resolution)
    assert len(list(learning_rate_group_wrong(run(logged=[logged])))) == expected


def test_skipped_without_optimizer_and_log() -> None:
    with pytest.raises(Missing, match="no learning rate"):
        list(learning_rate_group_wrong(run(checkpoint({"logit_scale": 1.0}))))
