from __future__ import annotations

from dataclasses import replace

import pytest

from fgclip_doctor import Missing, Run
from fgclip_doctor.run import Plan
from fgclip_doctor_checks.gradients.parameter_frozen import parameter_frozen
from fgclip_doctor_checks.gradients.parameter_not_in_optimizer import parameter_not_in_optimizer
from tests.runs import checkpoint, parameter, run, watched

ROLES = {
    "head.image": "visual_projection.weight",
    "head.region": "roi_projection.weight",
    "scale.global": "logit_scale",
    "scale.region": "logit_scale_finegraind",
}
TOWER = [f"vision_model.encoder.layers.{block}.mlp.fc1.weight" for block in range(4)]


def seen(*frozen: str, left_out: str = "", plan: Plan | None = None) -> Run:
    parameters = [
        parameter(
            name,
            trainable=name not in frozen,
            group=None if name == left_out else 0,
            shape=() if name.startswith("logit") else (8, 4),
        )
        for name in (*TOWER, *ROLES.values())
    ]
    return watched(*parameters, roles=ROLES, plan=plan)


@pytest.mark.parametrize("name", ["visual_projection.weight", "roi_projection.weight", "logit_scale_finegraind"])
def test_a_frozen_head_or_scale_is_named_once(name: str) -> None:
    [finding] = parameter_frozen(seen(name))
    assert finding.where == name
    assert not list(parameter_not_in_optimizer(seen(name)))


def test_a_trainable_head_in_no_group_is_another_fault() -> None:
    left_out = seen(left_out="roi_projection.weight")
    assert not list(parameter_frozen(left_out))
    [finding] = parameter_not_in_optimizer(left_out)
    assert "frozen" not in finding.message


def test_a_head_that_no_loss_uses_is_left_out_of_this_stage() -> None:
    """As where a tower is trained with a probe first, and the heads come later."""
    unused = seen(left_out="roi_projection.weight")
    rank = unused.watched.first
    parameters = {
        **rank.parameters,
        "roi_projection.weight": parameter("roi_projection.weight", group=None, gradient="none"),
    }
    unused.recording = replace(unused.watched, ranks=(replace(rank, parameters=parameters),))
    assert not list(parameter_not_in_optimizer(unused))


@pytest.mark.parametrize(
    "frozen",
    [
        (),
        (*TOWER, "visual_projection.weight", "roi_projection.weight"),
        (*TOWER, "visual_projection.weight"),
        ("logit_scale", "logit_scale_finegraind"),
    ],
    ids=["nothing", "the tower with its heads", "all but a new head", "a fixed temperature"],
)
def test_choices_are_quiet(frozen: tuple[str, ...]) -> None:
    assert not list(parameter_frozen(seen(*frozen)))


@pytest.mark.parametrize(("blocks", "expected"), [(2, 0), (1, 1)])
def test_a_tower_is_trained_if_more_than_half_of_it_is(blocks: int, expected: int) -> None:
    found = parameter_frozen(seen(*TOWER[:blocks], "visual_projection.weight", "roi_projection.weight"))
    assert len([one for one in found if one.where == "visual_projection.weight"]) == expected


@pytest.mark.parametrize(
    ("frozen", "expected"),
    [(("txt_out",), ["txt_out"]), (("txt_out", "captions"), []), ((), []), (("pictures", "captions", "txt_out"), [])],
    ids=["a head", "with its tower", "nothing", "all but the other head"],
)
def test_a_head_whose_tower_no_name_tells(frozen: tuple[str, ...], expected: list[str]) -> None:
    names = {"head.image": "img_out", "head.text": "txt_out", "scale.global": "logit_scale"}
    parameters = [
        parameter(name, trainable=name not in frozen, shape=() if name == "logit_scale" else (8, 4))
        for name in ("pictures", "captions", *names.values())
    ]
    assert [one.where for one in parameter_frozen(watched(*parameters, roles=names))] == expected


@pytest.mark.parametrize("pattern", ["roi_*", "roi_projection"])
def test_what_is_planned_is_quiet(pattern: str) -> None:
    assert not list(parameter_frozen(seen("roi_projection.weight", plan=Plan(frozen=(pattern,)))))


def test_skipped_without_a_recording() -> None:
    with pytest.raises(Missing, match="not recorded"):
        list(parameter_frozen(run(checkpoint({"logit_scale": 1.0}))))
