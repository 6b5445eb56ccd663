"""MLflow's local stores -> series and facts of a run: the database (mlflow.db), and the older directory, mlruns/.

In a directory a run is a folder with meta.yaml, and with one file for each metric and parameter. A database is read
without being locked or written to, and whatever it defines beside plain tables is left alone.
"""

from __future__ import annotations

import os
import re
import sqlite3
from array import array
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np

from fgclip_doctor.run import Run, Series, Source
from fgclip_doctor.sources import trainer
from fgclip_doctor.sources.facts import typed
from fgclip_doctor.sources.files import Unreadable, inside, open_regular, read_at
from fgclip_doctor.sources.logged_rows import MAX_COLUMNS, MAX_VALUES, whole
from fgclip_doctor.sources.several import only_the_newest

MAGIC = b"SQLite format 3\0"
DATABASES = ("mlflow.db", "mlruns.db")
MAX_DATABASE = 64 << 30  # bytes
MAX_TEXT = 1 << 20  # bytes of a row
MAX_RUNS = 1_000
MAX_ENTRIES = 100_000  # of directories
MAX_PARAMETERS = 10_000
MAX_PARAMETER = 8_000  # characters, MLflow's own limit
MAX_FILE = 256 << 20  # bytes of a metric
DEPTH = 6  # of folders within metrics/ and params/: "train/loss" is a file in a folder
TABLES = ("runs", "latest_metrics", "metrics", "params")
INSTRUCTIONS = 100_000  # of SQLite, after which it is asked whether to go on
MOST_INSTRUCTIONS = 20_000  # times so many: about a minute
INFINITE = 1.7976931348623157e308  # what stands for it in a database
OF_THE_MACHINE = "system/"  # begins the names of metrics that tell of the machine, not of the training

Point = tuple[str, float, int, int]  # name, value, step, milliseconds since the epoch


def _run(path: Path, points: Iterable[Point], parameters: dict[str, str], problems: list[str]) -> Run:
    columns: dict[str, tuple[array[float], array[float], array[int]]] = {}
    left_out = 0
    for count, (name, value, step, milliseconds) in enumerate(points):
        if count >= MAX_VALUES or (name not in columns and len(columns) >= MAX_COLUMNS):
            left_out += 1
        elif not name.startswith(OF_THE_MACHINE):
            values, steps, times = columns.setdefault(name, (array("d"), array("d"), array("q")))
            values.append(value)
            steps.append(step)
            times.append(milliseconds)
    run = Run(str(path), problems=problems)
    for name, (values, steps, times) in columns.items():
        counted = whole(np.frombuffer(steps))
        if not counted.any():  # nobody said at which step
            counted = np.arange(1, len(counted) + 1)
        walls = np.frombuffer(times, np.int64) / 1000
        run.series[name] = Series(name, counted, np.frombuffer(values), Source(str(path), name), walls=walls)
    stated = {name.replace("/", "."): typed(value) for name, value in parameters.items()}
    run.facts = {fact.name: fact for fact in trainer.arguments(stated, str(path))}
    if left_out:
        run.notes.append(f"{path}: {left_out:,} values over the limit were left out")
    return run


# --- the directory -------------------------------------------------------------------------------------------------


def beside(directory: Path) -> list[Run]:
    """What MLflow left of a run in `directory`: that of the run, one with the runs of an experiment or of several, or
    what holds mlruns/ or a database, which wins: beside it the folders are its artifacts, or what it was made from."""
    if _is_run(directory):
        return [_read_folder(directory)]
    problems = []
    for name in DATABASES:
        if (directory / name).exists():
            try:
                return [read(inside(directory, name))]
            except Unreadable as error:
                problems.append(str(error))
    for where in (directory, directory / "mlruns"):
        if runs := _newest_first(where):
            found = _read_folder(runs[0])
            if len(runs) > 1:
                found.notes.append(only_the_newest(where, [run.relative_to(where).as_posix() for run in runs]))
            found.problems += problems
            return [found]
    return [Run(str(directory), problems=problems)] if problems else []


def _is_run(directory: Path) -> bool:
    return (directory / "meta.yaml").is_file() and (directory / "metrics").is_dir()


def _newest_first(where: Path) -> list[Path]:
    """The runs that logged something, in the folder of an experiment or in that of all of them."""
    if not where.is_dir():
        return []
    folders = [one for one in where.iterdir() if _is_folder(one)][:MAX_RUNS]
    runs = [one for one in folders if _is_run(one)]
    for experiment in folders if not runs else []:
        if (experiment / "meta.yaml").is_file():
            runs += [one for one in experiment.iterdir() if _is_folder(one) and _is_run(one)]
    logged = [one for one in runs[:MAX_RUNS] if any((one / "metrics").iterdir())]
    return sorted(logged, key=lambda one: (_started(one), one.name), reverse=True)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not path.name.startswith(".")  # .trash holds what was deleted


def _started(run: Path) -> int:
    """When a run began, in milliseconds since the epoch; -1 where that isn't said."""
    try:
        match = re.search(r"^start_time: *(\d{1,18})\s*$", _text(run / "meta.yaml"), re.MULTILINE)
    except Unreadable:
        return -1
    return int(match[1]) if match else -1


def _read_folder(directory: Path) -> Run:
    problems: list[str] = []

    def points() -> Iterator[Point]:
        for name, path in _files(directory / "metrics"):
            try:
                yield from _points(name, path)
            except Unreadable as error:
                problems.append(str(error))

    parameters = {}
    for name, path in _files(directory / "params"):
        try:
            parameters[name] = _text(path)
        except Unreadable as error:
            problems.append(str(error))
    return _run(directory, points(), parameters, problems)


def _files(folder: Path, depth: int = DEPTH) -> Iterator[tuple[str, Path]]:
    """Name and path of every file in `folder` and below. Links aren't followed."""
    there = folder.is_dir() and not folder.is_symlink()
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)[:MAX_ENTRIES] if there else []
    for entry in entries:
        path = folder / entry.name
        if entry.is_dir(follow_symlinks=False) and depth:
            yield from ((f"{entry.name}/{name}", one) for name, one in _files(path, depth - 1))
        elif not entry.is_symlink() and not entry.is_dir():
            yield entry.name, path


def _text(path: Path) -> str:
    with open_regular(path) as descriptor:
        return os.pread(descriptor, 4 * MAX_PARAMETER, 0).decode("utf-8", "replace")


def _points(name: str, path: Path) -> Iterator[Point]:
    """The lines of a metric's file: milliseconds, value, step. A last line without its end may still be written."""
    with open_regular(path) as descriptor:
        size = os.fstat(descriptor).st_size
        if size > MAX_FILE:
            raise Unreadable(path, f"is too large for a metric ({size:,} bytes; the limit is {MAX_FILE:,})")
        lines = read_at(descriptor, path, 0, size).split(b"\n")[:-1]
    strange = 0
    for line in lines:
        try:
            milliseconds, value, step = [*line.split(), b"0"][:3]  # at first there was no step
            yield name, float(value), int(step), int(float(milliseconds)) if len(milliseconds) < 20 else 0
        except (ValueError, OverflowError):
            strange += 1
    if strange:
        raise Unreadable(path, f"has {strange:,} lines that are no points of a metric")


# --- the database --------------------------------------------------------------------------------------------------


class _Known(NamedTuple):
    """A run in a database."""

    uuid: str
    name: str


def is_database(path: Path) -> bool:
    """True if `path` is a file that begins as SQLite's do. Raises `Unreadable`."""
    with open_regular(path) as descriptor:
        return os.pread(descriptor, len(MAGIC), 0) == MAGIC


def is_within_database(path: Path) -> bool:
    """True for `mlflow.db/NAME`, which is how one run of several is asked for."""
    return not path.exists() and path.parent.is_file() and is_database(path.parent)


def read(path: Path, wanted: str | None = None) -> Run:
    """The newest run in a database that logged something, or the one with the name or the id `wanted`.

    Raises `Unreadable` if there is none.
    """
    with open_regular(path) as descriptor:
        if os.fstat(descriptor).st_size > MAX_DATABASE:
            raise Unreadable(path, "is too large for a database")
    problems: list[str] = []
    notes: list[str] = []
    ahead = path.with_name(f"{path.name}-wal")
    if ahead.exists() and ahead.stat().st_size:
        problems.append(str(Unreadable(ahead, "holds what was logged last, and isn't read")))
    try:
        with closing(_opened(path)) as connection:
            query = """SELECT run_uuid, name FROM runs
                WHERE lifecycle_stage = 'active' AND run_uuid IN (SELECT run_uuid FROM latest_metrics)
                ORDER BY start_time DESC LIMIT ?"""
            runs = [_Known(str(uuid), str(name or "")) for uuid, name in connection.execute(query, (MAX_RUNS,))]
            chosen = next((run for run in runs if wanted in (None, run.uuid, run.name)), None)
            if chosen is None:
                raise Unreadable(path, f"holds no run {wanted!r}" if wanted else "holds no run with metrics")
            if len(runs) > 1 and wanted is None:
                names = [f"{run.name} ({run.uuid})" if run.name else run.uuid for run in runs]
                notes.append(only_the_newest(path, names))
            query = "SELECT key, value FROM params WHERE run_uuid = ? LIMIT ?"
            rows = connection.execute(query, (chosen.uuid, MAX_PARAMETERS))
            parameters = {str(key): str(value)[:MAX_PARAMETER] for key, value in rows}
            run = _run(path, _stored_points(connection, chosen.uuid), parameters, problems)
            run.notes += notes
            return run
    except (sqlite3.Error, ValueError, OverflowError) as error:
        raise Unreadable(path, f"can't be read as MLflow's database: {error}") from error


def _opened(path: Path) -> sqlite3.Connection:
    """A connection for reading the tables of runs. Raises `Unreadable` if they aren't plain tables.

    Views, virtual tables and computed columns could call functions that take minutes a row.
    """
    # immutable: no lock is taken and no file is made beside it, though a training may be writing
    uri = f"file:{quote(os.fsencode(path.absolute()))}?mode=ro&immutable=1"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None)
    connection.text_factory = lambda text: text.decode("utf-8", "replace")
    connection.execute("PRAGMA trusted_schema = OFF")  # no function with side effects from within the schema
    connection.execute("PRAGMA cell_size_check = ON")
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_TEXT)
    asked = 0

    def impatient() -> bool:
        nonlocal asked
        asked += 1
        return asked > MOST_INSTRUCTIONS

    connection.set_progress_handler(impatient, INSTRUCTIONS)
    stored = "SELECT name FROM sqlite_master WHERE type = 'table' AND rootpage > 0"
    plain = {name for (name,) in connection.execute(stored)}
    for table in TABLES:
        if table not in plain:
            raise Unreadable(path, f"has no table {table}, as MLflow's databases have")
        if any(hidden for *_, hidden in connection.execute(f"PRAGMA table_xinfo({table})")):
            raise Unreadable(path, f"has a table {table} with computed columns, which MLflow's databases don't have")
    return connection


def _stored_points(connection: sqlite3.Connection, uuid: str) -> Iterator[Point]:
    """Raises `ValueError` for what is no point."""
    query = "SELECT key, value, step, timestamp, is_nan FROM metrics WHERE run_uuid = ? ORDER BY rowid LIMIT ?"
    for key, value, step, milliseconds, is_nan in connection.execute(query, (uuid, MAX_VALUES + 1)):
        if not (isinstance(key, str) and isinstance(step, int) and isinstance(milliseconds, int)):
            raise ValueError(f"{key!r:.80} at {step!r:.80} is no point of a metric")
        number = float("nan") if is_nan else float(value)
        yield key, number if abs(number) < INFINITE else number * float("inf"), step, milliseconds
