from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from numpy.typing import ArrayLike

from fgclip_doctor import Missing, Run
from fgclip_doctor_checks.gradients.parameter_not_in_optimizer import parameter_not_in_optimizer
from tests.runs import adam, checkpoint, group, optimizer, run, state

HEADS = {"head.image": "visual_projection.weight", "head.region": "roi_projection.weight"}
SCALES = {"scale.global": "logit_scale", "scale.region": "logit_scale_finegraind"}
TOWER = [f"vision_model.encoder.layers.{block}.mlp.fc1.weight" for block in range(4)]
WEIGHTS: dict[str, ArrayLike] = {
    **{name: np.ones((8, 4)) for name in (*TOWER, *HEADS.values())},
    **dict.fromkeys(SCALES.values(), np.array(4.6)),
}


def trained_with(held: Iterable[str], also: Iterable[str] = ()) -> Run:
    """A run with `WEIGHTS` (and more parameters) whose optimizer holds exactly `held`."""
    weights = checkpoint({**WEIGHTS, **{name: np.ones((8, 4)) for name in also}})
    state = adam({name: weights.tensors[name] for name in held})
    return run(checkpoint(weights.tensors, optimizer=state), roles={**HEADS, **SCALES})


@pytest.mark.parametrize("missing", ["roi_projection.weight", "visual_projection.weight", "logit_scale_finegraind"])
def test_a_head_or_a_scale_that_is_left_out_is_named(missing: str) -> None:
    [finding] = parameter_not_in_optimizer(trained_with(name for name in WEIGHTS if name != missing))
    assert finding.where == missing
    assert "frozen, or left out" in finding.message


def test_all_held_is_quiet() -> None:
    assert not list(parameter_not_in_optimizer(trained_with(WEIGHTS)))


def test_a_tower_that_is_frozen_with_its_heads_is_a_choice() -> None:
    assert not list(parameter_not_in_optimizer(trained_with(SCALES.values())))


def test_a_new_head_trained_on_a_frozen_model_is_a_choice() -> None:
    assert not list(parameter_not_in_optimizer(trained_with(["roi_projection.weight", *SCALES.values()])))


def test_a_branch_head_that_is_left_out_beside_its_trained_elder_is_named() -> None:
    [finding] = parameter_not_in_optimizer(trained_with(["visual_projection.weight", *SCALES.values()]))
    assert finding.where == "roi_projection.weight"


def test_adapters_alone_are_a_choice() -> None:
    lora = [f"{name.removesuffix('.weight')}.lora_A.weight" for name in TOWER]
    assert not list(parameter_not_in_optimizer(trained_with(lora, also=lora)))


def test_a_temperature_that_is_fixed_everywhere_is_a_choice() -> None:
    assert not list(parameter_not_in_optimizer(trained_with([*TOWER, *HEADS.values()])))


@pytest.mark.parametrize(("held", "expected"), [(0.25, 0), (0.5, 1)])
def test_half_of_the_tower_decides_whether_it_is_trained(held: float, expected: int) -> None:
    found = list(parameter_not_in_optimizer(trained_with(TOWER[: int(held * len(TOWER))])))
    assert len([one for one in found if one.where == "visual_projection.weight"]) == expected


def test_of_equal_shapes_one_is_missing() -> None:
    weights = checkpoint(WEIGHTS).tensors
    both = tuple(SCALES.values())
    names: dict[int, str | tuple[str, ...]] = {**dict(enumerate([*TOWER, *HEADS.values()])), 6: both}
    held = optimizer([group(0, list(names))], [state(index) for index in names], names)
    [finding] = parameter_not_in_optimizer(run(checkpoint(weights, optimizer=held), roles={**HEADS, **SCALES}))
    assert finding.message.startswith("One of logit_scale, logit_scale_finegraind")


@pytest.mark.parametrize(("text_tower_is_trained", "expected"), [(True, 1), (False, 0)])
def test_what_is_frozen_may_be_all_that_is_missing_of_equal_shapes(text_tower_is_trained: bool, expected: int) -> None:
    text_tower = [name.replace("vision", "text") for name in TOWER]
    heads = {**HEADS, "head.text": "text_projection.weight"}
    image, region, text = heads.values()
    weights = checkpoint({name: np.ones((8, 4)) for name in (*TOWER, *text_tower, *heads.values())}).tensors
    names: dict[int, str | tuple[str, ...]] = dict(enumerate(TOWER + text_tower * text_tower_is_trained))
    names |= {100: (image, text), 101: (region, text)}  # two of three are held
    held = optimizer([group(0, list(names))], [state(index) for index in names], names)
    found = list(parameter_not_in_optimizer(run(checkpoint(weights, optimizer=held), roles=heads)))
    assert len(found) == expected


def test_skipped_where_no_head_is_known() -> None:
    """To pass would say that all are held."""
    weights = checkpoint({"encoder.0.weight": np.ones((4, 4)), "logit_scale": np.array(2.6592)}).tensors
    held = adam({"encoder.0.weight": weights["encoder.0.weight"]})
    with pytest.raises(Missing, match="no head"):
        list(parameter_not_in_optimizer(run(checkpoint(weights, optimizer=held))))


def test_skipped_without_names() -> None:
    with pytest.raises(Missing, match="index"):
        list(parameter_not_in_optimizer(run(checkpoint(WEIGHTS, optimizer=optimizer([group(0, [0, 1])])))))
