from __future__ import annotations

import numpy as np
import pytest

from fgclip_doctor.progress import Course
from fgclip_doctor.rises import explained, lasting
from fgclip_doctor.run import Event, Source
from tests.runs import run, series

STEPS = np.arange(10, 2010, 10)


def course(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Course:
    noisy = values + np.random.default_rng(0).normal(0, 0.02, len(values))
    return Course("total", series("loss", noisy, STEPS[: len(values)]), None, STEPS[: len(values)], noisy)


def test_a_rise_that_stays_and_a_spike_that_does_not() -> None:
    risen = lasting(course(np.where(STEPS < 1000, 1.0, 3.0)))
    assert risen is not None
    assert (risen.low, risen.end) == pytest.approx((1.0, 3.0), abs=0.05)
    assert abs(risen.half - 1000) <= 100
    spike = lasting(course(np.where(STEPS == 1000, 9.0, 1.0)))
    assert spike is not None
    assert spike.end - spike.low < 0.1
    assert lasting(course(np.ones(11))) is None


@pytest.mark.parametrize(
    ("kind", "accumulation", "expected"),
    [("restart", 1, True), ("resume", 1, False), ("", 1, False), ("", 3, True), ("", 4, False)],
)
def test_what_explains_a_rise(kind: str, accumulation: int, *, expected: bool) -> None:
    """An event there, or the accumulation, by which a loss of 1 that goes to 3 is multiplied."""
    risen = course(np.where(STEPS < 1000, 1.0, 3.0))
    found = lasting(risen)
    assert found is not None
    made = run(facts={"accumulation": accumulation})
    made.events = [Event(kind, 1000, "", Source("log"))] if kind else []
    assert explained(made, risen, found) is expected


@pytest.mark.parametrize(("later", "expected"), [(3.0, False), (80.0, True)])
def test_a_scale_that_is_lost_with_the_loss_explains_nothing(later: float, *, expected: bool) -> None:
    """From 20 to 3 it is what happened; up to 80 it is what raises the loss of features that are far apart."""
    risen = course(np.where(STEPS < 1000, 1.0, 3.0))
    found = lasting(risen)
    assert found is not None
    made = run(logged=[series("logit_scale", np.where(STEPS < 1000, 20.0, later), STEPS)])
    assert explained(made, risen, found) is expected
