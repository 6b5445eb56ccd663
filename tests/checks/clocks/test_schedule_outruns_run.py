from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import get_cosine_schedule_with_warmup

from fgclip_doctor import Missing, Run
from fgclip_doctor.run import Plan
from fgclip_doctor_checks.clocks.schedule_outruns_run import schedule_outruns_run
from tests.runs import checkpoint, run, series

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
