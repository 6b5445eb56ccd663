"""Lines of a log -> series, facts and events. What a kind of line means is a `Reading`; here it becomes columns.

A `Reading` says which numbers of a line are the step, the epoch, and values under which names. `collect` asks for one
for each kind of line that a file has, and applies it to all lines of that kind at once.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from fgclip_doctor.inert import inert
from fgclip_doctor.run import Event, Remark, Run, Series, Source
from fgclip_doctor.sources import trainer
from fgclip_doctor.sources.decimals import Columns, Number
from fgclip_doctor.sources.files import Unreadable
from fgclip_doctor.sources.records import (
    MAX_ALL_POINTS,
    MAX_RECORDS,
    MAX_SERIES,
    MAX_STEP,
    METRIC,
    Clock,
    Reading,
    Record,
    Understand,
)
from fgclip_doctor.sources.remarks import Said
from fgclip_doctor.sources.skeletons import MAX_LINE, Block, chunks

MAX_KINDS = 10_000  # kinds of lines in a file; what comes after so many is left out
MAX_KINDS_BYTES = 32 << 20
MAX_VARIANTS = 20_000  # readings of lines whose names have numbers in them
MAX_POINTS = 1 << 20  # values kept of a series; of more, every other stretch is dropped
STRETCH = 1 << 10
MAX_NAMES = 512  # that remarks of one kind name
PIECES = 64  # arrays of a series before they are joined to one
MAX_RESUMES = 64


@dataclass(slots=True)
class _Kind:
    """A kind of line, and what it means."""

    skeleton: bytes
    reading: Reading
    variants: dict[tuple[bytes, ...], Reading] = field(default_factory=dict)


@dataclass
class Log:
    """What a log says, and how much of it was understood."""

    run: Run
    lines: int
    understood: int  # lines that say something
    kinds: int
    notes: list[str] = field(default_factory=list)


def collect(path: str | os.PathLike[str], understand: Understand, texts: Iterable[bytes] | None = None) -> Log:
    """The series, facts and events of a log, or of `texts`, the whole lines made of one that is no text itself.

    Raises `Unreadable` if it has none.
    """
    reader = _Reader(os.fspath(path), understand)
    for text in chunks(path) if texts is None else texts:
        reader.take(text)
    log = reader.finish()
    if not (reader.measured and log.run.series) and not log.run.facts and not log.run.remarks:
        raise Unreadable(path, "nothing in it is understood as the log of a training")
    return log


def explain(path: str | os.PathLike[str], understand: Understand) -> Iterator[str]:
    """What was understood of a log, line by line, and a summary."""
    reader, before = _Reader(os.fspath(path), understand), 0
    for text in chunks(path):
        reader.take(text)
        block = Block(text)
        said = [""] * len(block)
        for kind, rows, columns in reader.alike(block):
            for reading, part in reader.readings(kind, rows, columns, block):
                for row in part.tolist():
                    said[rows[row]] = _said(reading, columns.of(np.array([row])))
        for row, number in enumerate(block.line_numbers.tolist()):
            if block.line(row).strip():
                yield f"{before + number + 1}: {said[row] or '-'}"
        before += text.count(b"\n")
    log = reader.finish()
    yield f"{inert(log.run.subject)}: {log.lines:,} lines of {log.kinds:,} kinds, {log.understood:,} understood"
    yield from summary(log.run)
    yield from (f"  {note}" for note in log.notes)


def summary(run: Run) -> Iterator[str]:
    """The series, facts and events of a log, a line each."""
    for series in run.series.values():
        steps = f"steps {series.steps.min()} to {series.steps.max()}"
        yield f"  {inert(series.name)}: {len(series.values):,} values, {steps}"
    yield from (f"  {fact.name} = {inert(str(fact.value))} ({inert(fact.source.key)})" for fact in run.facts.values())
    yield from (f"  {event.kind} at step {event.step}: {inert(event.detail)}" for event in run.events)
    yield from (
        f"  {remark.kind}: {len(remark.steps):,} lines, from line {remark.source.line}" for remark in run.remarks
    )


def _said(reading: Reading, line: Columns) -> str:
    said = [_told(record, line) for record in reading.records]
    said += [f"bank on: {inert(reading.bank_on)}"] if reading.bank_on else []
    said += [reading.said.kind] if reading.said else []
    known = ", ".join(f"{fact.name} = {fact.value}" for fact in trainer.facts(reading.facts, ""))
    said += [f"arguments: {inert(known)}"] if known and not reading.records else []
    return "; ".join(said)


def _told(record: Record, line: Columns) -> str:
    def shown(number: Number) -> str:
        return f"{line.values(number)[0][0]:g}"

    parts = [f"rank {shown(record.rank)}"] if record.rank else []
    parts += [f"epoch {shown(record.epoch)}"] if record.epoch else []
    if record.step:
        of = f" of {shown(record.total)}" if record.total else ""
        parts.append(f"step {shown(record.step)}{of} ({record.clock.name.lower()}{', samples' * record.samples})")
    parts += [f"{inert(name)} = {shown(number)}" for name, number in record.values.items()]
    parts += [f"[{inert(name)} {shown(number)} left out]" for name, number in record.left_out.items()]
    return ", ".join(parts)


# --- columns -----------------------------------------------------------------------------------------------------


class _Column:
    """The values of one series as they come in, within a limit."""

    def __init__(self) -> None:
        self._steps: list[NDArray[np.int64]] = []
        self._values: list[NDArray[np.float64]] = []
        self._held = 0
        self.thinned = False
        self.place: int | None = None  # the smallest power of ten that a value was printed to

    def printed(self, place: int | None) -> None:
        if place is not None:
            self.place = place if self.place is None else min(self.place, place)

    def add(self, steps: NDArray[np.int64], values: NDArray[np.float64], limit: int) -> None:
        self._steps.append(steps)
        self._values.append(values)
        self._held += len(steps)
        if self._held > limit:
            steps, values = self.arrays()
            kept = (np.arange(len(steps)) // STRETCH % 2 == 0) | ~np.isfinite(values)
            kept[limit:] &= np.arange(limit, len(steps)) // STRETCH % 2 == 0  # however many are not finite
            self._steps, self._values = [steps[kept]], [values[kept]]
            self._held = int(kept.sum())
            self.thinned = True
        elif len(self._steps) > PIECES:
            steps, values = self.arrays()
            self._steps, self._values = [steps], [values]

    def arrays(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        return np.concatenate(self._steps), np.concatenate(self._values)


@dataclass(slots=True)
class _Remarks:
    """The lines that say one thing in words, as they come in."""

    line: int  # the first of them
    names: dict[str, None] = field(default_factory=dict)
    steps: _Column = field(default_factory=_Column)


@dataclass(slots=True)
class _Rows:
    """The records of some lines that are read alike. `keys` order them: the line, then the place in it."""

    keys: NDArray[np.int64]
    record: Record
    steps: NDArray[np.int64]  # -1 where there is none
    epochs: NDArray[np.int64]
    totals: NDArray[np.int64]  # -1 where there is none, or where it is in the step
    values: dict[str, tuple[NDArray[np.float64], int | None]]


class _Reader:
    def __init__(self, path: str, understand: Understand) -> None:
        self._path = path
        self._understand = understand
        self._kinds: dict[bytes, _Kind] = {}  # by skeleton
        self._kinds_bytes = self._variants = 0
        self._columns: dict[str, _Column] = {}
        self._stated: dict[str, object] = {}
        self._bank_on: tuple[int, int, str] | None = None
        self._resumes: list[tuple[int, int, int]] = []
        self._remarks: dict[str, _Remarks] = {}
        self._lines = self._understood = self._left_out = 0
        self.measured = False  # a line of the training itself was seen: what comes now is not its arguments
        self._rank: int | None = None
        self._clock = Clock.NONE
        self._bar_total: int | None = None
        self._unit = 0  # greatest common divisor of counted samples
        self._in_samples = True
        self._first_epoch: int | None = None
        self._epoch = self._step = -1  # the latest
        self._raw, self._stride, self._offset, self._step_epoch = -1, 1, 0, -1

    # --- kinds of lines

    def alike(self, block: Block) -> Iterator[tuple[_Kind, NDArray[np.int64], Columns]]:
        """The lines of each kind that says something, and their numbers."""
        for skeleton in block.first:
            kind = self._kinds.get(skeleton)
            if kind and kind.reading.says:
                for rows, columns in block.alike(skeleton):
                    yield kind, rows, columns

    def _learn(self, block: Block) -> bool:
        """Read a line of each kind that was not met before. True if one of all goes on in the line after it."""
        unfinished = False
        for skeleton, row in block.first.items():
            kind = self._kinds.get(skeleton)
            if kind is None:
                line = block.line(row)
                if len(line) > MAX_LINE or len(self._kinds) >= MAX_KINDS or self._kinds_bytes > MAX_KINDS_BYTES:
                    self._left_out += block.count(skeleton)
                    continue
                kind = self._kinds[skeleton] = _Kind(skeleton, self._read(skeleton, line))
                self._kinds_bytes += len(skeleton)
            unfinished = unfinished or kind.reading.unfinished
        return unfinished

    def _read(self, skeleton: bytes, line: bytes) -> Reading:
        reading = self._understand(_decoded(skeleton), _decoded(line))
        self.measured = self.measured or reading.measures
        if not self.measured:
            for record in reading.records:
                record.values = {name: one for name, one in record.values.items() if METRIC.search(name)}
        if not reading.facts or (self.measured and not reading.stated):
            return reading
        stated = any(trainer.facts(reading.facts, self._path))
        for name, value in reading.facts.items():
            self._stated.setdefault(name, value)
        return replace(reading, records=()) if stated and not reading.bank_on else reading

    def readings(
        self, kind: _Kind, rows: NDArray[np.int64], columns: Columns, block: Block
    ) -> Iterator[tuple[Reading, NDArray[np.int64]]]:
        """What lines of a kind say, each with which of them say it: several where numbers stand in their names."""
        if not kind.reading.fixed:
            yield kind.reading, np.arange(len(rows))
            return
        for names, part in columns.parted(kind.reading.fixed):
            if names not in kind.variants and self._variants < MAX_VARIANTS:
                self._variants += 1
                kind.variants[names] = self._read(kind.skeleton, block.line(rows[part[0]]))
            if names in kind.variants:
                yield kind.variants[names], part

    # --- lines

    def take(self, text: bytes) -> None:
        """Read some whole lines."""
        block = Block(text)
        newlines = block.newlines
        if self._learn(block):
            block = Block(_joined(text))
            self._learn(block)
        records: list[_Rows] = []
        banks: list[tuple[int, str]] = []
        said: list[tuple[NDArray[np.int64], Said]] = []
        for kind, rows, columns in self.alike(block):
            self._understood += len(rows)
            for reading, part in self.readings(kind, rows, columns, block):
                if reading.bank_on and self._bank_on is None:
                    banks.append((int(rows[part[0]]), reading.bank_on))
                if reading.said:
                    said.append((rows[part], reading.said))
                some = columns if len(part) == len(rows) else columns.of(part)
                for place, record in enumerate(reading.records):
                    records.append(self._rows(record, rows[part] * MAX_RECORDS + place, some))
        self._assemble([one for one in records if len(one.keys)], banks, said, block)
        self._lines += newlines

    def _rows(self, record: Record, keys: NDArray[np.int64], columns: Columns) -> _Rows:
        if record.rank is not None:  # every rank logs the same
            ranks = _whole(columns.values(record.rank)[0])
            if self._rank is None and len(ranks):
                self._rank = int(ranks[0])
            if not (ranks == self._rank).all():
                keys, columns = keys[ranks == self._rank], columns.of(ranks == self._rank)
        none = np.full(len(keys), -1)

        def column(number: Number | None) -> NDArray[np.int64]:
            return none if number is None else _whole(columns.values(number)[0])

        steps: NDArray[np.int64]
        steps, epochs, totals = column(record.step), column(record.epoch), column(record.total)
        if record.heading:
            steps, epochs = none, none
        elif record.total is not None and record.epoch is not None and len(keys):
            if self._first_epoch is None:
                self._first_epoch = 1 if epochs[0] == 1 else 0
            if record.samples:
                self._unit = math.gcd(self._unit, int(np.gcd.reduce(steps)))
            done = np.maximum(epochs - self._first_epoch, 0).astype(np.int64)
            steps, totals = steps + done * totals, none
        elif record.clock is Clock.BAR and len(keys):  # an evaluation has a bar of its own
            if self._bar_total is None:
                self._bar_total = int(totals[0])
            steps = np.where(totals == self._bar_total, steps, -1)
        elif record.clock is Clock.SHARE and record.share and (per_epoch := self._steps_per_epoch()):
            steps = _whole(np.round(columns.values(record.share)[0] * per_epoch))
        if record.clock is Clock.BAR:  # one that stands at 0 says nothing new: Lightning winds it back before an epoch
            steps = np.where(column(record.step) == 0, -1, steps)
        steps = np.where(np.abs(steps) < MAX_STEP, steps, -1)
        values = {name: columns.values(number) for name, number in record.values.items()}
        return _Rows(keys, record, steps, epochs, totals, values)

    def _steps_per_epoch(self) -> float:
        """As transformers' Trainer states it, or says how to reckon it; 0 where it doesn't."""
        per_epoch, examples, batch = (
            _positive(self._stated.get(key)) for key in ("update_steps_per_epoch", "dataset_size", "total_batch_size")
        )
        return per_epoch or (math.ceil(examples / batch) if examples and batch else 0.0)

    # --- steps

    def _assemble(
        self,
        rows: list[_Rows],
        banks: list[tuple[int, str]],
        said: list[tuple[NDArray[np.int64], Said]],
        block: Block,
    ) -> None:
        """Give every record its step: its own, that of the bar drawn right after it, or the latest before it."""
        if not rows:
            self._remark(said, np.empty(0, np.int64), np.empty(0, np.int64), block)
            return
        for one in rows:
            known = one.record.clock
            if known > self._clock and (one.values or known is Clock.BAR) and one.steps.max() >= 0:
                self._clock, self._raw = known, -1
            if one.record.step is not None and one.values and not one.record.samples:
                self._in_samples = False
        order = np.argsort(np.concatenate([one.keys for one in rows]), kind="stable")

        def ordered(columns: Iterable[NDArray[np.int64]]) -> NDArray[np.int64]:
            return np.concatenate(list(columns))[order] if len(rows) > 1 else next(iter(columns))

        keys = ordered(one.keys for one in rows)
        steps = ordered(one.steps if one.record.clock >= self._clock else np.full(len(one.keys), -1) for one in rows)
        epochs = _filled(ordered(one.epochs for one in rows), self._epoch)
        totals = ordered(one.totals for one in rows)
        steps = self._unwound(steps, epochs, totals, lambda place: self._line(block, int(keys[place]) // MAX_RECORDS))
        bars = [one.record.clock is Clock.BAR and not one.values for one in rows]
        if any(bars):
            bare = np.repeat(bars, [len(one.keys) for one in rows])[order]
            drawn_after = np.append((steps[1:] >= 0) & bare[1:], False)
            steps = np.where((steps < 0) & drawn_after, np.append(steps[1:], -1), steps)
        steps = _filled(steps, self._step)
        places = np.empty_like(order)
        places[order] = np.arange(len(order))  # of each record among all
        self._add(rows, np.split(places, np.cumsum([len(one.keys) for one in rows])[:-1]), steps)
        if banks and self._bank_on is None:
            row, line = min(banks)
            at = int(np.searchsorted(keys, (row + 1) * MAX_RECORDS)) - 1
            step = int(steps[at]) if at >= 0 else self._step
            self._bank_on = (max(step, 0), self._line(block, row), line)
        self._remark(said, keys, steps, block)
        self._step, self._epoch = int(steps[-1]), int(epochs[-1])

    def _remark(
        self,
        said: list[tuple[NDArray[np.int64], Said]],
        keys: NDArray[np.int64],
        steps: NDArray[np.int64],
        block: Block,
    ) -> None:
        """What was said in words, each line at the step of the latest record before it."""
        stepped = np.append(self._step, steps)
        for rows, what in sorted(said, key=lambda one: int(one[0].min())):
            if what.kind not in self._remarks:
                self._remarks[what.kind] = _Remarks(self._line(block, int(rows.min())))
            remarks = self._remarks[what.kind]
            remarks.names.update(dict.fromkeys(what.names[: MAX_NAMES - len(remarks.names)]))
            at = stepped[np.searchsorted(keys, (rows + 1) * MAX_RECORDS)]
            remarks.steps.add(at, np.ones(len(at)), MAX_POINTS)

    def _line(self, block: Block, row: int) -> int:
        return self._lines + int(block.line_numbers[row]) + 1

    def _unwound(
        self,
        steps: NDArray[np.int64],
        epochs: NDArray[np.int64],
        totals: NDArray[np.int64],
        line: Callable[[int], int],
    ) -> NDArray[np.int64]:
        """Steps that begin anew with each epoch go on; those that begin anew without one are a resumed run."""
        where = np.flatnonzero(steps >= 0)
        if not len(where):
            return steps
        raw, epoch, total = steps[where], epochs[where], totals[where]
        before = np.append(self._raw, raw[:-1])
        epoch_before = np.append(self._step_epoch, epoch[:-1])
        back = (raw < before) & (before >= 0)
        again = raw < before
        if self._clock is Clock.COUNT:  # an epoch of which only the end is logged: "12/12" and "12/12" again
            again |= (raw == before) & (raw == total)
        anew = again & (before >= 0) & (epoch > epoch_before) & (epoch_before >= 0)
        offsets = np.full(len(raw), self._offset)
        if (back | anew).any():
            stride = np.append(self._stride, np.diff(before))
            epoch_steps = np.where(total > 0, total, before - raw + np.maximum(stride, 1))
            gone = np.cumsum(np.where(anew, epoch_steps, 0))
            resumed = np.flatnonzero(back & ~anew)
            since = np.searchsorted(resumed, np.arange(len(raw)), side="right")  # resumptions up to each place
            offsets = gone + np.append(self._offset, -gone[resumed])[since]
            for place in resumed[: MAX_RESUMES - len(self._resumes)].tolist():
                last = int(before[place]) + (int(offsets[place - 1]) if place else self._offset)
                self._resumes.append((int(raw[place]), last, line(int(where[place]))))
        if len(raw) > 1:
            self._stride = int(raw[-1] - raw[-2])
        self._raw, self._offset, self._step_epoch = int(raw[-1]), int(offsets[-1]), int(epoch[-1])
        unwound = steps.copy()
        unwound[where] = raw + offsets
        return unwound

    def _add(self, rows: list[_Rows], at: list[NDArray[np.int64]], steps: NDArray[np.int64]) -> None:
        """Each series' values in the order of their lines. `at` is each row's place in it."""
        parts: dict[str, list[tuple[NDArray[np.int64], NDArray[np.float64]]]] = {}
        bars: set[str] = set()
        for one, places in zip(rows, at, strict=True):
            for name, (values, last_place) in one.values.items():
                if name not in self._columns and len(self._columns) < MAX_SERIES:
                    self._columns[name] = _Column()
                if name in self._columns:
                    parts.setdefault(name, []).append((places, values))
                    bars |= {name} if one.record.clock is Clock.BAR else set()
                    self._columns[name].printed(last_place)
        limit = min(MAX_POINTS, max(MAX_ALL_POINTS // max(len(self._columns), 1), 2 * STRETCH))
        for name, found in parts.items():
            if len(found) == 1:
                places, values = found[0]
            else:
                places = np.concatenate([places for places, _ in found])
                order = np.argsort(places, kind="stable")
                places, values = places[order], np.concatenate([values for _, values in found])[order]
            if name in bars:  # of a bar that was drawn again at a step, the last one says how it stands
                last = np.append(np.diff(steps[places]) != 0, True)
                places, values = places[last], values[last]
            self._columns[name].add(steps[places], values, limit)

    # --- the end

    def _samples_per_step(self) -> int:
        """What all counts of samples are multiples of; or less, where the arguments say how many make a step."""
        known = {fact.name: fact.value for fact in trainer.facts(self._stated, self._path)}
        batch = math.prod(_positive(known.get(name, 1)) for name in ("micro_batch", "accumulation", "world_size"))
        return int(batch) if "micro_batch" in known and self._unit and self._unit % batch == 0 else max(self._unit, 1)

    def finish(self) -> Log:
        run = Run(self._path)
        log = Log(run, self._lines, self._understood, len(self._kinds))
        unit = self._samples_per_step() if self._in_samples else 1
        for name in list(self._columns):
            column = self._columns.pop(name)  # not held twice
            steps, values = column.arrays()
            if steps.max() < 0:
                steps = np.arange(1, len(steps) + 1)
            elif steps.min() < 0:
                steps = np.maximum(steps, 0)
            if unit > 1:
                steps = np.round(steps / unit).astype(np.int64)
            resolution = None if column.place is None else 10.0 ** min(max(column.place, -300), 300)
            run.series[name] = Series(name, steps, values, Source(self._path, name), resolution=resolution)
            if column.thinned:
                log.notes.append(f"{name}: of its many values every other {STRETCH:,} are left out")
        stated = {key: value for key, value in self._stated.items() if key != "global_step"}
        for fact in trainer.facts(stated, self._path):
            run.facts.setdefault(fact.name, fact)
        if self._bank_on:
            step, line, text = self._bank_on
            run.events.append(Event("bank-on", step // unit, text, Source(self._path, line=line)))
        for step, last, line in self._resumes:
            detail = f"the steps go back from {last // unit} to {step // unit}"
            run.events.append(Event("resume", step // unit, detail, Source(self._path, line=line)))
        for kind, remarks in self._remarks.items():
            at = np.sort(np.maximum(remarks.steps.arrays()[0], 0)) // unit
            run.remarks.append(Remark(kind, Source(self._path, line=remarks.line), tuple(remarks.names), at))
        if unit > 1:
            log.notes.append(f"counted in samples, {unit} to a step")
        if self._left_out:
            log.notes.append(f"{self._left_out:,} lines are too long, or of too many kinds, and were left out")
        return log


def _positive(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and 0 < value < MAX_STEP else 0.0


def _whole(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Values as whole numbers; -1 for what is none."""
    valid = np.isfinite(values) & (np.abs(values) < MAX_STEP) & (values >= 0)
    return np.where(valid, values, -1).astype(np.int64)


def _filled(values: NDArray[np.int64], before: int) -> NDArray[np.int64]:
    """Values with each gap (-1) filled by the latest before it."""
    if (values >= 0).all():
        return values
    latest = np.maximum.accumulate(np.where(values >= 0, np.arange(len(values)), -1))
    return np.where(latest >= 0, values[latest], before)


UNFINISHED = re.compile(rb"(\{[^{}\r\n]{0,4096})\r?\n(?=[^{}\r\n]{0,4096}\})")


def _joined(text: bytes) -> bytes:
    """Records in braces that were wrapped, each on one line."""
    return UNFINISHED.sub(rb"\1 ", text)


def _decoded(line: bytes) -> str:
    """UTF-8, also where it was once read as Latin-1 and written again; else as it comes."""
    text = line.decode("utf-8", "replace")
    if not text.isascii():
        try:
            return text.encode("latin-1").decode("utf-8")
        except UnicodeError:
            return text
    return text
