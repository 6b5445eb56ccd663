from __future__ import annotations

from collections.abc import Sequence
from math import log

import numpy as np
import pytest

from fgclip_doctor import Missing, Run
from fgclip_doctor_checks.scales.logit_scale_frozen import logit_scale_frozen
from tests.runs import adam, checkpoint, run

ROLES = {"head.image": "visual_projection.weight", "scale.global": "logit_scale", "scale.hard": "logit_scale_hardneg"}


def trained(
    value: float = 2.6592,
    held: Sequence[str] = tuple(ROLES.values()),
    dead: Sequence[str] = (),
    *,
    lr: float = 5e-6,
    weights: str = "float32",
    moments: str = "float32",
) -> Run:
    arrays = {"visual_projection.weight": np.ones((8, 4)), "logit_scale": np.array(value)}
    tensors = checkpoint({**arrays, "logit_scale_hardneg": np.array(value)}, dtype=weights).tensors
    held_state = adam({name: tensors[name] for name in held}, dead=dead, lr=lr, dtype=moments)
    return run(checkpoint(tensors, optimizer=held_state), roles=ROLES)


def test_rounding_holds_a_scale_in_bfloat16() -> None:
    found = list(logit_scale_frozen(trained(weights="bfloat16", moments="bfloat16")))
    assert [one.where for one in found] == ["logit_scale", "logit_scale_hardneg"]
    assert {one.explained_by for one in found} == {("FGD106",)}
    assert "2.65625" in found[0].message


def test_an_export_of_masters_is_quiet() -> None:
    assert not list(logit_scale_frozen(trained(weights="bfloat16", moments="float32")))


@pytest.mark.parametrize(("lr", "expected"), [(0.0024, 2), (0.0026, 0)])
def test_flips_where_a_step_reaches_half_an_ulp(lr: float, expected: int) -> None:
    """Half an ulp of bfloat16 at 2.66 is 0.0078, and Adam's bound is 3.16 times the learning rate."""
    assert len(list(logit_scale_frozen(trained(weights="bfloat16", moments="bfloat16", lr=lr)))) == expected


def test_no_gradient_holds_a_scale() -> None:
    [finding] = logit_scale_frozen(trained(dead=["logit_scale"]))
    assert finding.explained_by == ("FGD103",)


def test_a_branch_that_does_not_run_is_quiet() -> None:
    assert not list(logit_scale_frozen(trained(dead=["logit_scale_hardneg"])))


def test_no_group_holds_a_scale() -> None:
    found = list(logit_scale_frozen(trained(held=["visual_projection.weight"])))
    assert {one.explained_by for one in found} == {("FGD102",)}


def test_a_scale_at_its_cap_or_a_model_without_trained_heads_is_quiet() -> None:
    assert not list(logit_scale_frozen(trained(log(100), held=["visual_projection.weight"])))
    frozen = trained(held=["logit_scale"])
    assert not list(logit_scale_frozen(frozen))


def test_skipped_without_optimizer() -> None:
    with pytest.raises(Missing, match="no optimizer state"):
        list(logit_scale_frozen(run(checkpoint({"logit_scale": np.array(2.0)}), roles={"scale.global": "logit_scale"})))
