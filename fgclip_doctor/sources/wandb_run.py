"""The local directories of Weights & Biases -> series and facts: `run-<id>.wandb`, and the files beside it.

A `.wandb` file is a log of LevelDB's format, blocks of 32 KiB with records that may lie across them, of messages of the
type `Record` in W&B's wandb_internal.proto. The history, one row for each call of `log`, and the configuration are read
from it; where the file is gone, as in what the website offers for download, config.yaml and wandb-summary.json tell the
configuration and the last values.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fgclip_doctor.run import Run
from fgclip_doctor.sources import text_log, trainer
from fgclip_doctor.sources.event_records import MalformedError, fields, signed, varint
from fgclip_doctor.sources.files import Unreadable, inside, open_regular, parse_json, read_json
from fgclip_doctor.sources.logged_rows import LoggedRows
from fgclip_doctor.sources.several import only_the_newest

MAGIC = b":W&B"
FILE_HEADER = 7  # bytes: the magic, another one, the version
BLOCK = 32 << 10
CHUNK = 32 * BLOCK
HEADER = struct.Struct("<IHB")  # CRC-32 of the type and the data, the length of the data, the type
LOST, FULL, FIRST, MIDDLE, LAST = 0, 1, 2, 3, 4
MAX_RECORD = 8 << 20  # bytes; longer ones are media and tables
MAX_JSON = 64 << 10  # bytes of one value
MAX_DEPTH = 6  # of objects in a value
MAX_SETTINGS = 10_000
MAX_RUNS = 10_000
FOLDER = re.compile(r"(?:offline-)?run-(\d{8}_\d{6})-(.+)")
OWN = "_"  # begins W&B's own names: _timestamp, _runtime, _wandb
STEP = "_step"

# Fields of the messages, as numbered in wandb_internal.proto
HISTORY, CONFIG, RUN, RUN_CONFIG = 2, 5, 17, 4
ITEM, KEY, NESTED_KEY, INTEGER, NUMBER, JSON, VALUE_JSON = 1, 1, 2, 5, 6, 8, 16
VALUE_TAG = b"\x82\x01"  # of VALUE_JSON


# --- the file ------------------------------------------------------------------------------------------------------


def is_history(path: Path) -> bool:
    """True if `path` is a file that begins as W&B's do. Raises `Unreadable`."""
    with open_regular(path) as descriptor:
        return os.pread(descriptor, len(MAGIC), 0) == MAGIC


@dataclass
class _Damage:
    """What of a file is no record."""

    blocks: int = 0  # whose rest was passed over
    long: int = 0
    broken: int = 0  # records that are no message
    torn: bool = False


def _records(path: Path, damage: _Damage) -> Iterator[bytes]:
    """The records of a file, as far as it was written when it was opened."""
    with open_regular(path) as descriptor:
        size, offset = os.fstat(descriptor).st_size, 0
        parts: list[bytes] = []
        held, begun = 0, False
        while offset < size:
            chunk = os.pread(descriptor, min(CHUNK, size - offset), offset)
            if not chunk:
                return  # cut meanwhile
            for start in range(0, len(chunk), BLOCK):
                block = chunk[start : start + BLOCK]
                first = FILE_HEADER if offset + start == 0 else 0
                whole = len(block) == BLOCK or offset + start + len(block) < size
                for kind, data in _block(block, first, whole, damage):
                    if kind in (LOST, FULL, FIRST):
                        parts, held, begun = [], 0, kind != LOST
                    held += len(data)
                    if held <= MAX_RECORD:
                        parts.append(data)
                    if kind in (FULL, LAST) and begun:
                        damage.long += held > MAX_RECORD
                        if held <= MAX_RECORD:
                            yield b"".join(parts)
                        begun = False
            offset += len(chunk)
        damage.torn = damage.torn or begun


def _block(block: bytes, place: int, whole: bool, damage: _Damage) -> Iterator[tuple[int, bytes]]:
    """Type and data of the pieces in a block. One that doesn't fit its checksum ends it, as its length may be wrong."""
    while place + HEADER.size <= len(block):
        stored, length, kind = HEADER.unpack_from(block, place)
        start, place = place + HEADER.size, place + HEADER.size + length
        if not (stored or length or kind):
            return  # room that was set aside
        if place > len(block) and not whole:
            damage.torn = True
            return
        data = block[start:place]
        if place > len(block) or not FULL <= kind <= LAST or zlib.crc32(data, zlib.crc32(bytes([kind]))) != stored:
            damage.blocks += 1
            yield LOST, b""
            return
        yield kind, data
    damage.torn = damage.torn or (not whole and place < len(block))


# --- what it says --------------------------------------------------------------------------------------------------


@dataclass
class _History:
    """The rows and the settings of one run, from one file or from those of several launches."""

    rows: LoggedRows = field(default_factory=LoggedRows)
    settings: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    torn: bool = False
    known: dict[bytes, str | None] = field(default_factory=dict)  # the encoded key of an item: its name

    def read(self, path: Path) -> None:
        damage = _Damage()
        try:
            for record in _records(path, damage):
                try:
                    self._record(record)
                except MalformedError:
                    damage.broken += 1
        except Unreadable as error:
            self.problems.append(str(error))
        for count, what in (
            (damage.blocks, "blocks are damaged, and the rest of each was passed over"),
            (damage.broken, "records are not what was written, and were left out"),
            (damage.long, f"records of over {MAX_RECORD:,} bytes were passed over"),
        ):
            if count:
                self.problems.append(str(Unreadable(path, f"{count:,} {what}")))
        self.torn |= damage.torn

    def _record(self, data: bytes) -> None:
        for number, wire, start, end in fields(data, 0, len(data)):
            if (number, wire) == (HISTORY, 2):
                self._row(data, start, end)
            elif (number, wire) == (CONFIG, 2):
                self._settings(data, start, end)
            elif (number, wire) == (RUN, 2):
                for inner, kind, begin, stop in fields(data, start, end):
                    if (inner, kind) == (RUN_CONFIG, 2):
                        self._settings(data, begin, stop)

    def _row(self, data: bytes, start: int, end: int) -> None:
        """One `HistoryRecord`."""
        row: dict[str, float] = {}
        for number, wire, begin, stop in fields(data, start, end):
            if (number, wire) == (ITEM, 2):
                self._item(data[begin:stop], row)
            elif (number, wire) == (2, 2):  # HistoryStep, which is left out of a step of 0
                row.setdefault(STEP, 0.0)
                for inner, kind, first, last in fields(data, begin, stop):
                    if (inner, kind) == (1, 0):
                        row[STEP] = float(signed(varint(data, first, last)[0]))
        self.rows.append(row)

    def _item(self, item: bytes, row: dict[str, float]) -> None:
        """One `HistoryItem`. Its key comes first and is the same in every row, so that is looked up as it stands."""
        cut = item.find(VALUE_TAG)
        name = self.known.get(item[:cut], "") if cut > 0 else ""
        value = item[cut + 3 :]
        if name == "" or item[cut + 2] != len(value):
            self._any_item(item, cut, row)
        elif name is not None:
            with suppress(ValueError):  # text, a switch, an object
                row[name] = float(value)

    def _any_item(self, item: bytes, cut: int, row: dict[str, float]) -> None:
        keys: list[str] = []
        value: object = None
        plain = False  # a number as text, after nothing but its key
        for number, wire, start, end in fields(item, 0, len(item)):
            if number in (KEY, NESTED_KEY) and wire == 2:
                keys.append(item[start:end].decode("utf-8", "backslashreplace"))
            elif number in (JSON, VALUE_JSON) and wire == 2:
                value, plain = _json(item[start:end]), number == VALUE_JSON and start == cut + 3 and end == len(item)
            elif (number, wire) == (NUMBER, 1):
                value = struct.unpack_from("<d", item, start)[0]
            elif (number, wire) == (INTEGER, 0):
                zigzag = varint(item, start, end)[0]
                value = (zigzag >> 1) ^ -(zigzag & 1)
        name: str | None = "/".join(keys)
        if name and name.startswith(OWN) and name != STEP:
            name = None
        if plain and not isinstance(value, Mapping) and len(self.known) < MAX_SETTINGS:
            self.known[item[:cut]] = name
        if name:
            row.update(_numbers(value, name, 0))

    def _settings(self, data: bytes, start: int, end: int) -> None:
        """One `ConfigRecord`."""
        for number, wire, begin, stop in fields(data, start, end):
            if (number, wire) != (1, 2):
                continue
            keys, value = [], None
            for inner, kind, first, last in fields(data, begin, stop):
                if inner in (KEY, NESTED_KEY) and kind == 2:
                    keys.append(data[first:last].decode("utf-8", "backslashreplace"))
                elif (inner, kind) == (VALUE_JSON, 2):
                    value = _json(data[first:last])
            if len(self.settings) < MAX_SETTINGS:
                self.settings[".".join(keys)] = value


def _json(data: bytes) -> object:
    try:
        return parse_json("", data) if len(data) <= MAX_JSON else None
    except Unreadable:
        return None


def _numbers(value: object, name: str, depth: int) -> Iterator[tuple[str, float]]:
    """The numbers in a value, under the keys that lead to them. Media are objects that name their type."""
    if isinstance(value, bool):
        return
    if isinstance(value, (int, float)) or value in ("NaN", "Infinity", "-Infinity"):
        yield name, float(value)
    elif isinstance(value, Mapping) and "_type" not in value and depth < MAX_DEPTH:
        for key, inner in value.items():
            yield from _numbers(inner, f"{name}/{key}" if name else str(key), depth + 1)


# --- directories ---------------------------------------------------------------------------------------------------


def read(path: Path) -> Run:
    """What a `.wandb` file tells. Raises `Unreadable` if it tells nothing."""
    history = _History()
    history.read(path)
    run = _run(path, history)
    if not (run.series or run.facts):
        raise Unreadable(path, "holds no history and no configuration of a run")
    return run


def beside(directory: Path) -> list[Run]:
    """What W&B left of a run in `directory`: that of the run, its files, wandb/ with several, or what holds wandb/."""
    if _is_run(directory):
        return _read_runs([directory])
    where = next((one for one in (directory, directory / "wandb") if _runs(one)), None)
    if where is None:
        return []
    launches = _runs(where)
    ids = list(dict.fromkeys(_identity(one) for one in reversed(launches)))  # the newest first
    found = _read_runs([one for one in launches if _identity(one) == ids[0]])
    if len(ids) > 1:
        newest = [next(one.name for one in reversed(launches) if _identity(one) == id_) for id_ in ids]
        found[0].notes.append(only_the_newest(where, newest))
    return found


def keeps(directory: Path) -> bool:
    """True for a directory that is W&B's own, but for `files`: the logs in it are of W&B and not of the training."""
    return any(entry.suffix == ".wandb" or FOLDER.fullmatch(entry.name) for entry in directory.iterdir())


def _is_run(directory: Path) -> bool:
    """True for the directory of one run, and for its `files`, as the website offers them."""
    names = {entry.name for entry in directory.iterdir()}
    return any(name.endswith(".wandb") for name in names) or (
        "config.yaml" in names and bool(names & {"wandb-summary.json", "wandb-metadata.json"})
    )


def _runs(directory: Path) -> list[Path]:
    """The directories of runs in `wandb/`, by the time of their launch; links, as latest-run, are left out."""
    if not directory.is_dir():
        return []
    found = [one for one in directory.iterdir() if FOLDER.fullmatch(one.name) and not one.is_symlink()]
    return sorted(found, key=lambda one: one.name.removeprefix("offline-"))[-MAX_RUNS:]


def _identity(directory: Path) -> str:
    """A run that is resumed keeps its name."""
    match = FOLDER.fullmatch(directory.name)
    return match[2] if match else directory.name


def _read_runs(launches: Sequence[Path]) -> list[Run]:
    """One run from the directories of its launches, and what it printed."""
    history, printed = _History(), []
    for directory in launches:
        for path in sorted(directory.glob("*.wandb")):
            try:
                history.read(inside(directory, path.name))
            except Unreadable as error:
                history.problems.append(str(error))
        inner = directory / "files"
        files = inner if inner.is_dir() and not inner.is_symlink() else directory
        _files(files, history)
        if files != directory:  # else it is found as any log is
            printed += text_log.beside(files)
    return [_run(launches[-1], history), *printed]


def _files(files: Path, history: _History) -> None:
    """config.yaml and wandb-summary.json, as far as the history doesn't tell the same."""
    if not history.settings and (files / "config.yaml").exists():
        from fgclip_doctor.sources import yaml_file  # PyYAML costs 20 ms, and is seldom needed

        try:
            stated = yaml_file.read(inside(files, "config.yaml"))
        except Unreadable as error:
            history.problems.append(str(error))
        else:
            values = {key: one["value"] for key, one in stated.items() if isinstance(one, dict) and "value" in one}
            history.settings.update(values)
    if not history.rows.columns and (files / "wandb-summary.json").exists():
        try:
            summary = read_json(inside(files, "wandb-summary.json"))
        except Unreadable as error:
            history.problems.append(str(error))
        else:
            last = dict(_numbers(summary, "", 0)) if isinstance(summary, Mapping) else {}
            history.rows.append({key: one for key, one in last.items() if key == STEP or not key.startswith(OWN)})


def _run(path: Path, history: _History) -> Run:
    run = Run(str(path), problems=history.problems, series=history.rows.series(str(path)))
    if history.torn:  # as a run that was killed or is under way leaves it
        run.notes.append(f"{path}: ends in the middle of a record")
    for fact in trainer.arguments(history.settings, str(path)):
        run.facts.setdefault(fact.name, fact)
    if history.rows.left_out:
        run.notes.append(f"{path}: {history.rows.left_out:,} values over the limit were left out")
    return run
