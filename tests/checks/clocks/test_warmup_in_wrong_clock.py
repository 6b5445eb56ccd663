from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from fgclip_doctor import Missing, Run
from fgclip_doctor.run import Checkpoint, Fact, Source
from fgclip_doctor_checks.clocks.warmup_in_wrong_clock import warmup_in_wrong_clock
from tests.runs import checkpoint, run, series, tensor

ROLES = {"bank.image_keys": "image_queue", "bank.text_keys": "text_queue", "bank.pointer": "queue_ptr"}
ROLES |= {"bank.full": "queue_is_full", "loss.region": "loss_region"}
KEYS = np.random.default_rng(0).normal(size=(64, 16)) / 4


def saved(
    step: int, forwards: int, *, pointer: int = 0, full: bool = False, counter: str = "training_steps"
) -> Checkpoint:
    keys = {name: tensor(name, KEYS) for name in ("image_queue", "text_queue")}
    counts = {counter: forwards, "queue_ptr": pointer}
    buffers = {name: tensor(name, value, "int64") for name, value in counts.items()}
    return checkpoint({**keys, **buffers, "queue_is_full": tensor("queue_is_full", full, "bool")}, step)


def made(*checkpoints: Checkpoint, counter: str = "training_steps", logged: Any = (), **facts: Any) -> Run:
    stated = {"bank_warmup": 50, "accumulation": 8, **facts}
    return run(*checkpoints, facts=stated, roles={**ROLES, "clock.forwards": counter}, logged=logged)


def test_a_counter_called_steps_that_counts_forwards() -> None:
    [finding] = warmup_in_wrong_clock(made(saved(240, 1920)))
    assert "ends at step 6.25; 50 steps are 400 forwards" in finding.message
    assert finding.evidence[0].value == 8


@pytest.mark.parametrize("clock", [None, "step"])
def test_a_bank_in_use_before_its_warmup_is_over(clock: str | None) -> None:
    facts = {"bank_clock": clock} if clock else {}
    [finding] = warmup_in_wrong_clock(
        made(saved(15, 120, pointer=8, full=True, counter="forward_count"), counter="forward_count", **facts)
    )
    assert "in use at step 15" in finding.message


def test_the_reverse() -> None:
    [finding] = warmup_in_wrong_clock(made(saved(240, 240), bank_clock="forward"))
    assert "ends at step 50, not 6.25" in finding.message


@pytest.mark.parametrize(
    "facts",
    [
        {"bank_clock": "forward"},
        {"bank_clock": "step"},
        {"bank_warmup": 400},
        {"bank_warmup": 400, "warmup_steps": 50},
        {"accumulation": 1},
        {"bank_warmup": 0},
    ],
)
def test_what_is_declared_or_is_a_whole_number_of_accumulations_is_quiet(facts: dict[str, Any]) -> None:
    forwards = 240 * facts.get("accumulation", 8)
    assert not list(warmup_in_wrong_clock(made(saved(240, forwards, full=True), **facts)))


@pytest.mark.parametrize(("key", "expected"), [("bank_warmup_steps", 1), ("bank_warmup", 0)])
def test_a_number_that_makes_sense_in_forwards_is_meant_in_steps_if_its_name_says_so(key: str, expected: int) -> None:
    one = made(saved(40, 320, full=True, counter="seen"), counter="seen", bank_warmup=80)
    one.facts["bank_warmup"] = Fact("bank_warmup", 80, Source("config.json", key))
    assert len(list(warmup_in_wrong_clock(one))) == expected


def test_the_number_of_the_schedule_is_meant_in_its_clock() -> None:
    assert list(warmup_in_wrong_clock(made(saved(240, 1920), bank_warmup=48, warmup_steps=48)))
    assert not list(warmup_in_wrong_clock(made(saved(240, 1920), bank_warmup=160, warmup_steps=40)))


@pytest.mark.parametrize(("warmup", "schedule", "expected"), [(72, 0, 1), (80, 0, 0), (160, 41, 1), (160, 40, 0)])
def test_flips_where_a_whole_number_of_accumulations_is_too_short_to_be_meant(
    warmup: int, schedule: int, expected: int
) -> None:
    case = made(saved(240, 1920), bank_warmup=warmup, warmup_steps=schedule)
    assert len(list(warmup_in_wrong_clock(case))) == expected


def test_a_counter_of_forwards_by_name_beside_a_bank_that_may_still_wait_is_quiet() -> None:
    quiet = made(saved(240, 1920, counter="forward_count"), counter="forward_count")
    assert not list(warmup_in_wrong_clock(quiet))


def test_a_bank_that_was_seen_to_wait_is_quiet() -> None:
    assert not list(warmup_in_wrong_clock(made(saved(30, 240), saved(240, 1920, pointer=8, full=True))))


def test_a_bank_that_fills_during_its_warmup_is_quiet() -> None:
    filling = made(saved(2, 16, pointer=64), saved(15, 120, full=True), bank_clock="step")
    assert not list(warmup_in_wrong_clock(filling))


@pytest.mark.parametrize(("rise", "expected"), [(1.4, 1), (1.6, 0)])
def test_flips_where_the_loss_rises_at_the_end_of_the_warmup(rise: float, expected: int) -> None:
    """The loss rises by 1.5 there: if less than `rise`, nothing speaks for the bank."""
    values = np.where(np.arange(1, 101) > 50, 3.0, 1.5) + np.tile([0.01, -0.01], 50)
    case = made(saved(15, 120, full=True), saved(240, 1920, full=True), logged=[series("loss_region", values)])
    assert len(list(warmup_in_wrong_clock(case, rise=rise))) == 1 - expected


@pytest.mark.parametrize(("rise", "expected"), [(1.4, 1), (1.6, 0)])
@pytest.mark.parametrize("counter", ["training_steps", "forward_calls"])
def test_flips_where_the_loss_rises_at_the_end_of_the_warmup_in_forwards(
    counter: str, rise: float, expected: int
) -> None:
    """A warmup of 50 against forwards is over after 6.25 steps, and the loss rises by 1.5 at the seventh."""
    values = np.where(np.arange(1, 101) > 6, 3.0, 1.5) + np.tile([0.01, -0.01], 50)
    case = made(saved(240, 1920, full=True, counter=counter), counter=counter, logged=[series("loss_region", values)])
    with suppress(Missing):
        assert len(list(warmup_in_wrong_clock(case, rise=rise))) == expected


def test_skipped_where_nothing_shows_since_when_the_bank_is_in_use() -> None:
    for counter in ("training_steps", "forward_count"):
        with pytest.raises(Missing, match="since when"):
            list(warmup_in_wrong_clock(made(saved(240, 1920, full=True, counter=counter), counter=counter)))


def test_skipped_without_a_counter_or_an_accumulation() -> None:
    with pytest.raises(Missing, match="counter"):
        list(warmup_in_wrong_clock(made(checkpoint({"w": np.ones(3)}))))
    with pytest.raises(Missing, match="bank_warmup"):
        list(warmup_in_wrong_clock(run(saved(1, 8))))
    with pytest.raises(Missing, match="switches the memory bank off"):
        list(warmup_in_wrong_clock(made(saved(240, 1920), bank_enabled=False)))
