"""What MLflow leaves on disk: the stores that it wrote, cut, damaged and hostile."""

from __future__ import annotations

import gzip
import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from fgclip_doctor.sources import load, mlflow_run
from fgclip_doctor.sources.files import Unreadable
from tests.sources.trackers import FACTS, TRACKERS, facts, logged, told

MLRUNS = TRACKERS / "mlflow" / "mlruns"
NAMED = {(path.parent / "tags" / "mlflow.runName").read_text(): path.parent for path in MLRUNS.glob("0/*/meta.yaml")}


@pytest.fixture(scope="session")
def packed() -> bytes:
    return gzip.decompress((TRACKERS / "mlflow" / "mlflow.db.gz").read_bytes())


@pytest.fixture
def database(tmp_path: Path, packed: bytes) -> Path:
    (tmp_path / "mlflow.db").write_bytes(packed)
    return tmp_path / "mlflow.db"


# --- the directory


@pytest.mark.parametrize(("name", "number"), [("first", 1), ("second", 2)])
def test_a_run_in_a_directory(name: str, number: int) -> None:
    run = load([NAMED[name]])
    assert told(run) == logged(number)
    assert facts(run) == FACTS
    assert run.problems == []
    assert run.roles == {"loss.total": "train/loss", "loss.region": "train/region_loss"}
    walls = run.series["train/loss"].walls
    assert walls is not None
    assert 1.7e9 < walls.min() < walls.max() < 2e9


@pytest.mark.parametrize("path", [MLRUNS / "0", MLRUNS, MLRUNS.parent], ids=["experiment", "mlruns", "what holds it"])
def test_of_several_runs_the_newest(path: Path) -> None:
    run = load([path])
    where = path if path.name == "0" else MLRUNS
    newest, other = (NAMED[name].relative_to(where).as_posix() for name in ("second", "first"))
    assert told(run) == logged(2)
    assert run.notes == [f"{where}: holds 2 runs; read was the newest, {newest}, and not {other}"]


def test_what_was_deleted_or_never_logged_is_no_run(tmp_path: Path) -> None:
    shutil.copytree(MLRUNS, tmp_path / "mlruns")
    shutil.move(tmp_path / "mlruns" / "0" / NAMED["second"].name, tmp_path / "mlruns" / ".trash" / "second")
    empty = tmp_path / "mlruns" / "0" / "empty"
    (empty / "metrics").mkdir(parents=True)
    (empty / "meta.yaml").write_text("start_time: 99999999999999\n")
    run = load([tmp_path])
    assert told(run) == logged(1)
    assert run.problems == []


@pytest.mark.parametrize(
    ("text", "points", "problem"),
    [
        (b"1700000000000 0.5 10\n1700000001000 0.25 2", [(10, "0.5")], ""),  # still being written
        (b"1700000000000 0.5\n1700000001000 0.25\n", [(1, "0.5"), (2, "0.25")], ""),  # as long ago, without steps
        (b"1 0.5 0\n2 0.25 0\n", [(1, "0.5"), (2, "0.25")], ""),  # nobody gave a step
        (b"1 nan 1\n2 -inf 2\n3 1e400 3\n", [(1, "nan"), (2, "-inf"), (3, "inf")], ""),
        (b"1 0.5 1\n\n1 x 2\nnan 1 4\n9 1 1e9\n5 0.25 6\n", [(1, "0.5"), (6, "0.25")], "4 lines that are no points"),
        (b"1 0.5 99999999999999999999\n" + b"9" * 9_000 + b" 1 1\n", [(0, "0.5"), (1, "1.0")], ""),
        (b"\xff\xfe\x00" * 99, [], ""),
    ],
)
def test_lines_of_a_metric(tmp_path: Path, text: bytes, points: list[tuple[int, str]], problem: str) -> None:
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "loss").write_bytes(text)
    (tmp_path / "meta.yaml").write_text("start_time: 1\n")
    (run,) = mlflow_run.beside(tmp_path)
    assert told(run).get("loss", []) == points
    assert [problem in line for line in run.problems] == [True] * bool(problem)


def test_links_among_the_metrics_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("1 0.5 1\n")
    metrics = tmp_path / "run" / "metrics"
    metrics.mkdir(parents=True)
    (metrics / "link").symlink_to(tmp_path / "secret")
    (metrics / "loop").symlink_to(metrics)
    (metrics / "loss").write_text("1 0.5 1\n")
    (tmp_path / "run" / "meta.yaml").write_text("start_time: 1\n")
    assert sorted(load([tmp_path / "run"]).series) == ["loss"]


# --- the database


def test_a_run_in_a_database(database: Path) -> None:
    run = load([database])
    assert told(run) == logged(2)
    assert facts(run) == FACTS
    (problem,) = run.notes
    assert problem.startswith(f"{database}: holds 2 runs; read was the newest, second (")
    assert "and not first (" in problem
    assert told(load([database.parent])) == logged(2)
    assert sorted(path.name for path in database.parent.iterdir()) == ["mlflow.db"]


def test_one_run_is_asked_for_by_name_or_id(database: Path) -> None:
    assert told(load([database / "first"])) == logged(1)
    with closing(sqlite3.connect(database)) as connection:
        (uuid,) = connection.execute("SELECT run_uuid FROM runs WHERE name = 'first'").fetchone()
    run = load([database / uuid])
    assert told(run) == logged(1)
    assert run.problems == []
    with pytest.raises(Unreadable, match="holds no run 'third'"):
        load([database / "third"])


def test_the_database_wins_over_the_folders_beside_it(database: Path) -> None:
    shutil.copytree(MLRUNS, database.parent / "mlruns")
    for metric in database.parent.glob("mlruns/0/*/metrics/train/loss"):
        metric.write_text("1 9.5 1\n" * 99)
    assert told(load([database.parent])) == logged(2)


def test_damage_costs_a_line_at_most(tmp_path: Path, packed: bytes) -> None:
    path = tmp_path / "mlflow.db"
    random.seed(0)
    used = [place for place in range(0, len(packed), 64) if any(packed[place : place + 64])]
    for turn in range(120):
        data = bytearray(packed)
        if turn % 2:
            data = data[: random.choice(used)]
        else:
            for place in random.sample(used, 40):
                data[place + random.randrange(64)] ^= 1 << random.randrange(8)
        path.write_bytes(data)
        try:
            mlflow_run.read(path)
        except Unreadable as error:
            assert str(error).startswith(f"{path}: ")  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017


RUNS = (
    "CREATE TABLE runs (run_uuid, name, start_time, lifecycle_stage); INSERT INTO runs VALUES ('1', 'a', 5, 'active');"
)
LATEST = "CREATE TABLE latest_metrics (run_uuid); INSERT INTO latest_metrics VALUES ('1');"
PARAMS = "CREATE TABLE params (key, value, run_uuid);"
METRICS = "CREATE TABLE metrics (key, value, step, timestamp, run_uuid, is_nan);"
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
ALL = RUNS + LATEST + PARAMS + METRICS
LONG = "hex(zeroblob(900000000))"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("CREATE TABLE captions (text)", "has no table runs"),
        (ALL + "DELETE FROM latest_metrics", "holds no run with metrics"),
        (ALL + "ALTER TABLE metrics RENAME COLUMN step TO at", "no such column: step"),
        (RUNS + LATEST + PARAMS + f"CREATE VIEW metrics AS {ENDLESS} SELECT i AS step FROM n", "no table metrics"),
        (RUNS + LATEST + PARAMS + f"CREATE VIEW metrics AS SELECT {LONG} AS key", "no table metrics"),
        (RUNS + LATEST + PARAMS + "CREATE VIRTUAL TABLE metrics USING fts5(key, value)", "no table metrics"),
        (RUNS + LATEST + PARAMS + f"CREATE TABLE metrics (key AS ({LONG}), value)", "computed columns"),
        (ALL + "INSERT INTO metrics VALUES ('loss', 'much', 1, 1, '1', 0)", "could not convert string to float"),
        (ALL + "INSERT INTO metrics VALUES ('loss', 1, NULL, 1, '1', 0)", "is no point of a metric"),
        (ALL + "INSERT INTO metrics VALUES (zeroblob(9000000), 1, 1, 1, '1', 0)", "too big"),
    ],
    ids=["other", "empty", "old", "endless", "huge", "virtual", "computed", "text", "null", "long"],
)
def test_hostile_databases_are_one_line(tmp_path: Path, script: str, reason: str) -> None:
    path = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)
    for asked in (path, tmp_path):
        with pytest.raises(Unreadable, match=reason) as caught:
            load([asked])
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)


def test_patience_ends(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_run, "INSTRUCTIONS", 10)
    monkeypatch.setattr(mlflow_run, "MOST_INSTRUCTIONS", 20)
    with pytest.raises(Unreadable, match="interrupted"):
        mlflow_run.read(database)


def test_triggers_do_not_run_and_nothing_is_written(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.executescript("CREATE TRIGGER t AFTER INSERT ON runs BEGIN DELETE FROM metrics; END;")
    before = database.read_bytes()
    database.chmod(0o444)
    assert told(load([database])) == logged(2)
    assert database.read_bytes() == before
    assert sorted(path.name for path in database.parent.iterdir()) == ["mlflow.db"]


def test_a_log_ahead_of_the_database_is_told(database: Path) -> None:
    ahead = database.with_name("mlflow.db-wal")
    ahead.write_bytes(b"")
    assert len(load([database / "first"]).problems) == 0
    ahead.write_bytes(b"x")
    assert load([database / "first"]).problems[0].startswith(f"{ahead}: holds what was logged last")


@pytest.mark.parametrize("name", ["a?mode=rwc", "a b#c%41", "ä\nb"])
def test_a_name_is_no_address(tmp_path: Path, packed: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(packed)
    assert told(load([tmp_path / name])) == logged(2)
    assert [path.name for path in tmp_path.iterdir()] == [name]
