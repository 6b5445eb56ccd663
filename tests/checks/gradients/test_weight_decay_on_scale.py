from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fgclip_doctor import Missing, Run
from fgclip_doctor.run import Source, Tensor
from fgclip_doctor_checks.gradients.weight_decay_on_scale import weight_decay_on_scale
from tests.runs import adam, checkpoint, group, optimizer, run, state

WEIGHTS = {"logit_scale": np.array(4.6), "ln.weight": np.ones(8), "head.weight": np.ones((8, 8))}


def decayed(weight_decay: float, lr: float = 5e-4, steps: int = 1000, **options: Any) -> Run:
    weights = checkpoint(WEIGHTS).tensors
    held = adam(weights, step=steps, lr=lr, weight_decay=weight_decay, **options)
    return run(checkpoint(weights, steps, optimizer=held), roles={"scale.global": "logit_scale"})


def test_a_decayed_scale_and_decayed_norms_are_named() -> None:
    scale, norms = weight_decay_on_scale(decayed(0.2))
    assert scale.where == "logit_scale"
    assert scale.evidence[0].value == pytest.approx(1000 * 5e-4 * 0.2 * 4.6)
    assert norms.where == "ln.weight"


@pytest.mark.parametrize(
    "case",
    [
        {"weight_decay": 0.0},
        {"weight_decay": 0.001, "lr": 1e-6},
        {"weight_decay": 0.01, "lr": 2e-3},  # torch's default, for all parameters
        {"weight_decay": 0.2, "decoupled_weight_decay": False},
    ],
)
def test_none_or_a_negligible_pull_or_coupled_decay_is_quiet(case: dict[str, Any]) -> None:
    assert not list(weight_decay_on_scale(decayed(**case)))


@pytest.mark.parametrize(("smallest", "expected"), [(0.4599, 1), (0.4601, 0)])
def test_flips_at_its_threshold(smallest: float, expected: int) -> None:
    assert len(list(weight_decay_on_scale(decayed(0.2), smallest=smallest))) == expected


@pytest.mark.parametrize(("strength", "expected"), [(0.919, 1), (0.921, 0)])
def test_flips_at_the_strength_of_the_decay(strength: float, expected: int) -> None:
    assert len(list(weight_decay_on_scale(decayed(0.2), strength=strength))) == expected


def test_skipped_without_optimizer() -> None:
    with pytest.raises(Missing, match="no optimizer state"):
        list(weight_decay_on_scale(run(checkpoint(WEIGHTS))))


def test_of_a_recording_the_scales_are_judged() -> None:
    """It holds the values of nothing else."""

    def unknown() -> Any:
        raise Missing("the recording holds no values")

    bias = Tensor("bias", (8,), "float32", Source("a"), measure=unknown, read=unknown, digest=unknown, nbytes=32)
    weights: dict[str, Any] = {"bias": bias, "logit_scale": np.array(4.6)}
    tensors = checkpoint(weights).tensors
    names = dict(enumerate(tensors))
    held = optimizer(
        [group(0, [0, 1], lr=1e-3, weight_decay=0.1, betas=(0.9, 0.98))], [state(0, 100), state(1, 100)], names
    )
    recorded = run(checkpoint(weights, optimizer=held), roles={"scale.global": "logit_scale"})
    [finding] = weight_decay_on_scale(recorded)
    assert finding.where == "logit_scale"
