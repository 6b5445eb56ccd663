from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fgclip_doctor import Missing, Run
from fgclip_doctor.run import Plan
from fgclip_doctor_checks.gradients.eval_mode_in_training import eval_mode_in_training
from tests.runs import checkpoint, parameter, run, series, tensor, watched

WEIGHT, BIAS = "vision_model.encoder.layers.0.mlp.fc1.weight", "vision_model.encoder.layers.0.norm.bias"


def seen(
    evaluating: dict[str, int],
    *,
    trainable: bool = True,
    plan: Plan | None = None,
    looks: int = 20,
    since: dict[str, tuple[int, int]] | None = None,
    inside: bool = True,
) -> Run:
    parameters = [parameter(WEIGHT, trainable=trainable), parameter(BIAS, trainable=trainable, shape=(8,))]
    head = parameter("visual_projection.weight")
    for one in parameters:  # with a module that is put into evaluation mode go those inside
        above = [name for name in evaluating if name == "the model" or one.name.startswith(f"{name}.")]
        if above and inside:
            evaluating = {**evaluating, one.name.rpartition(".")[0]: max(evaluating[name] for name in above)}
            since = {**(since or {}), one.name.rpartition(".")[0]: next(iter((since or {}).values()), (0, 0))}
    made = watched(*parameters, head, roles={}, evaluating=evaluating, plan=plan, evaluating_since=since or {})
    made.series["learning_rate"] = series("learning_rate", [1e-4] * looks)
    return made


@pytest.mark.parametrize(
    ("evaluating", "where"),
    [
        ({"the model": 20, "vision_model": 20, "vision_model.encoder": 20}, "the model"),
        ({"vision_model": 20, "vision_model.encoder": 20}, "vision_model"),
        ({"vision_model": 10}, "vision_model"),
    ],
)
def test_the_outermost_module_is_named(evaluating: dict[str, int], where: str) -> None:
    [finding] = eval_mode_in_training(seen(evaluating))
    assert finding.where == where


def test_a_model_that_an_evaluation_left_in_evaluation_mode_is_named_though_most_looks_were_before() -> None:
    [finding] = eval_mode_in_training(seen({"vision_model": 3}, since={"vision_model": (30, 3)}))
    assert "In 3 of 20 steps that were looked at (at all 3 since step 30)" in finding.message


@pytest.mark.parametrize(
    "quiet",
    [
        seen({"vision_model": 2}, since={"vision_model": (40, 2)}),
        seen({"vision_model": 9}, since={}),
        seen({"the model": 20, "vision_model": 20}, inside=False),
        seen({}),
        seen({"vision_model": 9}),
        seen({"vision_model": 20}, trainable=False),
        seen({"vision_model.encoder.layers.0.norm": 20}),
        seen({"vision_model": 20}, plan=Plan(frozen=("vision_model.*",))),
        seen({"vision_model.dropout": 20}),
    ],
    ids=[
        "in two looks",
        "again in training mode",
        "its children are in training mode",
        "training mode",
        "in fewer than half",
        "frozen",
        "a norm",
        "as planned",
        "nothing is trained in it",
    ],
)
def test_quiet(quiet: Run) -> None:
    assert not list(eval_mode_in_training(quiet))


def counted(forwards: int, step: int = 90, **facts: Any) -> Run:
    counter = tensor("training_steps", np.array(forwards), "int64")
    roles = {"clock.forwards": "training_steps"}
    return run(checkpoint({"training_steps": counter}, step), facts={"bank_enabled": True, **facts}, roles=roles)


@pytest.mark.parametrize(("forwards", "expected"), [(0, 1), (1, 0)])
def test_a_count_of_forwards_that_never_began(forwards: int, expected: int) -> None:
    assert len(list(eval_mode_in_training(counted(forwards)))) == expected


@pytest.mark.parametrize("unsure", [counted(0, bank_enabled=False), counted(0, step=1), run(checkpoint({"a": 1.0}))])
def test_skipped_where_nothing_tells(unsure: Run) -> None:
    with pytest.raises(Missing, match="not recorded"):
        list(eval_mode_in_training(unsure))
