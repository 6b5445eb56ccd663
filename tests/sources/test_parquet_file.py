"""Parquet tables, as pyarrow and pandas write them, against the same rows as CSV."""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest

from fgclip_doctor.run import Run
from fgclip_doctor.sources import load, parquet_file
from fgclip_doctor.sources.files import Unreadable
from tests.sources.trackers import told

TABLE: dict[str, Any] = {
    "step": [10, 20, 30, 40],
    "epoch": [0, 0, 0, 1],
    "loss": pyarrow.array([2.0, math.nan, None, math.inf]),
    "lr": [0.5, 0.25, 1e-07, -2.5e-05],
    "half": pyarrow.array([1.5, 0.1, None, 2.0], pyarrow.float16()),
    "single": pyarrow.array([0.1, 0.2, 1e-30, 3e38], pyarrow.float32()),
    "note, quoted": ["a", "b,\n5", None, "d"],
    "box": [[1.0, 2.0]] * 4,
    "good": [True, False, None, True],
    "rank": pyarrow.array([0, 0, 1, 0], pyarrow.uint8()),
}


def write(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path, **options)
    return path


def as_csv(path: Path, columns: dict[str, Any]) -> Path:
    """The same by hand: nothing where there is no value, and nan where it is none."""
    rows = zip(*(one.to_pylist() if isinstance(one, pyarrow.Array) else one for one in columns.values()), strict=True)
    lines = [",".join("" if cell is None else str(cell) for cell in row) for row in rows]
    path.write_text("\n".join([",".join(columns), *lines]) + "\n")
    return path


def comparable(run: Run) -> object:
    return told(run), [(event.kind, event.step) for event in run.events], run.roles


def test_the_same_as_csv(tmp_path: Path) -> None:
    numbers = {name: TABLE[name] for name in ("step", "epoch", "loss", "lr", "rank")}
    table = load([write(tmp_path / "one.parquet", TABLE)])
    only = load([write(tmp_path / "two.parquet", numbers)])
    assert comparable(only) == comparable(load([as_csv(tmp_path / "log.csv", numbers)]))
    assert told(table)["loss"] == [(10, "2.0"), (20, "nan"), (40, "inf")]
    assert sorted(table.series) == ["half", "loss", "lr", "single"]
    assert [value for _, value in told(table)["half"]] == ["1.5", "0.099975586", "2.0"]
    assert [value for _, value in told(table)["single"]][:2] == ["0.1", "0.2"]


def test_many_rows_in_groups(tmp_path: Path) -> None:
    columns = {"global_step": list(range(50_000)), "train/loss": [1 / (step + 1) for step in range(50_000)]}
    for options in (
        {"row_group_size": 1_000},
        {"compression": "zstd"},
        {"compression": "gzip", "use_dictionary": False},
    ):
        run = load([write(tmp_path / "log.parquet", columns, **options)])
        assert run.series["train/loss"].steps.tolist() == columns["global_step"]
        assert run.series["train/loss"].values.tolist() == columns["train/loss"]


def test_what_pandas_wrote(tmp_path: Path) -> None:
    frame = pd.DataFrame({"loss": [2.0, 1.5], "name": ["a", "b"]}, index=pd.Index([5, 10], name="step"))
    frame.to_parquet(tmp_path / "log.parquet")
    assert told(load([tmp_path / "log.parquet"])) == {"loss": [(5, "2.0"), (10, "1.5")]}


def test_in_a_directory_what_is_called_like_a_log(tmp_path: Path) -> None:
    write(tmp_path / "train_metrics.parquet", {"step": [1, 2], "loss": [2.0, 1.5]})
    write(tmp_path / "captions.parquet", {"step": [1, 2], "score": [2.0, 1.5]})
    run = load([tmp_path])
    assert sorted(run.series) == ["loss"]
    assert run.problems == []


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"width": [1, 2], "caption": ["a", "b"]}, "has no column that is a step or a metric"),
        ({"caption": ["a", "b"]}, "has no column that is a step or a metric"),
        ({"step": pyarrow.array([], pyarrow.int64()), "loss": pyarrow.array([], pyarrow.float64())}, "nothing in it"),
        ({f"loss {number}": [1.0] for number in range(2_001)}, "2,001 columns, which is more than a log"),
        ({"step": [1] * 8_000_001}, "8,000,001 rows"),
    ],
    ids=["other", "text", "empty", "wide", "long"],
)
def test_what_is_no_log(tmp_path: Path, columns: dict[str, Any], reason: str) -> None:
    path = write(tmp_path / "log.parquet", columns)
    with pytest.raises(Unreadable, match=reason) as caught:
        load([path])
    assert str(caught.value).startswith(f"{path}: ")


def test_names_given_twice(tmp_path: Path) -> None:
    table = pyarrow.table([[1, 2], [2.0, 1.5], [3.0, 4.0]], names=["step", "loss", "loss"])
    pyarrow.parquet.write_table(table, tmp_path / "log.parquet")
    with pytest.raises(Unreadable, match="two columns of the same name"):
        load([tmp_path / "log.parquet"])


def test_a_bomb_is_refused_by_what_it_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_file, "MAX_GROUP", 1 << 20)
    path = write(tmp_path / "log.parquet", {"loss": [0.0] * 200_000}, compression="zstd", use_dictionary=False)
    assert path.stat().st_size < 10_000
    with pytest.raises(Unreadable, match="once decompressed"):
        load([path])


def test_without_pyarrow_a_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "log.parquet", {"step": [1], "loss": [2.0]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(Unreadable, match=r"log\.parquet: is a Parquet table.*pip install pyarrow$"):
        load([path])


def test_cut_or_damaged_anywhere(tmp_path: Path) -> None:
    numbers = {name: TABLE[name] for name in ("step", "loss", "lr")}
    data = write(tmp_path / "log.parquet", numbers).read_bytes()
    path = tmp_path / "damaged.parquet"
    random.seed(0)
    for turn in range(len(data) + 500):
        damaged = bytearray(data)
        if turn < len(data):
            damaged = damaged[:turn]
        else:
            for _ in range(random.choice((1, 1, 4))):
                damaged[random.randrange(4, len(data))] ^= 1 << random.randrange(8)
        path.write_bytes(damaged)
        try:
            parquet_file.read(path)
        except Unreadable as error:
            assert str(error).startswith(f"{path}: ")  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017
        else:
            assert turn >= len(data)
