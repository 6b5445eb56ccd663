from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fgclip_doctor import Missing, Run
from fgclip_doctor_checks.clocks.partial_resume import partial_resume
from tests.runs import adam, checkpoint, run, series


def resumed(
    step: int,
    adam_step: int | None,
    last_epoch: Any,
    *,
    fp16: bool = False,
    accumulation: int | None = 1,
    **scheduler: Any,
) -> Run:
    weights = checkpoint({"w": np.ones((2, 2))}).tensors
    state = adam(weights, step=adam_step) if adam_step is not None else None
    facts = {"fp16": fp16, **({} if accumulation is None else {"accumulation": accumulation})}
    schedule = {"last_epoch": last_epoch, **scheduler} if last_epoch is not None else None
    return run(checkpoint(weights, step, optimizer=state, scheduler=schedule), facts=facts)


@pytest.mark.parametrize(
    ("adam_step", "last_epoch", "wrong"),
    [(8, 8, 2), (8, 16, 1), (16, 8, 1), (None, 8, 1), (400, None, 1)],
    ids=["both afresh", "optimizer afresh", "scheduler afresh", "scheduler alone", "optimizer of another run"],
)
def test_a_state_that_disagrees_is_named(adam_step: int | None, last_epoch: int | None, wrong: int) -> None:
    [finding] = partial_resume(resumed(16, adam_step, last_epoch))
    assert len(finding.evidence) == wrong


@pytest.mark.parametrize(
    "case",
    [
        resumed(1000, 1000, 1000),
        resumed(1000, 1000, 1001),
        resumed(1000, 1000, 8000),
        resumed(1000, 960, 960, fp16=True),
        resumed(1000, 1000, 12, num_bad_epochs=1),
        resumed(1000, None, 1000),
        resumed(1003, 250, 250, accumulation=4),
        resumed(1003, 250, 1003, accumulation=4),
        resumed(1000, 250, None, accumulation=None),
    ],
    ids=[
        *("equal", "one ahead", "per process", "float16 skipped", "on a plateau", "no optimizer"),
        *("a step that counts micro-batches", "and the scheduler too", "of unknown accumulation"),
    ],
)
def test_a_sound_reason_is_quiet(case: Run) -> None:
    assert not list(partial_resume(case))


@pytest.mark.parametrize(("tolerance", "expected"), [(0.009, 1), (0.011, 0)])
def test_flips_at_its_threshold(tolerance: float, expected: int) -> None:
    assert len(list(partial_resume(resumed(1000, 990, 1000), tolerance=tolerance))) == expected


def test_skipped_without_state() -> None:
    with pytest.raises(Missing, match="neither"):
        list(partial_resume(resumed(16, None, None)))
    with pytest.raises(Missing, match="trainer state"):
        list(partial_resume(run(checkpoint({"w": np.ones(2)}, None))))


def rates(*legs: int) -> Run:
    """A log of a rate that rises for ten steps and falls for two hundred, over legs that each start it anew."""
    values = [min(step / 10, 1 - step / 200) for leg in legs for step in range(leg)]
    return run(logged=[series("learning_rate", values)])


def test_a_schedule_that_begins_again_in_the_log() -> None:
    [finding] = partial_resume(rates(90, 100))
    assert finding.where == "learning_rate"
    assert "at step 91 it begins again" in finding.message
    assert not list(partial_resume(rates(190)))


def test_a_checkpoint_that_tells_it_needs_no_log() -> None:
    both = resumed(16, 8, 8)
    both.series = rates(90, 100).series
    [finding] = partial_resume(both)
    assert finding.where.startswith("checkpoint")
