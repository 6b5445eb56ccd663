from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fgclip_doctor import moments
from fgclip_doctor.run import Optimizer
from tests.runs import checkpoint, group, optimizer, run, state


def trained(norms: list[float], *, clipped: float | None = None) -> Optimizer:
    """What torch's AdamW keeps of gradients of these norms on two parameters."""
    parameters = [torch.nn.Parameter(torch.zeros(4, 8)), torch.nn.Parameter(torch.zeros(5))]
    adam = torch.optim.AdamW(parameters, betas=(0.9, 0.98))
    generator = torch.Generator().manual_seed(0)
    for norm in norms:
        for one in parameters:
            one.grad = torch.randn(one.shape, generator=generator)
        length = torch.cat([one.grad.flatten() for one in parameters if one.grad is not None]).norm()
        for one in parameters:
            assert one.grad is not None
            one.grad *= norm / length
        if clipped is not None:
            torch.nn.utils.clip_grad_norm_(parameters, clipped)
        adam.step()
    kept = adam.state_dict()
    states = [state(i, int(s["step"]), s["exp_avg"].numpy(), s["exp_avg_sq"].numpy()) for i, s in kept["state"].items()]
    return optimizer([group(0, [0, 1], betas=(0.9, 0.98))], states)


@pytest.mark.parametrize("steps", [1, 7, 300])
def test_a_constant_norm_is_told_exactly(steps: int) -> None:
    assert moments.norm(trained([3.0] * steps), [0, 1]) == pytest.approx(3.0, rel=1e-4)


def test_clipped_gradients_are_no_longer_than_the_threshold() -> None:
    norms = list(np.random.default_rng(0).uniform(0.5, 9.0, 60))
    clipped, whole = (moments.norm(trained(norms, clipped=one), [0, 1]) for one in (1.0, None))
    assert clipped is not None
    assert whole is not None
    assert clipped <= 1 + 1e-4 < 4 < whole


@pytest.mark.parametrize(
    "options", [{}, {"betas": (0.9,)}, {"betas": (0.9, 1.0)}, {"betas": "none"}], ids=["none", "one", "1", "text"]
)
def test_nothing_is_told_without_beta(options: dict[str, Any]) -> None:
    held = optimizer([group(0, [0], **options)], [state(0, 3, [1.0], [1.0])])
    assert moments.norm(held, [0]) is None


@pytest.mark.parametrize("square", [[np.nan], [np.inf], [-1.0]])
def test_nothing_is_told_by_what_is_no_square(square: list[float]) -> None:
    held = optimizer([group(0, [0], betas=(0.9, 0.98))], [state(0, 3, [1.0], square)])
    assert moments.norm(held, [0]) is None


def test_rows_that_had_a_gradient() -> None:
    square = np.zeros((3, 2))
    square[1, 0] = 1e-30
    held = optimizer([group(0, [0, 1])], [state(0, 3, square, square), state(1, 3, [1.0], [1.0])])
    rows = moments.alive_rows(held, 0)
    assert rows is not None
    assert rows.tolist() == [False, True, False]
    assert moments.alive_rows(held, 1) is None


@pytest.mark.parametrize(
    ("decay", "options", "expected"),
    [(0.0, {}, True), (0.1, {"decoupled_weight_decay": True}, True), (0.1, {}, False)],
)
def test_decay_inside_of_the_gradients(decay: float, options: dict[str, Any], expected: bool) -> None:
    assert moments.decoupled(optimizer([group(0, [0], weight_decay=decay, **options)])) is expected


def test_what_is_observed() -> None:
    """The parts' squares add up to the whole's, and rows without a gradient are counted."""
    names = ["vision_model.fc.weight", "text_model.token_embedding.weight", "visual_projection.weight", "logit_scale"]
    squares = [np.full((4, 8), 0.02), np.zeros((9, 4)), np.full((2, 2), 0.09), np.array(0.04)]
    squares[1][:3] = 0.01
    states = [state(index, 1, one, one) for index, one in enumerate(squares)]
    held = optimizer([group(0, list(range(4)), betas=[0.9, 0.0], eps=1e-8)], states, dict(enumerate(names)))
    weights = checkpoint(dict(zip(names, squares, strict=True)), 1, optimizer=held)
    roles = {"head.image": names[2], "scale.global": names[3]}
    norm, constants, rows = moments.observations(run(weights, facts={"max_grad_norm": 1.0}, roles=roles))
    assert norm.value == pytest.approx(np.sqrt(0.64 + 0.12 + 0.36 + 0.04), rel=1e-3)
    assert norm.why.endswith("heads 0.6, image tower 0.8, scales 0.2, text tower 0.346")
    assert "eps 1e-08" in str(constants.value)
    assert rows.value == "6 of 9"
