"""CSV, TSV, columns parted by blanks, and JSON lines."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from fgclip_doctor.run import Run
from fgclip_doctor.sources import tables, text_log
from fgclip_doctor.sources.files import Unreadable

ROWS = [(10, 2.0, 0.5), (20, math.nan, 0.25), (30, 1.5, 1e-07), (40, math.inf, -2.5e-05)]


def read(tmp_path: Path, text: str, name: str = "metrics") -> Run:
    path = tmp_path / name
    path.write_text(text)
    return text_log.read(path)


def delimited(delimiter: str) -> str:
    return "".join(delimiter.join(map(str, row)) + "\n" for row in [("step", "loss", "lr"), *ROWS])


@pytest.mark.parametrize(
    "text",
    [
        delimited(","),
        delimited("\t"),
        delimited(";"),
        delimited("   "),
        "".join(json.dumps({"step": step, "loss": loss, "lr": lr}) + "\n" for step, loss, lr in ROWS),
        "".join(json.dumps({"loss": str(loss), "lr": str(lr), "step": step}) + "\n" for step, loss, lr in ROWS),
        "".join(f"{{'loss': {loss}, 'lr': {lr}, 'step': {step}}}\n" for step, loss, lr in ROWS),
        "".join(f"step {step} | loss: {loss} | lr: {lr}\n" for step, loss, lr in ROWS),
    ],
    ids=["csv", "tsv", "semicolons", "blanks", "jsonl", "jsonl-of-strings", "dicts", "text"],
)
def test_the_same_run_however_it_was_written(tmp_path: Path, text: str) -> None:
    run = read(tmp_path, text)
    assert sorted(run.series) == ["loss", "lr"]
    for place, name in ((1, "loss"), (2, "lr")):
        assert run.series[name].steps.tolist() == [row[0] for row in ROWS]
        np.testing.assert_array_equal(run.series[name].values, [row[place] for row in ROWS])


def test_the_header_again_is_a_restart(tmp_path: Path) -> None:
    run = read(tmp_path, "step,loss\n1,3.0\n2,2.5\nstep,loss\n1,2.4\n2,2.2\n")
    assert run.series["loss"].steps.tolist() == [1, 2, 1, 2]
    assert [(event.kind, event.step) for event in run.events] == [("resume", 1)]


def test_objects_within_json_lines_give_names_with_their_keys(tmp_path: Path) -> None:
    run = read(
        tmp_path, '{"step": 5, "train": {"loss": 1.5, "lr": [0.1, 0.2]}, "time": "2024-01-01", "ok": true}\n' * 2
    )
    assert sorted(run.series) == ["train/loss", "train/lr/0", "train/lr/1"]


def test_empty_and_quoted_cells(tmp_path: Path) -> None:
    run = read(tmp_path, 'step,"loss, region",note\n1,"1.5","a, b"\n2,,\n3,"1.25",7\n')
    assert run.series["loss, region"].values.tolist() == [1.5, 1.25]
    assert run.series["loss, region"].steps.tolist() == [1, 3]


@pytest.mark.parametrize(
    "text",
    [
        '{"image": "a.jpg", "caption": "two dogs", "box": [1, 2, 3, 4]}\n' * 5,  # a data set, not a log
        "name,width\na,5\nb,6\n",
        "[1, 2]\n[3, 4]\n",
        '{"a": ' * 500 + "\n",
    ],
)
def test_what_is_no_log_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(Unreadable, match="nothing in it is understood"):
        read(tmp_path, text)


def test_prose_is_no_table() -> None:
    assert tables.recognise("step 1, loss 2.0, lr 0.1\nstep 2, loss 1.9, lr 0.1\n") is None
    assert tables.recognise("") is None
