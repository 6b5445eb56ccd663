"""What is measured on every run: the answers to what people ask, and no crash that takes the findings with it."""

from __future__ import annotations

import numpy as np
import pytest

from fgclip_doctor import observations
from fgclip_doctor.observations import observe
from fgclip_doctor.run import Run
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
