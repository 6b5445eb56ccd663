"""What is measured on every run: the answers to what people ask, and no crash that takes the findings with it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fgclip_doctor import observations
from fgclip_doctor.observations import observe
from fgclip_doctor.recorded import Parameter, Rank, Recording
from fgclip_doctor.run import Optimizer, OptimizerGroup, ParameterState, Run, Source
from tests import runs

SCALE = np.array(np.log(1 / 0.07), np.float32)


def answers(run: Run) -> dict[str, object]:
    seen, crashes = observe(run)
    assert crashes == []
    return {one.name: one.value for one in seen}


def test_nothing_is_made_up_where_there_is_nothing() -> None:
    assert answers(Run(subject="empty")) == {}


def test_the_bits_of_a_loss_are_bounded_by_ln_n() -> None:
    weights = {"logit_scale": SCALE, "visual_projection.weight": np.eye(64, dtype=np.float32)}
    learnt = runs.run(
        runs.checkpoint(weights),
        facts={"micro_batch": 16, "world_size": 1, "candidates": 16},
        logged=[runs.series("loss", np.full(100, np.log(16) - np.log(2)))],
        roles={"loss.total": "loss", "scale.global": "logit_scale", "head.image": "visual_projection.weight"},
    )
    assert answers(learnt)["bits learnt, by the total loss"] == "1.00 of 4.00"


def test_the_bits_of_a_loss_without_its_scale() -> None:
    learnt = runs.run(
        facts={"micro_batch": 16, "world_size": 1, "candidates": 16},
        logged=[runs.series("loss_global", np.full(100, np.log(8)))],
        roles={"loss.global": "loss_global"},
    )
    assert answers(learnt)["bits learnt, by the global loss"] == "1.00 of 4.00"
    assert observe(learnt)[1] == []


def test_a_crash_of_one_observation_is_a_line_and_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(run: Run) -> list[object]:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(observations, "LOOKS", (broken, *observations.LOOKS))
    seen, crashes = observe(Run(subject="empty"))
    assert (seen, crashes) == ([], ["observing broken: ZeroDivisionError: oops"])


def test_what_a_gradient_reaches_is_read_off_a_recording() -> None:
    names = {"visual_projection.weight": "some", "text_projection.weight": "none"}
    roles = {
        "head.image": "visual_projection.weight",
        "head.text": "text_projection.weight",
        "scale.global": "logit_scale",
    }
    weights = {name: np.eye(4, dtype=np.float32) for name in names} | {"logit_scale": SCALE}
    run = runs.run(runs.checkpoint(weights), roles=roles)
    group = OptimizerGroup(0, (0, 1), {"lr": 1e-3})
    held = {index: (name,) for index, name in enumerate(names)}
    optimizer = Optimizer(Source("rec"), (group,), {0: ParameterState(0, 10)}, held)
    run.checkpoints = (replace(run.checkpoint, optimizer=optimizer),)
    parameters = {name: Parameter(name, (4, 4), "float32", True, 0, seen) for name, seen in names.items()}
    run.recording = Recording((Rank(0, 1, "rec", parameters=parameters),), 10)
    told = answers(run)
    assert told["gradient reaches head.image"] == "yes"
    assert told["gradient reaches head.text"] == "never"
