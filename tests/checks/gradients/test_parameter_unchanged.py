from __future__ import annotations

from collections.abc import Sequence
from math import log

import numpy as np
import pytest

from fgclip_doctor import Missing, Run
from fgclip_doctor.run import Plan
from fgclip_doctor_checks.gradients.parameter_unchanged import parameter_unchanged
from tests.runs import adam, checkpoint, run

RNG = np.random.default_rng(0)
BLOCKS = [f"vision_model.encoder.layers.{block}.mlp.fc1.weight" for block in range(4)]
HEADS = {"head.image": "visual_projection.weight", "head.region": "roi_projection.weight"}
SCALES = {"scale.global": "logit_scale", "scale.region": "logit_scale_finegraind"}
OLD = {name: RNG.normal(0, 0.02, (8, 4)) for name in (*BLOCKS, *HEADS.values())}
OLD |= {name: np.array(3.0) for name in SCALES.values()}


def two(
    same: Sequence[str],
    *,
    dtype: str = "float32",
    lr: float = 1e-3,
    adamw: bool = True,
    base: bool = False,
    **options: float,
) -> Run:
    """Everything moved by 0.001 between two checkpoints, but those in `same`."""
    first = checkpoint(OLD, 50, dtype=dtype)
    new = {name: values if name in same else values * 1.01 for name, values in OLD.items()}
    weights = checkpoint(new, 100, dtype=dtype).tensors
    last = checkpoint(weights, 100, optimizer=adam(weights, lr=lr, **options) if adamw else None)
    roles = {**HEADS, **SCALES}
    return run(last, base=first, roles=roles) if base else run(first, last, roles=roles)


@pytest.mark.parametrize("adamw", [True, False], ids=["with optimizer state", "weights alone"])
@pytest.mark.parametrize("base", [True, False], ids=["base", "two checkpoints"])
@pytest.mark.parametrize("name", ["roi_projection.weight", "visual_projection.weight", "logit_scale_finegraind"])
def test_a_part_that_stands_still_is_named(name: str, *, adamw: bool, base: bool) -> None:
    [finding] = parameter_unchanged(two([name], adamw=adamw, base=base))
    assert finding.where == name
    assert {"FGD101", "FGD102", "FGD103", "FGD106"} <= set(finding.explained_by)


def test_a_parameter_with_gradients_that_stands_still_is_named() -> None:
    [finding] = parameter_unchanged(two(BLOCKS[:1]))
    assert finding.where == BLOCKS[0]


def test_gradients_far_below_eps_and_a_warmup_that_begins_at_zero_are_quiet() -> None:
    assert not list(parameter_unchanged(two(BLOCKS[:1], eps=1e-3)))
    assert not list(parameter_unchanged(two([*BLOCKS, *HEADS.values(), *SCALES.values()])))


def test_all_moved_is_quiet() -> None:
    assert not list(parameter_unchanged(two([])))


@pytest.mark.parametrize(
    "same",
    [[*BLOCKS, *HEADS.values()], list(SCALES.values()), BLOCKS[:1]],
    ids=["frozen tower with its heads", "fixed temperature", "part of a tower"],
)
def test_what_is_frozen_on_purpose_is_quiet(same: list[str]) -> None:
    assert not list(parameter_unchanged(two(same, adamw=False)))


@pytest.mark.parametrize("adamw", [True, False], ids=["with optimizer state", "weights alone"])
def test_the_scale_of_a_branch_with_a_loss_weight_of_zero_is_quiet(*, adamw: bool) -> None:
    """Such a scale has gradients, and so moments, of zero; without them, nothing else of its branch moves."""
    weights = {name: values for name, values in OLD.items() if name != "roi_projection.weight"}
    still = "logit_scale_finegraind"
    new = checkpoint({name: v if name == still else v * 1.01 for name, v in weights.items()}, 100).tensors
    roles = {role: name for role, name in {**HEADS, **SCALES}.items() if name in weights}
    last = checkpoint(new, 100, optimizer=adam(new, dead=[still]) if adamw else None)
    assert not list(parameter_unchanged(run(checkpoint(weights, 50), last, roles=roles)))


def test_a_scale_that_rests_at_its_cap_is_quiet() -> None:
    capped = {**OLD, "logit_scale": np.array(log(100))}
    moved = {name: values if name == "logit_scale" else values * 1.01 for name, values in capped.items()}
    found = parameter_unchanged(run(checkpoint(capped, 50), checkpoint(moved, 100), roles={**HEADS, **SCALES}))
    assert not list(found)


@pytest.mark.parametrize(("lr", "expected"), [(1e-4, 0), (0.05, 1)])
def test_what_rounding_hides_is_not_judged(lr: float, expected: int) -> None:
    """Half an ulp of bfloat16 at 3 is 0.0078: an update of 0.0001 leaves the export as it was."""
    found = list(parameter_unchanged(two(["logit_scale"], dtype="bfloat16", lr=lr)))
    assert len(found) == expected


def test_skipped_without_a_second_set_of_weights() -> None:
    with pytest.raises(Missing, match="nothing to compare"):
        list(parameter_unchanged(run(checkpoint(OLD), roles=HEADS)))


def test_what_is_planned_to_stand_still_is_quiet() -> None:
    made = two(["roi_projection.weight"])
    made.plan = Plan(frozen=("roi_projection",))
    assert not list(parameter_unchanged(made))
