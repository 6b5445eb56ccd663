from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import log

import numpy as np
import pytest
from numpy.typing import ArrayLike

from fgclip_doctor import Missing, Run
from fgclip_doctor.run import Plan
from fgclip_doctor_checks.scales.logit_scale_frozen import logit_scale_frozen
from tests.runs import adam, checkpoint, group, optimizer, parameter, run, series, state, tensor, watched

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
    assert finding.explained_by == ("FGD103", "FGD509")


def test_a_branch_that_does_not_run_is_quiet() -> None:
    assert not list(logit_scale_frozen(trained(dead=["logit_scale_hardneg"])))


def test_no_group_holds_a_scale() -> None:
    found = list(logit_scale_frozen(trained(held=["visual_projection.weight"])))
    assert {one.explained_by for one in found} == {("FGD102",)}


@pytest.mark.parametrize(("value", "held", "expected"), [(2.6592, 1, 2), (0.07, 1, 0), (0.07, 2, 1)])
def test_scales_that_no_group_holds_are_a_fixed_temperature_where_none_is_a_logarithm(
    value: float, held: int, expected: int
) -> None:
    """Beside another that is held, one was left out, whatever its value."""
    names = ["visual_projection.weight", "logit_scale"][:held]
    assert len(list(logit_scale_frozen(trained(value, held=names)))) == expected


@pytest.mark.parametrize(
    ("value", "held", "expected"),
    [
        (2.6592, 3, 1),
        (2.6592, 1, 0),  # most of the model is frozen, too
        (0.07, 3, 0),  # a temperature, fixed on purpose
        (4.6052, 3, 0),  # at its cap
    ],
)
def test_a_scale_left_out_of_a_model_whose_heads_have_other_names(value: float, held: int, expected: int) -> None:
    arrays = {f"mixer.{rows}.weight": np.ones((rows, 4)) for rows in (5, 6, 7)}
    tensors = checkpoint({**arrays, "temp": np.array(value)}).tensors
    state_of = adam({name: tensors[name] for name in list(arrays)[:held]}, lr=1e-3)
    made = run(checkpoint(tensors, optimizer=state_of), roles={"scale.global": "temp"})
    assert len(list(logit_scale_frozen(made))) == expected


def test_a_scale_at_its_cap_or_a_model_without_trained_heads_is_quiet() -> None:
    assert not list(logit_scale_frozen(trained(log(100), held=["visual_projection.weight"])))
    frozen = trained(held=["logit_scale"])
    assert not list(logit_scale_frozen(frozen))


def test_skipped_without_optimizer() -> None:
    with pytest.raises(Missing, match="no optimizer state"):
        list(logit_scale_frozen(run(checkpoint({"logit_scale": np.array(2.0)}), roles={"scale.global": "logit_scale"})))


def logged(values: object, *, lr: float = 5e-6, resolution: float = 1e-6, **facts: object) -> Run:
    """A log of the region scale, and nothing else."""
    steps = np.arange(10, 510, 10)
    one = replace(series("logit_scale_finegraind", np.broadcast_to(values, 50), steps), resolution=resolution)
    return run(facts={"learning_rate": lr, **facts}, logged=[one])


def test_a_logged_scale_on_the_grid_of_bfloat16_that_never_changes() -> None:
    [finding] = logit_scale_frozen(logged(2.65625))
    assert "has stood at 2.65625 for 490 steps" in finding.message
    assert finding.explained_by == ("FGD106",)


@pytest.mark.parametrize(
    "made",
    [
        logged(2.6592),  # fixed on purpose
        logged(2.5),  # on the grid, as what people type is
        logged(4.59375),  # at its cap
        logged(2.65625 + 1e-6 * np.arange(50)),  # moves
        logged(2.66, resolution=0.01),
    ],
)
def test_quiet_on_logged_scales_that_are_fixed_or_move(made: Run) -> None:
    assert not list(logit_scale_frozen(made))


@pytest.mark.parametrize(("lr", "expected"), [(0.0024, 1), (0.0025, 0)])
def test_a_logged_scale_flips_where_a_step_reaches_half_an_ulp(lr: float, expected: int) -> None:
    """Half an ulp is 0.0078, and a step at most 3.2 times the learning rate."""
    assert len(list(logit_scale_frozen(logged(2.65625, lr=lr)))) == expected


@pytest.mark.parametrize(("scale", "expected"), [(14.2428, 1), (14.2857, 0), (14.24, 0)])
def test_a_stated_scale_tells_its_type_by_its_digits(scale: float, expected: int) -> None:
    made = run(facts={"learning_rate": 5e-6, "scale": scale})
    assert len(list(logit_scale_frozen(made))) == expected


def test_a_log_without_scales_or_rates_is_skipped() -> None:
    made = logged(2.65625)
    del made.facts["learning_rate"]
    with pytest.raises(Missing, match="learning rate"):
        list(logit_scale_frozen(made))
    with pytest.raises(Missing, match="no logit scale"):
        list(logit_scale_frozen(run()))


def test_what_is_planned_to_be_frozen_is_quiet() -> None:
    made = trained(lr=0.0)
    assert list(logit_scale_frozen(made))
    made.plan = Plan(frozen=("logit_scale*",))
    assert not list(logit_scale_frozen(made))


def recorded(values: ArrayLike, *, dtype: str = "bfloat16", lr: float = 5e-6) -> Run:
    """A recording, which holds no moments of Adam's: the scale at each look."""
    scale = replace(parameter("logit_scale", shape=()), dtype=dtype)
    made = watched(scale, roles={"scale.global": "logit_scale"}, rates=(lr,))
    looks = series("logit_scale", values)
    stored = tensor("logit_scale", looks.values[-1], dtype)
    adams = group(0, [0], lr=lr, initial_lr=lr, betas=(0.9, 0.999))
    held_state = optimizer([adams], [state(0, 20)], {0: "logit_scale"})
    made.checkpoints = (replace(made.checkpoint, tensors={"logit_scale": stored}, optimizer=held_state),)
    made.series["logit_scale"] = looks
    return made


@pytest.mark.parametrize(("trainable", "expected"), [(True, 1), (False, 0)])
def test_a_recording_tells_a_fixed_temperature_from_one_that_was_left_out(trainable: bool, expected: int) -> None:
    seen = [replace(parameter("logit_scale", shape=()), trainable=trainable), parameter("visual_projection.weight")]
    made = watched(*seen, roles={"scale.global": "logit_scale", "head.image": "visual_projection.weight"})
    stored = {"logit_scale": np.array(2.6592), "visual_projection.weight": np.ones((8, 4))}
    tensors = checkpoint(stored).tensors
    held = adam({"visual_projection.weight": tensors["visual_projection.weight"]})
    made.checkpoints = (replace(made.checkpoint, tensors=tensors, optimizer=held),)
    assert len(list(logit_scale_frozen(made))) == expected


def test_a_recording_that_saw_it_stand_still_is_enough() -> None:
    (finding,) = logit_scale_frozen(recorded(np.full(20, 2.65625)))
    assert "stood still in 20 steps" in finding.evidence[0].why


@pytest.mark.parametrize(
    "made",
    [
        recorded(np.full(20, 2.65625), dtype="float32"),
        recorded(np.full(20, 2.65625), lr=0.01),
        recorded(np.full(4, 2.65625)),
        recorded([2.65625] * 19 + [2.671875]),
    ],
    ids=["32 bits", "large steps", "few looks", "moved"],
)
def test_a_recording_that_proves_nothing_is_quiet(made: Run) -> None:
    assert not list(logit_scale_frozen(made))


@pytest.mark.parametrize(("peer", "expected"), [(0.0, 0), (1e-3, 1)])
def test_a_schedule_set_by_hand_that_ended_at_zero_is_not_a_rate_of_zero(peer: float, expected: int) -> None:
    weights = {"logit_scale": np.float32(3.1), "text_projection.weight": np.ones((8, 8), np.float32)}
    groups = [group(0, [0], lr=0.0, betas=(0.9, 0.999)), group(1, [1], lr=peer, betas=(0.9, 0.999))]
    held = optimizer(groups, [state(0, 100), state(1, 100)], dict(enumerate(weights)))
    made = run(checkpoint(weights, 100, optimizer=held), roles={"scale.global": "logit_scale"})
    assert len(list(logit_scale_frozen(made))) == expected
