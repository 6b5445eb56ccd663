from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NoReturn

import numpy as np
import pytest

from fgclip_doctor import Missing, Run
from fgclip_doctor.parts import WATCHED
from fgclip_doctor.run import Plan
from fgclip_doctor_checks.gradients.parameter_never_got_gradient import parameter_never_got_gradient
from tests.runs import adam, checkpoint, group, optimizer, parameter, run, series, state, watched

ROLES = {
    "head.image": "visual_projection.weight",
    "head.region": "roi_projection.weight",
    "scale.global": "logit_scale",
    "scale.region": "logit_scale_finegraind",
    "scale.hard": "logit_scale_hardneg",
}
BLOCKS = [f"vision_model.encoder.layers.{block}.mlp.fc1.weight" for block in range(4)]
WEIGHTS = {**{name: np.ones((8, 4)) for name in BLOCKS}}
WEIGHTS |= {name: np.ones((8, 4)) if role.startswith("head") else np.array(4.6) for role, name in ROLES.items()}


def trained(dead: Sequence[str], roles: dict[str, str] | None = None, step: int = 100, lr: float = 1e-3) -> Run:
    weights = checkpoint(WEIGHTS).tensors
    held = adam(weights, dead=dead, lr=lr)
    logged = [series(name, [1.0, 1.0]) for role, name in (roles or {}).items() if role.startswith("loss.")]
    return run(checkpoint(weights, step, optimizer=held), roles={**ROLES, **(roles or {})}, logged=logged)


def test_a_head_without_state_is_named() -> None:
    [finding] = parameter_never_got_gradient(trained(["roi_projection.weight"]))
    assert finding.where == "roi_projection.weight"
    assert finding.evidence[0].value == "absent"


def test_a_second_moment_of_zero_is_no_gradient_either() -> None:
    weights = checkpoint({"a_projection.weight": np.ones((8, 4)), "b_projection.weight": np.ones((8, 4))}).tensors
    moments = [np.zeros((8, 4)), np.full((8, 4), 1e-30)]  # the second one is tiny, but it is there
    states = [state(index, 10, moment, moment) for index, moment in enumerate(moments)]
    held = optimizer([group(0, [0, 1])], states, dict(enumerate(weights)))
    roles = {"head.image": "a_projection.weight", "head.text": "b_projection.weight"}
    [finding] = parameter_never_got_gradient(run(checkpoint(weights, optimizer=held), roles=roles))
    assert finding.where == "a_projection.weight"
    assert finding.evidence[0].value == "all zero"


def test_a_second_moment_that_overflowed_is_no_zero() -> None:
    weights = checkpoint({"a_projection.weight": np.full((8, 4), np.nan), "logit_scale": np.array(np.nan)}).tensors
    states = [state(index, 10, one.values(), one.values()) for index, one in enumerate(weights.values())]
    held = optimizer([group(0, [0, 1])], states, dict(enumerate(weights)))
    roles = {"head.image": "a_projection.weight", "scale.global": "logit_scale"}
    assert not list(parameter_never_got_gradient(run(checkpoint(weights, optimizer=held), roles=roles)))


def test_everything_with_gradient_is_quiet() -> None:
    assert not list(parameter_never_got_gradient(trained([])))


@pytest.mark.parametrize(
    "dead",
    [
        ["logit_scale_hardneg"],
        ["roi_projection.weight", "logit_scale_finegraind"],
        ["vision_model.encoder.layers.3.mlp.fc1.weight"],
    ],
    ids=["no hard negatives", "no region branch", "features from the last block but one"],
)
def test_a_branch_that_does_not_run_is_quiet(dead: list[str]) -> None:
    assert not list(parameter_never_got_gradient(trained(dead)))


def test_a_branch_whose_loss_is_logged_must_have_gradients() -> None:
    dead = ["roi_projection.weight", "logit_scale_finegraind"]
    found = parameter_never_got_gradient(trained(dead, {"loss.region": "loss_region"}))
    assert [finding.where for finding in found] == dead


@pytest.mark.parametrize("dead", [BLOCKS, BLOCKS[:2]], ids=["all", "the first ones"])
def test_a_tower_cut_off_from_below_is_one_finding(dead: list[str]) -> None:
    [finding] = parameter_never_got_gradient(trained(dead))
    assert f"{len(dead)} of them, from block 0 on" in finding.message


def test_a_learning_rate_of_zero_is_quiet() -> None:
    assert not list(parameter_never_got_gradient(trained(["roi_projection.weight"], lr=0.0)))


def test_of_equal_shapes_one_is_dead() -> None:
    weights = {"visual_projection.weight": np.ones((8, 4)), "roi_projection.weight": np.ones((8, 4))}
    moment = np.full((8, 4), 1e-8)
    held = optimizer([group(0, [0, 1])], [state(0, 5, moment, moment)], {0: tuple(weights), 1: tuple(weights)})
    [finding] = parameter_never_got_gradient(run(checkpoint(weights, optimizer=held), roles=ROLES))
    assert finding.message.startswith("One of visual_projection.weight, roi_projection.weight")


def test_skipped_before_the_first_step_and_without_states() -> None:
    stateless = optimizer([group(0, [0])], [], {0: "roi_projection.weight"})
    with pytest.raises(Missing, match="keeps no state"):
        list(parameter_never_got_gradient(run(checkpoint(WEIGHTS, optimizer=stateless), roles=ROLES)))
    fresh = optimizer([group(0, [0])], [state(0, 0)], {0: "roi_projection.weight"})
    with pytest.raises(Missing, match="not made a step"):
        list(parameter_never_got_gradient(run(checkpoint(WEIGHTS, 0, optimizer=fresh), roles=ROLES)))


@pytest.mark.parametrize(("zeros", "expected"), [(True, 0), (False, 1)], ids=["loss weight 0", "detached"])
def test_a_scale_whose_logged_loss_has_no_weight_is_quiet(expected: int, *, zeros: bool) -> None:
    """A loss with weight 0 leaves gradients of zero, a detached scale none at all."""
    moments = [np.full((8, 4), 1e-8), np.zeros(())]
    states = [state(index, 10, moment, moment) for index, moment in enumerate(moments) if index == 0 or zeros]
    held = optimizer([group(0, [0, 1])], states, {0: "visual_projection.weight", 1: "logit_scale_hardneg"})
    weights = {"visual_projection.weight": np.ones((8, 4)), "logit_scale_hardneg": np.array(2.0)}
    roles = {"scale.hard": "logit_scale_hardneg", "loss.hard": "loss_hard"}
    found = parameter_never_got_gradient(run(checkpoint(weights, optimizer=held), roles=roles))
    assert len(list(found)) == expected


@pytest.mark.parametrize(
    ("gradient", "steps", "plan", "expected"),
    [
        ("none", 20, Plan(), 1),
        ("zero", 20, Plan(), 1),
        ("some", 20, Plan(), 0),
        ("unknown", 20, Plan(), 0),
        ("none", 20, Plan(frozen=("roi_projection.*",)), 0),
        ("none", WATCHED, Plan(), 1),
    ],
)
def test_a_recording_saw_the_gradients(gradient: str, steps: int, plan: Plan, expected: int) -> None:
    region = parameter("roi_projection.weight", gradient=gradient)
    seen = watched(
        region,
        *(parameter(name) for name in [*BLOCKS, *ROLES.values()] if name != region.name),
        roles={**ROLES, "loss.region": "loss_region"},
        steps=steps,
        plan=plan,
    )
    found = list(parameter_never_got_gradient(seen))
    assert [(one.where, one.evidence[0].value) for one in found] == [(region.name, gradient)] * expected


def test_the_first_steps_of_a_recording_say_nothing() -> None:
    region = parameter("roi_projection.weight", gradient="none")
    with pytest.raises(Missing, match="may come later"):
        list(parameter_never_got_gradient(watched(region, roles=ROLES, steps=WATCHED - 1)))


@pytest.mark.parametrize(("dead", "expected"), [(2, 0), (3, 1), (12, 0)])
def test_a_share_of_unnamed_parameters(dead: int, expected: int) -> None:
    """A quarter of 12 is three; without a single gradient, something else is wrong."""
    moments = [np.array([float(index >= dead)]) for index in range(12)]
    held = optimizer([group(0, list(range(12)))], [state(index, 9, one, one) for index, one in enumerate(moments)])
    unnamed = run(checkpoint({"logit_scale": 1.0}, optimizer=replace(held, naming="not named: many")))
    if expected:
        [finding] = parameter_never_got_gradient(unnamed)
        assert finding.evidence[0].value == dead
    else:
        with pytest.raises(Missing, match="not named"):
            list(parameter_never_got_gradient(unnamed))


def two_towers(dead: str, gain: float, names: tuple[str, str] = ("pic_enc", "cap_enc"), role: str = "") -> Run:
    """Two towers of three blocks each; that called `dead` has no state, and norm gains of `gain`."""
    weights: dict[str, np.ndarray] = {}
    for tower in names:
        for block in range(3):
            weights[f"{tower}.blocks.{block}.norm.weight"] = np.full(8, gain if tower == dead else 0.9)
            weights[f"{tower}.blocks.{block}.fc.weight"] = np.ones((8, 8))
        weights[f"{tower}.proj.weight"] = np.ones((8, 4))
    tensors = checkpoint(weights).tensors
    held = adam(tensors, dead=[name for name in weights if name.startswith(dead)])
    return run(checkpoint(tensors, 100, optimizer=held), roles={role: f"{dead}.proj.weight"} if role else {})


def test_a_new_tower_without_state_is_named_whatever_it_is_called() -> None:
    [finding] = parameter_never_got_gradient(two_towers("cap_enc", 1.0))
    assert finding.message.startswith("cap_enc is in the optimizer")


@pytest.mark.parametrize("share", [0.51, 0.49])
def test_a_module_flips_at_its_share_of_the_parameters(share: float) -> None:
    assert len(list(parameter_never_got_gradient(two_towers("cap_enc", 1.0), share=share))) == (share < 0.5)


@pytest.mark.parametrize(
    ("names", "role"), [(("pic_enc", "cap_enc"), ""), (("text_model", "vision_model"), "head.image")]
)
def test_a_trained_tower_that_was_handed_over_frozen_is_quiet(names: tuple[str, str], role: str) -> None:
    assert not list(parameter_never_got_gradient(two_towers(names[1], 0.8, names, role)))


def test_a_new_tower_with_a_role_is_named_with_its_head() -> None:
    made = two_towers("vision_model", 1.0, ("text_model", "vision_model"), "head.image")
    assert next(one.where for one in parameter_never_got_gradient(made)) == "vision_model.proj.weight"


def test_a_recording_is_asked_for_no_norm_gain() -> None:
    """It holds none: the gradients that it saw are enough."""
    head, norm = "vision_model.proj.weight", "vision_model.blocks.0.norm.weight"
    seen = watched(
        parameter(head, gradient="none"),
        parameter(norm, gradient="none", shape=(8,)),
        *(parameter(f"text_model.blocks.{n}.fc.weight") for n in range(3)),
        roles={"head.image": head},
        steps=WATCHED,
    )
    for tensor in seen.tensors.values():
        tensor._measure = _unknown
    assert head in [one.where for one in parameter_never_got_gradient(seen)]


def _unknown() -> NoReturn:
    raise Missing("the recording holds no values")
