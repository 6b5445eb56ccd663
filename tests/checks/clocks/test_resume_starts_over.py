"""Resumes that go on, and those that start over."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fgclip_doctor import Missing, Run
from fgclip_doctor.recorded import Rank, Recording
from fgclip_doctor_checks.clocks.resume_starts_over import resume_starts_over
from tests import runs

WARMUP = np.linspace(1e-3, 1e-2, 10)
SAVED = 8


def recorded(updates: int | None, **series: Any) -> Run:
    """A run of which these series were recorded, from its first step on."""
    bank = {"queue": np.zeros((64, 4)), "ptr": np.zeros(())}
    roles = {"bank.image_keys": "queue", "bank.pointer": "ptr", "scale.region": "scale"}
    logged = [runs.series(name, values) for name, values in series.items()]
    made = runs.run(runs.checkpoint({**bank, "scale": np.zeros(())}), logged=logged, roles=roles)
    made.recording = Recording((Rank(0, 1, "recording", updates_before=updates),), 10)
    return made


def resumed(updates: int | None = SAVED, first_updates: int | None = 0, **values: float) -> Run:
    """Ten steps with a checkpoint at the eighth, and the first step of what goes on from there, as it should."""
    pointer, scale = 4.0 * np.arange(1, 11), 2.0 + 0.01 * np.arange(10)
    run = recorded(first_updates, learning_rate=WARMUP, ptr=pointer, scale=scale)
    run.series["saved"] = runs.series("saved", [1.0], [SAVED])
    then = {"learning_rate": WARMUP[SAVED], "ptr": pointer[SAVED], "scale": scale[SAVED], **values}
    run.resumed = recorded(updates, **{name: [value] for name, value in then.items()})
    return run


@pytest.mark.parametrize(
    ("changed", "where"),
    [
        ({}, set()),
        ({"updates": None, "first_updates": None}, set()),  # SGD counts none
        ({"updates": 0}, {"Adam's count of steps"}),
        ({"learning_rate": 1e-3}, {"the learning rate"}),
        ({"learning_rate": WARMUP[SAVED - 1]}, set()),  # one step behind is no start
        ({"learning_rate": 2e-2}, set()),  # another rate is no start either
        ({"scale": 2.005}, {"scale"}),
        ({"scale": 2.05}, set()),
        ({"ptr": 4.0}, {"the pointer"}),
        ({"ptr": 32.0}, set()),
    ],
)
def test_what_starts_over_is_named(changed: dict[str, Any], where: set[str]) -> None:
    assert {finding.where for finding in resume_starts_over(resumed(**changed))} == where


def test_a_pointer_that_may_have_come_round_tells_nothing() -> None:
    run = resumed(ptr=4.0)
    run.checkpoints = (runs.checkpoint({"queue": np.zeros((36, 4)), "ptr": np.zeros(())}),)
    assert not list(resume_starts_over(run))


def test_a_restart_that_is_planned_is_no_finding() -> None:
    run = resumed(learning_rate=1e-3)
    run.plan = runs.Plan(restarts=(SAVED,))
    assert not list(resume_starts_over(run))


def test_without_a_resume_or_a_checkpoint_it_is_skipped() -> None:
    run = resumed()
    del run.series["saved"]
    with pytest.raises(Missing, match="no checkpoint"):
        list(resume_starts_over(run))
    run.resumed = None
    with pytest.raises(Missing, match="--resume"):
        list(resume_starts_over(run))
