from __future__ import annotations

from collections.abc import Callable, Sequence
from math import cos, pi

import pytest

from fgclip_doctor.run import Event, Plan, Run, Source
from fgclip_doctor.schedule import begun_again
from tests.runs import run, series

Schedule = Callable[[int], float]


def warm_cosine(step: int, length: int = 200, warmup: int = 20) -> float:
    return step / warmup if step < warmup else (1 + cos(pi * (step - warmup) / (length - warmup))) / 2


def warm_linear(step: int, length: int = 200, warmup: int = 20) -> float:
    return min(step / warmup, (length - step) / (length - warmup))


def resumed(schedule: Schedule, at: int) -> Schedule:
    return lambda step: schedule(step if step < at else step - at)


def logged(rate: Schedule, stride: int = 1, steps: int = 200, **facts: object) -> Run:
    at = range(stride, steps + 1, stride)
    values = [float(f"{1e-4 * rate(step):.3g}") for step in at]
    return run(logged=[series("learning_rate", values, list(at))], facts=facts)


@pytest.mark.parametrize("schedule", [warm_cosine, warm_linear, lambda step: warm_cosine(step, warmup=1)])
@pytest.mark.parametrize("stride", [1, 2, 5])
@pytest.mark.parametrize("at", [60, 90, 123])
def test_a_schedule_that_begins_again_half_way_down(schedule: Schedule, stride: int, at: int) -> None:
    found = begun_again(logged(resumed(schedule, at), stride))
    assert found is not None
    assert at - stride <= found.step <= at + stride


def cycles(length: int, floor: float) -> Schedule:
    return lambda step: floor + (1 - floor) * (1 + cos(pi * (step % length) / length)) / 2


def teeth(length: int) -> Schedule:
    return lambda step: 1 - (step % length) / length


def growing(step: int) -> float:
    """Cosine cycles of 25, 50 and 100 steps."""
    begin, length = next((b, n) for b, n in ((75, 100), (25, 50), (0, 25)) if step >= b)
    return (1 + cos(pi * ((step - begin) % length) / length)) / 2


SOUND: Sequence[Schedule] = (
    *(cycles(length, floor) for length in (25, 40, 50, 67, 100) for floor in (0.0, 0.1, 0.3)),
    *(teeth(length) for length in (25, 40, 50, 100)),
    growing,
    warm_cosine,
    warm_linear,
    lambda step: 1 - abs(step % 50 - 25) / 25,  # triangles
    lambda step: 0.1 ** (step // 60),
    lambda step: 0.5 ** (step // 30),
    lambda step: 1.0,
    lambda step: min(step / 20, (20 / max(step, 1)) ** 0.5),
    lambda step: warm_linear(step) if step < 120 else 0.1,
)


@pytest.mark.parametrize("stride", [1, 2, 3, 5, 7, 10])
def test_schedules_that_are_as_they_should_be(stride: int) -> None:
    assert [place for place, one in enumerate(SOUND) if begun_again(logged(one, stride))] == []


def test_what_was_planned_or_is_called_a_restart() -> None:
    again = logged(resumed(warm_cosine, 90))
    again.plan = Plan(restarts=(90,))
    assert begun_again(again) is None
    assert begun_again(logged(resumed(warm_cosine, 90), schedule="cosine_with_restarts")) is None


def test_a_change_of_the_rate_on_purpose_is_no_beginning() -> None:
    assert begun_again(logged(lambda step: warm_cosine(step) * (1 if step < 90 else 3))) is None


def test_another_run_in_the_same_log_is_none() -> None:
    steps = [*range(1, 91), *range(1, 201)]
    values = [1e-4 * warm_cosine(step) for step in steps]
    assert begun_again(run(logged=[series("lr", values, steps)])) is None


def test_a_cut_where_the_schedule_is_flat_takes_a_resume_to_tell() -> None:
    late = logged(resumed(lambda step: min(step / 20, max(warm_cosine(step), 0.3)), 190), steps=300)
    assert begun_again(late) is None
    late.events.append(Event("resume", 190, "the trainer says so", Source("log")))
    found = begun_again(late)
    assert found is not None
    assert found.step == 190
