"""Tables -> the same records as the lines of a text log: CSV, TSV, columns parted by blanks, and JSON lines.

A row is read by the skeleton of its line, like any other line: the header or the key names what stands where.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import inf, nan
from pathlib import Path

from fgclip_doctor.run import Run
from fgclip_doctor.sources import records, trainer
from fgclip_doctor.sources.decimals import Number, parsed_number
from fgclip_doctor.sources.files import Unreadable, read_json
from fgclip_doctor.sources.records import EPOCH, METRIC, RANK, Clock, Reading, Record, Understand

HEAD = 64 << 10  # bytes that show whether a file is a table
LOOKED_AT = 20  # rows
MAX_COLUMNS = 2_000
MAX_DEPTH = 6  # of objects in a JSON line
MAX_NAME = 100
MAX_ITEMS = 16  # of a list in a JSON line
DELIMITERS = (",", "\t", ";", "|", None)  # None: blanks
NUMBER = re.compile(r"[-+]?(?:0(?:\.0?)?|\.0)(?:[eE][-+]?0)?(?![\w.])")
NOT_FINITE = {"nan": nan, "inf": inf, "+inf": inf, "-inf": -inf, "infinity": inf, "-infinity": -inf}
MARK = re.compile(r"\ue000(\d+)\ue001")


def recognise(head: str) -> Understand | None:
    """How to read the rows of a table that begins with `head`; None for what is no table."""
    lines = [line for line in head.splitlines()[: 3 * LOOKED_AT] if line.strip()][:LOOKED_AT]
    if not lines:
        return None
    if (
        sum(line.lstrip().startswith("{") and line.rstrip().endswith("}") and '"' in line for line in lines)
        > len(lines) / 2
    ):
        return JsonLines() if any(isinstance(_object(line), Mapping) for line in lines) else None
    for delimiter in DELIMITERS:
        header = _cells(lines[0], delimiter)
        rows = [_cells(line, delimiter) for line in lines[1:-1] or lines[1:]]  # the last one may be cut off
        if _is_header(header) and rows and all(_fits(row, header) for row in rows):
            return Table(header, delimiter)
    return None


def history(path: Path, head: str) -> Run | None:
    """What a whole JSON document says that keeps a history of records, as trainer_state.json does; None for others."""
    if not re.match(r"\s*\{\s*\n\s*\"", head):  # JSON lines have a whole object on each
        return None
    content = read_json(path)
    entries = content.get("log_history") if isinstance(content, Mapping) else None
    series = trainer.series(entries, str(path))
    if not series:
        raise Unreadable(path, "keeps no log_history")
    return Run(str(path), facts={fact.name: fact for fact in trainer.facts(content, str(path))}, series=series)


def _cells(line: str, delimiter: str | None) -> list[str]:
    if delimiter is None:
        return line.split()
    row = next(csv.reader([line.strip("\r\n").removeprefix("# ")], delimiter=delimiter), [])
    return [cell.strip().strip("\ufeff") for cell in row]


def _is_header(cells: list[str]) -> bool:
    names = [cell for cell in cells if cell]
    return (
        1 < len(names) <= MAX_COLUMNS
        and len(set(names)) == len(names)
        and not any(_is_number(name) for name in names)
        and any(records.clock(name) or EPOCH.fullmatch(name.lower()) or METRIC.search(name) for name in names)
    )


def _fits(row: list[str], header: list[str]) -> bool:
    return len(row) == len(header) and (row == header or any(map(_is_number, row)))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


class Table:
    """The rows under a header. A header that stands there again, as a restart writes it, names the columns anew."""

    def __init__(self, header: list[str], delimiter: str | None) -> None:
        self._header = header
        self._delimiter = delimiter

    def __call__(self, skeleton: str, line: str) -> Reading:
        cells = _cells(skeleton, self._delimiter)
        if not any(NUMBER.fullmatch(cell) or cell.lower() in NOT_FINITE for cell in cells):
            return records.NOTHING
        if len(cells) != len(self._header):
            return records.NOTHING
        run = 0
        fields: list[tuple[str, Number]] = []
        for name, cell in zip(self._header, cells, strict=True):
            if NUMBER.fullmatch(cell):
                fields.append((name, parsed_number(cell, run)))
            elif cell.lower() in NOT_FINITE:
                fields.append((name, Number(constant=NOT_FINITE[cell.lower()])))
            run += cell.count("0")
        return Reading((_record(fields),))


class JsonLines:
    """JSON lines. Where they name an iteration beside the step, as mmengine's do, one without is an evaluation, whose
    step is an epoch.
    """

    def __init__(self) -> None:
        self._iterations = False

    def __call__(self, skeleton: str, line: str) -> Reading:
        reading = understand_json(skeleton, line)
        if '"iter":' in skeleton:
            self._iterations = self._iterations or '"step":' in skeleton
        elif self._iterations:
            found = tuple(Record(record.values, heading="eval").finished() for record in reading.records)
            return replace(reading, records=found)
        return reading


def understand_json(skeleton: str, line: str) -> Reading:
    """What JSON lines with this skeleton say: the skeleton is read as JSON, each number in it marked by its place."""
    numbers: list[Number] = []
    parts: list[str] = []
    end = run = 0
    for match in NUMBER.finditer(skeleton):
        run += skeleton.count("0", end, match.start())
        before, after = skeleton[match.start() - 1 : match.start()], skeleton[match.end() : match.end() + 1]
        if before in ('"', ":", " ", "[", ",") and after in ('"', ",", " ", "}", "]"):
            mark = f"\ue000{len(numbers)}\ue001"
            numbers.append(parsed_number(match[0], run))
            parts += [skeleton[end : match.start()], mark if before == after == '"' else f'"{mark}"']
        else:
            parts.append(skeleton[end : match.end()])
        run += match[0].count("0")
        end = match.end()
    content, stated = _object("".join(parts) + skeleton[end:]), _object(line)
    if not isinstance(content, Mapping) or not isinstance(stated, Mapping):
        return records.NOTHING
    fields = [
        (name, numbers[int(value[1])] if isinstance(value, re.Match) else Number(constant=value))
        for name, value in _flat(content, "", 0)
    ]
    return Reading((_record(fields[:MAX_COLUMNS]),), facts=dict(stated))


def _object(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _flat(value: object, name: str, depth: int) -> Iterator[tuple[str, re.Match[str] | float]]:
    """The numbers in an object, under the keys that lead to them."""
    if isinstance(value, str):
        match = MARK.fullmatch(value)
        if match:
            yield name, match
        elif value.lower() in NOT_FINITE:
            yield name, NOT_FINITE[value.lower()]
    elif isinstance(value, float):  # NaN and infinities are the only numbers that were not marked
        yield name, value
    elif isinstance(value, Mapping) and depth < MAX_DEPTH:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}/{key}" if name else str(key), depth + 1)
    elif isinstance(value, list) and len(value) <= MAX_ITEMS and depth < MAX_DEPTH:
        for place, inner in enumerate(value):
            yield from _flat(inner, f"{name}/{place}", depth + 1)


def _record(fields: list[tuple[str, Number]]) -> Record:
    record = Record()
    for name, number in fields:
        known, lower = records.clock(name), name.lower()
        whole = number.fraction is None and number.constant is None
        if EPOCH.fullmatch(lower):
            if whole:
                record.epoch = number
            else:
                record.share, record.clock = number, max(record.clock, Clock.SHARE)
        elif RANK.fullmatch(lower) and whole:
            record.rank = number
        elif known is not Clock.NONE and whole:
            if known > record.clock:
                record.step, record.clock = number, known
        elif name and len(name) <= MAX_NAME:
            record.values[name] = number
    return record.finished()
