"""The logs of a run, read back by TensorBoard's own reader and by a JSON parser."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fgclip_doctor.training.logs import EVENTS, JSON_LINES, logged


def lines(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / JSON_LINES).read_text().splitlines()]


def events(directory: Path) -> dict[str, list[tuple[int, float]]]:
    reader = EventAccumulator(str(directory / EVENTS), size_guidance={"scalars": 0})
    reader.Reload()
    return {tag: [(one.step, one.value) for one in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def entry(step: int, **values: float) -> dict[str, float]:
    return {"step": step, "loss": 0.5 * step, **values}


def write(directory: Path, steps: range, *, start: int = 0, **values: float) -> None:
    with logged(directory, start=start) as log:
        for step in steps:
            log(entry(step, **values))


def test_both_logs_hold_every_entry(tmp_path: Path) -> None:
    write(tmp_path, range(1, 5), learnt_bits_region=1.25)
    assert lines(tmp_path) == [entry(step, learnt_bits_region=1.25) for step in range(1, 5)]
    assert events(tmp_path) == {
        "loss": [(step, 0.5 * step) for step in range(1, 5)],
        "learnt_bits_region": [(step, 1.25) for step in range(1, 5)],
    }


def test_a_resumed_run_appends_and_repeats_no_step(tmp_path: Path) -> None:
    write(tmp_path, range(1, 8), run=1)
    write(tmp_path, range(5, 10), start=4, run=2)  # it died at 7; its last checkpoint was at 4
    expected = [(step, 1.0 if step <= 4 else 2.0) for step in range(1, 10)]
    assert [(one["step"], one["run"]) for one in lines(tmp_path)] == expected
    assert events(tmp_path)["run"] == expected


def test_a_new_run_forgets_one_that_never_reached_a_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, range(1, 4), run=1)
    write(tmp_path, range(1, 3), run=2)
    assert [(one["step"], one["run"]) for one in lines(tmp_path)] == [(1, 2), (2, 2)]
    assert events(tmp_path)["run"] == [(1, 2), (2, 2)]


def test_a_line_torn_by_a_crash_is_dropped(tmp_path: Path) -> None:
    write(tmp_path, range(1, 4))
    with (tmp_path / JSON_LINES).open("a") as file:
        file.write('{"step": 3, "lo')
    write(tmp_path, range(4, 5), start=3)
    assert [one["step"] for one in lines(tmp_path)] == [1, 2, 3, 4]


def test_values_that_json_has_no_word_for(tmp_path: Path) -> None:
    write(tmp_path, range(1, 2), grad_norm=math.inf, scale=math.nan)
    assert lines(tmp_path) == [{"step": 1, "loss": 0.5, "grad_norm": "inf", "scale": "nan"}]
    assert events(tmp_path)["grad_norm"] == [(1, math.inf)]
    assert math.isnan(events(tmp_path)["scale"][0][1])


def test_an_entry_can_be_read_as_soon_as_it_is_written(tmp_path: Path) -> None:
    with logged(tmp_path) as log:
        log(entry(1))
        assert lines(tmp_path) == [entry(1)]


def test_the_logs_are_closed_when_the_run_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), logged(tmp_path) as log:  # noqa: PT012
        log(entry(1))
        raise ZeroDivisionError
    assert events(tmp_path) == {"loss": [(1, 0.5)]}
