from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fgclip_doctor import Missing, Run
from fgclip_doctor.recorded import Rank, Recording
from fgclip_doctor.sources import load
from fgclip_doctor_checks.clocks.clock_ratio_wrong import clock_ratio_wrong
from tests.live.test_recorder import train
from tests.runs import checkpoint, run, series, tensor


def counted(*pairs: tuple[int, int], evaluated: bool = False, name: str = "forward_count", **facts: Any) -> Run:
    """Checkpoints at (step, forwards)."""
    saved = [checkpoint({name: tensor(name, forwards, "int64")}, step) for step, forwards in pairs]
    logged = [series("eval_loss", [1.0])] if evaluated else []
    return run(*saved, facts={"accumulation": 8, **facts}, roles={"clock.forwards": name}, logged=logged)


@pytest.mark.parametrize(
    ("forwards", "told"),
    [(240, "counts optimizer steps"), (3840, "runs each forward twice"), (960, ""), (7680, "all 4 ranks")],
)
def test_a_wrong_ratio_is_explained_where_it_can_be(forwards: int, told: str) -> None:
    [finding] = clock_ratio_wrong(counted((240, forwards), world_size=4 if forwards == 7680 else 1))
    assert told in finding.message
    assert finding.evidence[0].expected == 8


@pytest.mark.parametrize(
    "case",
    [
        counted((240, 1920)),
        counted((240, 1924)),
        counted((3, 20)),
        counted((240, 2400), evaluated=True),
        counted((100, 500), dataset_size=40, micro_batch=4),
        counted((100, 500), max_steps=200, num_epochs=100),
        counted((100, 5800), (240, 6920)),
        counted((10, 10), accumulation=1),
    ],
    ids=["exact", "in progress", "few", "evaluation", "short epochs", "short epochs by steps", "carried over", "one"],
)
def test_what_has_a_sound_reason_is_quiet(case: Run) -> None:
    assert not list(clock_ratio_wrong(case))


@pytest.mark.parametrize("name", ["bank.step", "tick_count", "calls"])
@pytest.mark.parametrize("pairs", [((240, 240),), ((80, 79),), ((1, 0), (80, 79))], ids=["exact", "late", "between"])
def test_a_counter_of_optimizer_steps_is_sound_by_itself(name: str, pairs: tuple[tuple[int, int], ...]) -> None:
    assert not list(clock_ratio_wrong(counted(*pairs, name=name)))


def test_a_counter_of_steps_is_told_where_forwards_were_meant() -> None:
    [finding] = clock_ratio_wrong(counted((240, 240), name="bank.step", bank_clock="forward"))
    assert "counts optimizer steps" in finding.message
    assert list(clock_ratio_wrong(counted((240, 480), name="bank.step")))


def test_evaluation_does_not_explain_an_exact_double() -> None:
    assert list(clock_ratio_wrong(counted((240, 3840), evaluated=True)))


@pytest.mark.parametrize(("tolerance", "expected"), [(0.04, 1), (0.06, 0)])
def test_flips_at_its_threshold(tolerance: float, expected: int) -> None:
    assert len(list(clock_ratio_wrong(counted((10_000, 84_000)), tolerance=tolerance))) == expected


def test_skipped_without_a_counter_or_an_accumulation() -> None:
    with pytest.raises(Missing, match="counter"):
        list(clock_ratio_wrong(run(checkpoint({}, 10), facts={"accumulation": 8})))
    with pytest.raises(Missing, match="accumulation"):
        list(clock_ratio_wrong(run(checkpoint({}, 10))))


def recorded(steps: int, forwards: int, backwards: int | None = None, **facts: Any) -> Run:
    """A recording with these clocks, of a model that keeps no counter."""
    made = run(checkpoint({}, steps), facts={"accumulation": 8, **facts})
    clocks = {"steps": steps, "forwards": forwards, "backwards": forwards if backwards is None else backwards}
    made.recording = Recording((Rank(0, 1, "recording", clocks=clocks),), steps)
    return made


@pytest.mark.parametrize("case", [recorded(50, 50), recorded(50, 200), recorded(10, 50, num_epochs=1, max_steps=10)])
def test_steps_that_come_too_soon_are_told_by_a_recordings_clocks(case: Run) -> None:
    [finding] = clock_ratio_wrong(case)
    assert "of the samples that it was meant to see" in finding.message
    assert finding.evidence[0].source == "recording"


@pytest.mark.parametrize(
    "case",
    [
        recorded(50, 400),
        recorded(50, 407),
        recorded(50, 800),
        recorded(50, 800, 400),
        recorded(50, 50, 400),
        recorded(50, 230),
        recorded(100, 500, dataset_size=40, micro_batch=4),
        recorded(1, 1),
        recorded(50, 50, accumulation=1),
    ],
    ids=["exact", "in progress", "twice", "views", "parts", "epochs", "short epochs", "first step", "one"],
)
def test_a_sound_recording_is_quiet(case: Run) -> None:
    assert not list(clock_ratio_wrong(case))


def test_a_real_recording_fires_for_the_accumulation_that_it_did_not_make(tmp_path: Path) -> None:
    train(tmp_path, steps=12, accumulation=2)
    assert list(clock_ratio_wrong(load([tmp_path], facts={"accumulation": "8"})))
    assert not list(clock_ratio_wrong(load([tmp_path], facts={"accumulation": "2"})))
