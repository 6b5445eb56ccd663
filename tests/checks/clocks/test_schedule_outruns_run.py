from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import get_cosine_schedule_with_warmup, get_scheduler

from fgclip_doctor import Missing, Run
from fgclip_doctor.recorded import Rank, Recording
from fgclip_doctor.run import Plan
from fgclip_doctor_checks.clocks.schedule_outruns_run import schedule_outruns_run
from tests.runs import adam, checkpoint, run, series, tensor

STEPS, WARMUP = 200, 20


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"warmup_steps": 199}, 0),
        ({"warmup_steps": 200}, 1),
        ({"warmup_steps": 200, "schedule": "constant"}, 0),
        ({"bank_warmup": 200, "bank_clock": "step"}, 1),
        ({"bank_warmup": 200, "bank_clock": "forward", "accumulation": 4}, 0),
        ({"bank_warmup": 800, "bank_clock": "forward", "accumulation": 4}, 1),
        ({"bank_warmup": 200, "bank_enabled": False}, 0),
    ],
)
def test_a_warmup_as_long_as_the_run(facts: dict[str, Any], expected: int) -> None:
    assert len(list(schedule_outruns_run(run(facts={"max_steps": STEPS, **facts})))) == expected


def test_a_bank_that_joins_as_planned() -> None:
    made = run(facts={"max_steps": STEPS, "bank_warmup": 5000})
    made.plan = Plan(bank_on=5000)
    assert not list(schedule_outruns_run(made))


def saved(step: int, per_step: int, total: int, **facts: Any) -> Run:
    """What transformers' cosine schedule saves when it is advanced so often per step, of so many steps."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-4)
    scheduler = get_cosine_schedule_with_warmup(optimizer, WARMUP * total // STEPS, total)
    for _ in range(step * per_step):
        optimizer.step()
        scheduler.step()
    one = checkpoint({"logit_scale": 1.0}, step, scheduler=scheduler.state_dict())
    return run(one, facts={"max_steps": STEPS, "warmup_steps": WARMUP, "schedule": "cosine", **facts})


@pytest.mark.parametrize(
    ("fact", "why"), [("accumulation", "micro-batch"), ("world_size", "rank")], ids=["micro-batches", "ranks"]
)
def test_a_schedule_that_advances_too_fast(fact: str, why: str) -> None:
    [finding] = schedule_outruns_run(saved(90, 2, STEPS, **{fact: 2}))
    assert why in finding.message
    assert finding.evidence[0].expected == pytest.approx((1 + np.cos(np.pi * 70 / 180)) / 2, abs=1e-3)


@pytest.mark.parametrize(
    "quiet",
    [saved(90, 1, STEPS), saved(90, 2, 2 * STEPS, world_size=2), saved(4, 2, STEPS, schedule="polynomial")],
    ids=["once a step", "accelerate's count, with the right rate", "a schedule that isn't known"],
)
def test_a_rate_that_is_right_is_quiet(quiet: Run) -> None:
    assert not list(schedule_outruns_run(quiet))


def logged(values: Any, resolution: float | None = None, **facts: Any) -> Run:
    one = replace(series("learning_rate", values), resolution=resolution)
    return run(facts={"max_steps": len(values), **facts}, logged=[one])


DECAY = np.linspace(1e-4, 1e-7, STEPS)


@pytest.mark.parametrize(("zeros", "expected"), [(0, 0), (19, 0), (20, 1), (100, 1)])
def test_a_rate_of_zero_for_a_tenth_of_the_run(zeros: int, expected: int) -> None:
    values = np.where(np.arange(STEPS) < STEPS - zeros, DECAY, 0.0)
    found = list(schedule_outruns_run(logged(values, accumulation=2)))
    assert len(found) == expected
    if zeros == 100:
        assert "micro-batch" in found[0].message


def test_a_rate_that_rises_to_the_end_does_so_however_few_decimals_are_printed() -> None:
    assert list(schedule_outruns_run(logged(np.round(np.linspace(0, 4e-5, 80), 7), resolution=1e-7)))


@pytest.mark.parametrize(
    "quiet",
    [
        logged(np.where(np.arange(STEPS) < 100, DECAY, 0.0), resolution=1e-4),
        logged([0.0] * STEPS),
        logged(np.abs(np.cos(np.linspace(0, 3 * np.pi, STEPS)))),
        logged([*np.linspace(0, 1e-4, 20), *[1e-4] * 180]),
        logged(np.linspace(0, 1e-4, 60), max_steps=200),
    ],
    ids=["printed as 0.0000", "no rate at all", "restarts", "a warmup and no more", "stopped in its warmup"],
)
def test_quiet(quiet: Run) -> None:
    assert not list(schedule_outruns_run(quiet))


def test_a_rate_that_rises_to_the_end() -> None:
    [finding] = schedule_outruns_run(logged(np.linspace(0, 1e-4, STEPS)))
    assert "never over" in finding.message


def test_skipped_where_nothing_is_known() -> None:
    with pytest.raises(Missing, match="neither"):
        list(schedule_outruns_run(run(checkpoint({"logit_scale": 1.0}))))


@pytest.mark.parametrize(("steps", "expected"), [(49, None), (50, 1)])
def test_a_try_out_of_a_longer_run_is_not_judged(steps: int, expected: int | None) -> None:
    short = run(facts={"max_steps": steps, "warmup_steps": 500})
    if expected is None:
        with pytest.raises(Missing, match="try-out"):
            list(schedule_outruns_run(short))
    else:
        assert len(list(schedule_outruns_run(short))) == expected


LOOKS = (1, 2, 3, 5, 10, 15, *range(20, 301, 10))
PEAK = 1e-3


def seen(
    shape: str, length: int, *, pace: int = 1, until: int = 20, warmup: int = 10, floor: float = 0.0, **facts: Any
) -> Run:
    """What is recorded of transformers' schedule, made for `length`, by step `until` of 300."""
    weight = torch.nn.Parameter(torch.zeros(2))
    updates = torch.optim.AdamW([weight], lr=PEAK)
    own = {"lr_end": floor * PEAK, "power": 1.0} if floor else {}
    scheduler = get_scheduler(
        shape, updates, num_warmup_steps=warmup, num_training_steps=length, scheduler_specific_kwargs=own
    )
    rates = []
    for _ in range(until):
        updates.step()
        rates.append(updates.param_groups[0]["lr"])
        for _ in range(pace):
            scheduler.step()
    steps = [step for step in LOOKS if step <= until]
    logged_rates = [series("learning_rate", [rates[step - 1] for step in steps], steps)]
    one = checkpoint({"weight": [0.0]}, until, optimizer=adam({"weight": tensor("weight", [0.0])}, lr=PEAK))
    made = run(one, facts={"max_steps": 300, **facts}, logged=logged_rates)
    clocks = {"steps": until, "scheduler_steps": pace * until}
    made.recording = Recording((Rank(0, 1, "recording", clocks=clocks),), until)
    return made


@pytest.mark.parametrize(("warmup", "expected"), [(275, 0), (301, 1), (2000, 1)])
def test_a_warmup_of_a_watched_run_whose_line_ends_after_the_run(warmup: int, expected: int) -> None:
    found = list(schedule_outruns_run(seen("linear", 20 * 300, warmup=warmup, until=10)))
    assert len(found) == expected
    if found:
        assert found[0].evidence[0].value == pytest.approx(warmup + 1, abs=1)
    at_the_end = seen("linear", 20 * 300, warmup=warmup, until=300)
    assert len(list(schedule_outruns_run(at_the_end))) == expected, "what was told stays so"


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_schedule_of_a_watched_run_that_advances_twice_a_step(schedule: str) -> None:
    known = {"schedule": schedule, "warmup_steps": 50}
    [finding] = schedule_outruns_run(seen(schedule, 300, warmup=50, pace=2, until=20, **known))
    assert "advances 2 times a step" in finding.message
    assert finding.evidence[0].expected == pytest.approx(19 / 50, abs=1e-4)
    assert not list(schedule_outruns_run(seen(schedule, 300, warmup=50, until=20, **known)))


@pytest.mark.parametrize(("length", "expected"), [(300, 0), (290, 0), (240, 1)])
def test_a_watched_rate_that_stays_at_zero(length: int, expected: int) -> None:
    assert len(list(schedule_outruns_run(seen("linear", length, until=300)))) == expected


@pytest.mark.parametrize(("until", "expected"), [(20, 0), (30, 1)])
def test_a_watched_rate_that_is_zero_after_a_few_steps(until: int, expected: int) -> None:
    made = seen("linear", 70, warmup=12, pace=4, until=until)
    made.facts["max_steps"] = replace(made.facts["max_steps"], value=70)
    assert len(list(schedule_outruns_run(made))) == expected


@pytest.mark.parametrize(
    ("length", "until", "forwards", "expected"),
    [(70, 40, 160, 1), (70, 30, 120, 0), (70, 40, 70, 0), (40, 40, 160, 0)],
    ids=["at its end", "not for long", "the length is one of forwards", "by design"],
)
def test_a_watched_schedule_that_comes_to_its_end(length: int, until: int, forwards: int, expected: int) -> None:
    made = seen("polynomial", length, warmup=12, pace=4, until=until, floor=0.1)
    made.facts["max_steps"] = replace(made.facts["max_steps"], value=70)
    assert made.recording is not None
    clocks = {**made.recording.ranks[0].clocks, "forwards": forwards}
    made.recording = Recording((Rank(0, 1, "recording", clocks=clocks),), until)
    assert len(list(schedule_outruns_run(made))) == expected


@pytest.mark.parametrize("shape", ["linear", "cosine"])
@pytest.mark.parametrize(
    ("length", "forwards", "expected"),
    [(320, 160, 1), (400, 160, 0), (320, 60, 0)],
    ids=["over at step 64 of 80", "over with the run", "the length is one of forwards"],
)
def test_a_watched_schedule_on_its_way_down(shape: str, length: int, forwards: int, expected: int) -> None:
    made = seen(shape, length, warmup=10, pace=5, until=20)
    made.facts["max_steps"] = replace(made.facts["max_steps"], value=80)
    clocks = {"steps": 20, "scheduler_steps": 100, "forwards": forwards}
    made.recording = Recording((Rank(0, 1, "recording", clocks=clocks),), 20)
    found = list(schedule_outruns_run(made))
    assert len(found) == expected
    assert not found or found[0].evidence[0].value == 65


def test_a_length_that_the_run_has_passed_is_that_of_something_else() -> None:
    made = seen("linear", 20 * 300, warmup=400, until=100)
    assert list(schedule_outruns_run(made))
    made.facts["max_steps"] = replace(made.facts["max_steps"], value=90)
    assert not list(schedule_outruns_run(made))


@pytest.mark.parametrize(
    "quiet",
    [
        seen("linear", 600, warmup=100, pace=2, schedule="linear", warmup_steps=50),
        seen("cosine", 600, warmup=20, pace=2, until=40),
        seen("constant_with_warmup", 300, warmup=10, pace=2, schedule="linear", warmup_steps=0),
        seen("linear", 300, warmup=400, until=3),
    ],
    ids=["made for twice the steps", "micro-batches counted", "another schedule", "a few records"],
)
def test_quiet_while_it_is_watched(quiet: Run) -> None:
    assert not list(schedule_outruns_run(quiet))
