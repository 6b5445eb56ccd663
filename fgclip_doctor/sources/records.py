"""Lines of a log -> series, facts and events. What a kind of line means is a `Reading`; here it becomes columns.

A `Reading` says which numbers of a line are the step, the epoch, and values under which names. `collect` asks for one
for each kind of line that a file has, and applies it to all lines of that kind at once.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum, auto
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgclip_doctor.inert import inert
from fgclip_doctor.run import Event, Run, Series, Source
from fgclip_doctor.sources import trainer
from fgclip_doctor.sources.files import Unreadable
from fgclip_doctor.sources.skeletons import MAX_LINE, Block, Number, chunks

MAX_SKELETONS = 50_000  # kinds of lines in a file; what comes after so many is left out
MAX_SKELETON_BYTES = 32 << 20
MAX_VARIANTS = 1_000  # names that one kind of line may have, by the numbers in them
MAX_RECORDS = 64  # on a line
MAX_SERIES = 2_000
MAX_POINTS = 1 << 20  # values kept of a series; of more, every other stretch is dropped
MAX_ALL_POINTS = 1 << 23  # values kept of all series together, 16 bytes each
STRETCH = 1 << 10
MAX_STEP = 1 << 53
FEW = 0.02  # share of lines read as a table that may be something else


class Clock(IntEnum):
    """Where a step was read, the weakest first: a file's strongest clock is the one that counts."""

    NONE = 0
    SHARE = auto()  # a share of an epoch, and how many steps an epoch has
    BAR = auto()  # a progress bar
    COUNT = auto()  # "[10/1000]"
    ITERATION = auto()
    STEP = auto()
    UPDATES = auto()


# --- the dialect: what names mean --------------------------------------------------------------------------------

_CLOCKS = {
    Clock.UPDATES: r"(?:num_updates|(?:trainer/)?global_?step|optimi[sz]er_?steps?)",
    Clock.STEP: r"(?:(?:trainer|train|training|at|current|_)?[_/]?steps?|updates?)",
    Clock.ITERATION: r"(?:(?:train|training|at|current)?[_/]?(?:iter|iters|iteration|it|n_iter|batch|batch_idx))",
}
CLOCKS = {clock: re.compile(rf"(?:\w+\.)?{pattern}") for clock, pattern in _CLOCKS.items()}
NO_CLOCK = re.compile(  # counted in steps, but no time
    r"(?:^|[_/])(?:total|max|num|n|warm_?up|accum\w*|gradient|optimization|logging|log|save|saving|eval\w*|per|every|until)_"
)
EPOCH = re.compile(r"(?:\w+[_/])?epoch(?:_(?:train|val|test))?")
RANK = re.compile(r"(?:local_|global_)?rank")
HELD_OUT = re.compile(r"(?:^|[\W_])(?:eval|evaluation|evaluating|val|valid|validation|test|testing)(?:[\W_]|$)", re.I)
MEAN = re.compile(r"\b(?:averaged?|mean|summary)\b", re.I)  # of an epoch: not a value of its own
NO_SERIES = re.compile(r"(?:^|_)(?:cuda|gpu|port|pid|seed|version|v_num|device|batch_size)$", re.I)
METRIC = re.compile(
    r"loss|lr|learning|acc(?!um)|norm|scale|temp|ppl|nll|margin|sim|auc|recall|precision|top|bits|cos|logit|candidates|"
    r"entropy|gradient|nce|itc|itm|error|metric|r@|mae|mse|score|perplexity|^(?:total|global|region|hard)$",
    re.I,
)
LOSS = re.compile(r"loss(?!\w*(?:weight|coef|scale|type|kind|smoothing|lambda))", re.I)
BRANCHES = {
    "total",
    "global",
    "region",
    "regional",
    "hard",
    "hard_negative",
    "hardneg",
}  # of a loss, when they stand bare


def clock(name: str) -> Clock:
    """The clock that a number under this name reads."""
    lower = name.lower()
    for one, pattern in CLOCKS.items():
        if pattern.fullmatch(lower):
            return one
    words = lower.rsplit("_", 1)
    if len(words) == 2 and not NO_CLOCK.search(f"{words[0]}_") and CLOCKS[Clock.STEP].fullmatch(words[1]):
        return (
            Clock.STEP if re.fullmatch(r"(?:\w+_)?(?:at|on|enabled|activated|finished|from)", words[0]) else Clock.NONE
        )
    return Clock.NONE


@dataclass(slots=True)
class Record:
    """What one line, or a part of one, says at one step."""

    values: dict[str, Number] = field(default_factory=dict)
    step: Number | None = None
    clock: Clock = Clock.NONE
    total: Number | None = None  # of a count within an epoch
    epoch: Number | None = None
    rank: Number | None = None
    samples: bool = False  # the count is of samples
    share: Number | None = None  # epochs done, with what is done of the current one
    heading: str = ""  # "eval" or "mean": what the values are of, where not of the training
    left_out: dict[str, Number] = field(default_factory=dict)  # for whoever wants to see what was understood

    @property
    def empty(self) -> bool:
        return not (self.values or self.step or self.epoch or self.share)

    def finished(self) -> Record:
        """With the names that the line as a whole gives."""
        self.values = {name: number for name, number in self.values.items() if not NO_SERIES.search(name)}
        if self.heading:
            self.values = {
                name if HELD_OUT.search(name) else f"{self.heading}/{name}": number
                for name, number in self.values.items()
            }
        elif len({name.lower() for name in self.values} & BRANCHES) > 1:  # "Total: 3.1 | Global: 1.5 | Region: 1.6"
            self.values = {
                f"loss/{name.lower()}" if name.lower() in BRANCHES else name: number
                for name, number in self.values.items()
            }
        return self


@dataclass(slots=True)
class Reading:
    """What a kind of line means. `fixed` are the runs of digits that stand in its names."""

    records: tuple[Record, ...] = ()
    fixed: tuple[int, ...] = ()
    bank_on: str = ""  # the line, if it says that the bank was switched on
    facts: Mapping[str, object] = field(default_factory=dict)
    stated: bool = False  # the facts are arguments, wherever they stand
    unfinished: bool = False  # goes on on the next line

    @property
    def measures(self) -> bool:
        """True if this is a line of the training itself, and no longer one of its arguments."""
        return any(record.values and (record.step or any(map(LOSS.search, record.values))) for record in self.records)


NOTHING = Reading()
Understand = Callable[[str, str], Reading]  # of the skeleton of a line, and the line


@dataclass(slots=True)
class _Kind:
    """A kind of line: how many runs of digits it has, and what it means."""

    runs: int
    reading: Reading
    skeleton: bytes
    variants: dict[tuple[bytes, ...], Reading] = field(default_factory=dict)


@dataclass
class Log:
    """What a log says, and how much of it was understood."""

    run: Run
    lines: int
    understood: int  # lines that say something
    kinds: int
    notes: list[str] = field(default_factory=list)


def collect(path: str | os.PathLike[str], understand: Understand) -> Log:
    """The series, facts and events of a log. Raises `Unreadable` if it has none."""
    reader = _Reader(os.fspath(path), understand)
    for text in chunks(path):
        reader.take(text)
    log = reader.finish()
    if not (reader.measured and log.run.series) and not log.run.facts:
        raise Unreadable(path, "nothing in it is understood as the log of a training")
    return log


def explain(path: str | os.PathLike[str], understand: Understand) -> Iterator[str]:
    """What was understood of a log, line by line, and a summary."""
    reader, before = _Reader(os.fspath(path), understand), 0
    for text in chunks(path):
        reader.take(text)
        block = Block(text)
        kinds, first = reader.kinds_of(block)
        for row, number in enumerate(block.line_numbers.tolist()):
            reading = reader.variant(reader.kinds[kinds[row]], block, row, int(first[row]))
            said = "; ".join(_told(record, block, first[row : row + 1]) for record in reading.records)
            said += f"; bank on: {inert(reading.bank_on)}" if reading.bank_on else ""
            known = ", ".join(f"{fact.name} = {fact.value}" for fact in trainer.facts(reading.facts, ""))
            said += f"; arguments: {inert(known)}" if known and not reading.records else ""
            if block.lines[row].strip():
                yield f"{before + number + 1}: {said.strip('; ') or '-'}"
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


def _told(record: Record, block: Block, first: NDArray[np.int64]) -> str:
    def shown(number: Number) -> str:
        return f"{block.values(first, number)[0][0]:g}"

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

    def arrays(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        return np.concatenate(self._steps), np.concatenate(self._values)


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
        self.kinds: list[_Kind] = []
        self._index: dict[bytes, int] = {}  # by skeleton
        self._index_bytes = 0
        self._unread: dict[int, int] = {}  # kinds of lines that aren't read, by their runs of digits
        self._columns: dict[str, _Column] = {}
        self._stated: dict[str, object] = {}
        self._bank_on: tuple[int, int, str] | None = None
        self._resumes: list[tuple[int, int, int]] = []
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

    def kinds_of(self, block: Block) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The kind of each line, as an index into `kinds`, and its first run of digits."""
        known = self._index
        found = [known.get(skeleton, -1) for skeleton in block.skeletons]
        if -1 in found:
            for row, skeleton in enumerate(block.skeletons):
                if found[row] < 0:
                    found[row] = known[skeleton] if skeleton in known else self._new_kind(skeleton, block.lines[row])
        kinds = np.array(found, np.int64)
        runs = np.array([kind.runs for kind in self.kinds], np.int64)[kinds]
        return kinds, np.cumsum(runs) - runs

    def _new_kind(self, skeleton: bytes, line: bytes) -> int:
        runs = skeleton.count(b"0")
        if len(line) > MAX_LINE or len(self._index) >= MAX_SKELETONS or self._index_bytes > MAX_SKELETON_BYTES:
            self._left_out += 1
            if runs not in self._unread:
                self._unread[runs] = len(self.kinds)
                self.kinds.append(_Kind(runs, NOTHING, b""))
            return self._unread[runs]
        self.kinds.append(_Kind(runs, self._read(skeleton, line), skeleton))
        self._index[skeleton] = len(self.kinds) - 1
        self._index_bytes += len(skeleton)
        return self._index[skeleton]

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

    def variant(self, kind: _Kind, block: Block, row: int, first: int) -> Reading:
        """The reading of one line of a kind whose names have numbers in them."""
        if not kind.reading.fixed:
            return kind.reading
        key = tuple(block.run(first + np.array(kind.reading.fixed)))
        if key not in kind.variants and len(kind.variants) < MAX_VARIANTS:
            kind.variants[key] = self._read(kind.skeleton, block.lines[row])
        return kind.variants.get(key, NOTHING)

    # --- lines

    def take(self, text: bytes) -> None:
        """Read some whole lines."""
        block = Block(text)
        kinds, first = self.kinds_of(block)
        seen = np.bincount(kinds, minlength=len(self.kinds))
        if any(self.kinds[kind].reading.unfinished for kind in np.flatnonzero(seen).tolist()):
            block = Block(_joined(text))
            kinds, first = self.kinds_of(block)
            seen = np.bincount(kinds, minlength=len(self.kinds))
        rows: list[_Rows] = []
        banks: list[tuple[int, str]] = []
        order, ends = np.argsort(kinds, kind="stable"), np.cumsum(seen)
        for kind in np.flatnonzero(seen).tolist():
            where = order[ends[kind] - seen[kind] : ends[kind]]
            for reading, part in self._variants(self.kinds[kind], block, where, first):
                if reading.bank_on and self._bank_on is None:
                    banks.append((int(part[0]), reading.bank_on))
                for place, record in enumerate(reading.records):
                    rows.append(self._rows(block, record, part, first[part], place))
        self._assemble(rows, banks, block)
        self._lines += text.count(b"\n")

    def _variants(
        self, kind: _Kind, block: Block, where: NDArray[np.int64], first: NDArray[np.int64]
    ) -> Iterator[tuple[Reading, NDArray[np.int64]]]:
        if not kind.reading.records and not kind.reading.bank_on:
            return
        self._understood += len(where)
        if not kind.reading.fixed:
            yield kind.reading, where
            return
        rows: dict[int, list[int]] = {}
        readings: dict[int, Reading] = {}
        for row in where.tolist():
            reading = self.variant(kind, block, row, int(first[row]))
            readings[id(reading)] = reading
            rows.setdefault(id(reading), []).append(row)
        for key, one in rows.items():
            yield readings[key], np.array(one)

    def _rows(
        self, block: Block, record: Record, part: NDArray[np.int64], first: NDArray[np.int64], place: int
    ) -> _Rows:
        if record.rank is not None:  # every rank logs the same
            ranks = _whole(block.values(first, record.rank)[0])
            if self._rank is None and len(ranks):
                self._rank = int(ranks[0])
            part, first = part[ranks == self._rank], first[ranks == self._rank]

        def column(number: Number | None) -> NDArray[np.int64]:
            return np.full(len(part), -1) if number is None else _whole(block.values(first, number)[0])

        steps: NDArray[np.int64]
        steps, epochs, totals = column(record.step), column(record.epoch), column(record.total)
        if record.heading:
            steps, epochs = column(None), column(None)
        elif record.total is not None and record.epoch is not None and len(part):
            if self._first_epoch is None:
                self._first_epoch = 1 if epochs[0] == 1 else 0
            if record.samples:
                self._unit = math.gcd(self._unit, int(np.gcd.reduce(steps)))
            done = np.maximum(epochs - self._first_epoch, 0).astype(np.int64)
            steps, totals = steps + done * totals, column(None)
        elif record.clock is Clock.BAR and len(part):  # an evaluation has a bar of its own
            if self._bar_total is None:
                self._bar_total = int(totals[0])
            steps = np.where(totals == self._bar_total, steps, -1)
        elif record.clock is Clock.SHARE and record.share and (per_epoch := self._steps_per_epoch()):
            steps = _whole(np.round(block.values(first, record.share)[0] * per_epoch))
        steps = np.where(np.abs(steps) < MAX_STEP, steps, -1)
        values = {name: block.values(first, number) for name, number in record.values.items()}
        return _Rows(part * MAX_RECORDS + place, record, steps, epochs, totals, values)

    def _steps_per_epoch(self) -> float:
        """As transformers' Trainer states it, or says how to reckon it; 0 where it doesn't."""
        per_epoch, examples, batch = (
            _positive(self._stated.get(key)) for key in ("update_steps_per_epoch", "dataset_size", "total_batch_size")
        )
        return per_epoch or (math.ceil(examples / batch) if examples and batch else 0.0)

    # --- steps

    def _assemble(self, rows: list[_Rows], banks: list[tuple[int, str]], block: Block) -> None:
        """Give every record its step: its own, that of the bar drawn right after it, or the latest before it."""
        rows = [one for one in rows if len(one.keys)]
        if not rows:
            return
        for one in rows:
            known = one.record.clock
            if known > self._clock and (one.values or known is Clock.BAR) and one.steps.max() >= 0:
                self._clock, self._raw = known, -1
            if one.record.step is not None and one.values and not one.record.samples:
                self._in_samples = False
        keys = np.concatenate([one.keys for one in rows])
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        steps = np.concatenate([np.where(one.record.clock >= self._clock, one.steps, -1) for one in rows])[order]
        epochs = _filled(np.concatenate([one.epochs for one in rows])[order], self._epoch)
        totals = np.concatenate([one.totals for one in rows])[order]
        steps = self._unwound(steps, epochs, totals, lambda place: self._line(block, int(keys[place]) // MAX_RECORDS))
        bare = np.concatenate(
            [np.full(len(one.keys), one.record.clock is Clock.BAR and not one.values) for one in rows]
        )
        drawn_after = np.append((steps[1:] >= 0) & bare[order][1:], False)
        steps = _filled(np.where((steps < 0) & drawn_after, np.append(steps[1:], -1), steps), self._step)
        self._add(rows, keys, steps)
        if banks and self._bank_on is None:
            row, line = min(banks)
            at = int(np.searchsorted(keys, (row + 1) * MAX_RECORDS)) - 1
            step = int(steps[at]) if at >= 0 else self._step
            self._bank_on = (max(step, 0), self._line(block, row), line)
        self._step, self._epoch = int(steps[-1]), int(epochs[-1])

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
        before = np.concatenate([[self._raw], raw[:-1]])
        epoch_before = np.concatenate([[self._step_epoch], epoch[:-1]])
        offsets = np.full(len(where), self._offset)
        for place in np.flatnonzero((raw < before) & (before >= 0)).tolist():
            if epoch[place] > epoch_before[place] >= 0:
                stride = int(before[place] - before[place - 1]) if place else self._stride
                an_epoch = int(total[place]) if total[place] > 0 else int(before[place] - raw[place]) + max(stride, 1)
                offsets[place:] += an_epoch
            else:
                last = int(before[place]) + (int(offsets[place - 1]) if place else self._offset)
                offsets[place:] = 0
                self._resumes.append((int(raw[place]), last, line(int(where[place]))))
        if len(raw) > 1:
            self._stride = int(raw[-1] - raw[-2])
        self._raw, self._offset, self._step_epoch = int(raw[-1]), int(offsets[-1]), int(epoch[-1])
        unwound = steps.copy()
        unwound[where] = raw + offsets
        return unwound

    def _add(self, rows: list[_Rows], keys: NDArray[np.int64], steps: NDArray[np.int64]) -> None:
        """Each series' values in the order of their lines."""
        parts: dict[str, list[tuple[_Rows, NDArray[np.float64]]]] = {}
        for one in rows:
            for name, (values, place) in one.values.items():
                if name not in self._columns and len(self._columns) < MAX_SERIES:
                    self._columns[name] = _Column()
                if name in self._columns:
                    parts.setdefault(name, []).append((one, values))
                    self._columns[name].printed(place)
        limit = min(MAX_POINTS, max(MAX_ALL_POINTS // max(len(self._columns), 1), 2 * STRETCH))
        for name, found in parts.items():
            of_rows = np.concatenate([one.keys for one, _ in found])
            order = np.argsort(of_rows, kind="stable")
            values = np.concatenate([values for _, values in found])[order]
            self._columns[name].add(steps[np.searchsorted(keys, of_rows[order])], values, limit)

    # --- the end

    def _samples_per_step(self) -> int:
        """What all counts of samples are multiples of; or less, where the arguments say how many make a step."""
        known = {fact.name: fact.value for fact in trainer.facts(self._stated, self._path)}
        batch = math.prod(_positive(known.get(name, 1)) for name in ("micro_batch", "accumulation", "world_size"))
        return int(batch) if "micro_batch" in known and self._unit and self._unit % batch == 0 else max(self._unit, 1)

    def finish(self) -> Log:
        run = Run(self._path)
        log = Log(run, self._lines, self._understood, len(self._index))
        unit = self._samples_per_step() if self._in_samples else 1
        for name, column in self._columns.items():
            steps, values = column.arrays()
            if (steps < 0).all():
                steps = np.arange(1, len(steps) + 1)
            steps = np.round(np.maximum(steps, 0) / unit).astype(np.int64)
            resolution = None if column.place is None else 10.0 ** max(column.place, -300)
            run.series[name] = Series(name, steps, values, Source(self._path, name), resolution=resolution)
            if column.thinned:
                log.notes.append(f"{name}: of its many values every other {STRETCH:,} are left out")
        stated = {key: value for key, value in self._stated.items() if key != "global_step"}
        for fact in trainer.facts(stated, self._path):
            run.facts.setdefault(fact.name, fact)
        if self._bank_on:
            step, line, text = self._bank_on
            run.events.append(Event("bank-on", step // unit, text, Source(self._path, line=line)))
        for step, last, line in self._resumes[:MAX_RECORDS]:
            detail = f"the steps go back from {last // unit} to {step // unit}"
            run.events.append(Event("resume", step // unit, detail, Source(self._path, line=line)))
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


def plain(facts: Mapping[str, Any]) -> dict[str, object]:
    """Arguments as they are printed -> numbers, switches and text."""
    return {key.removeprefix("--").replace("-", "_"): _plain(value) for key, value in facts.items()}


def _plain(value: object) -> object:
    if not isinstance(value, str):
        return value
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    for kind in (int, float):
        try:
            return kind(value.replace(",", ""))
        except ValueError:
            continue
    return value
