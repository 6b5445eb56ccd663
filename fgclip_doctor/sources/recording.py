"""What `fgclip_doctor.live` wrote of a run while it went on -> `Run`. It can be read while it grows.

A recording is a directory with files of JSON lines, ``rank-0.000.jsonl`` and so on. It becomes series (losses by site,
learning rates, gradient norms and update ratios by part, scales and other small tensors), a checkpoint of what was
recorded of the model (names, shapes, small tensors and banks with their values), and `Run.recording`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from fgclip_doctor.recorded import (
    Columns,
    Gather,
    LossSite,
    Parameter,
    Rank,
    Reach,
    Recording,
    State,
    Unsaved,
    short_names,
)
from fgclip_doctor.run import (
    Checkpoint,
    Fact,
    Missing,
    Optimizer,
    OptimizerGroup,
    ParameterState,
    Run,
    Series,
    Source,
    Statistics,
    Tensor,
)
from fgclip_doctor.sources import trainer
from fgclip_doctor.sources.files import Unreadable, inside, open_regular, read_at

VERSION = 1
FILE = re.compile(r"rank-(\d{1,6})\.(\d{3,6})\.jsonl")
HEAD = re.compile(rb'\{"kind":"start","version":\d')
MAX_LINE = 4 << 20  # bytes; a bank of a mebibyte takes 1.4
BLOCK = 1 << 20
MAX_RANKS = 64  # beyond, the rest is left out: what is wrong between ranks shows in these
MAX_CHANGES, MAX_SITES, MAX_SERIES, MAX_POINTS = 1024, 256, 4096, 1 << 20
KINDS = (
    *("start", "model", "arguments", "loss", "columns", "reach", "gradients", "updates", "rounding", "scalars", "rows"),
    *("step", "end", "off", "reentrant", "saved", "digest", "begun", "state", "moments"),
)
SCALARS_OF_SITE = ("anchors", "candidates", "loss", "null", "top1")
NEWEST = 3  # of the snapshots of a bank that are kept, beside the first
STATE = re.compile(r"(?:_on|_enabled)$")  # of what is set when a warmup is over; `use_` is what is asked for
ALIGNED = ("first", "last", "lowest", "highest")  # of the targets: their column less their row, and their column


def is_recording(path: Path) -> bool:
    """Whether a file, or a directory, is one that a recorder wrote."""
    if path.is_dir():
        return any(is_recording(file) for file in _files(path)[:1])
    if not FILE.fullmatch(path.name):
        return False
    try:
        with open_regular(path) as descriptor:
            return HEAD.match(read_at(descriptor, path, 0, 64)) is not None
    except Unreadable:
        return False


def read(path: Path, readers: dict[Path, object] | None = None) -> Run:
    """A recording, as far as it goes; with `readers`, from where it was left. Raises `Unreadable` if there is none."""
    reader = (readers or {}).get(path)
    if not isinstance(reader, Reader):
        reader = Reader(path)
    if readers is not None:
        readers[path] = reader
    reader.poll()
    return reader.run()


def _files(directory: Path) -> list[Path]:
    """The files of a recording in order of rank and number."""
    found = [(match, one) for one in directory.iterdir() if (match := FILE.fullmatch(one.name))]
    return [one for match, one in sorted(found, key=lambda pair: (int(pair[0][1]), int(pair[0][2])))]


class Reader:
    """Follows a recording: `poll` takes in what was appended, `run` is all of it so far.

    With `until`, it is as it was once every rank had done so many steps.
    """

    def __init__(self, path: Path, *, until: float = math.inf) -> None:
        self.path = path
        self.until = until
        self.ranks: dict[int, _Rank] = {}
        self.offsets: dict[Path, int] = {}
        self.problems: list[str] = []

    def poll(self) -> int:
        """Read what is new. Returns the number of records. A last line that isn't whole waits for its rest."""
        files = _files(self.path) if self.path.is_dir() else [self.path]
        return sum(self._read(file) for file in files)

    def _read(self, file: Path) -> int:
        match = FILE.fullmatch(file.name)
        rank = int(match[1]) if match else 0
        if rank not in self.ranks:
            if len(self.ranks) >= MAX_RANKS:
                return 0
            self.ranks[rank] = _Rank(rank, str(file))
        count = 0
        try:
            if self.path.is_dir():
                inside(self.path, file.name)
            with open_regular(file) as descriptor:
                offset, size = self.offsets.get(file, 0), os.fstat(descriptor).st_size
                while offset < size:
                    block = read_at(descriptor, file, offset, min(max(BLOCK, MAX_LINE), size - offset))
                    end = block.rfind(b"\n") + 1
                    if not end:
                        if len(block) >= MAX_LINE:
                            self._problem(file, "a line is longer than any that a recorder writes")
                            offset = size
                        break
                    for line in block[:end].splitlines():
                        if self.ranks[rank].step >= self.until:
                            return count
                        count += self.ranks[rank].take(line)
                    offset += end
                self.offsets[file] = offset
        except Unreadable as error:
            self.problems.append(str(error))
        return count

    def _problem(self, file: Path, what: str) -> None:
        line = str(Unreadable(file, what))
        if line not in self.problems:
            self.problems.append(line)

    @property
    def first(self) -> _Rank | None:
        """The first rank that has begun."""
        return self.ranks[min(self.ranks)] if self.ranks else None

    @property
    def ended(self) -> bool:
        """Whether every rank has ended as it should."""
        return bool(self.ranks) and all(rank.ended for rank in self.ranks.values())

    def run(self) -> Run:
        """Everything recorded so far. Raises `Unreadable` if nothing was."""
        ranks = [self.ranks[number] for number in sorted(self.ranks) if self.ranks[number].parameters]
        if not ranks:
            raise Unreadable(self.path, "no recording of a run, or one that hasn't begun yet")
        first = ranks[0]
        problems = [*self.problems]
        broken = sum(rank.broken for rank in ranks)
        if broken:
            problems.append(str(Unreadable(self.path, f"{broken} records make no sense and were left out")))
        problems += [str(Unreadable(Path(rank.path), rank.off)) for rank in ranks if rank.off]
        if first.version > VERSION:
            problems.append(str(Unreadable(self.path, f"written in version {first.version}, read as {VERSION}")))
        sites = [site for rank in ranks for site in rank.sites.values()]
        short = short_names(site.name for site in sites)
        for site in sites:
            site.short = short.get(site.name, site.name)
        run = Run(str(self.path), problems=problems)
        run.recording = Recording(
            tuple(rank.seen() for rank in ranks), max(rank.clocks.get("steps", 0) for rank in ranks)
        )
        run.series = first.all_series()
        run.checkpoints = tuple(first.checkpoints())
        for fact in first.facts():
            run.facts.setdefault(fact.name, fact)
        if first.in_parts:
            run.notes.append("the model is never called as a whole: its backward passes are counted for its forwards")
        return run


@dataclass
class _Column:
    """Values over steps, the newest `MAX_POINTS` of them."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, step: int, value: float) -> None:
        if len(self.steps) >= MAX_POINTS:  # every other of the older half stays
            half = MAX_POINTS // 2
            self.steps[:half], self.values[:half] = self.steps[:half:2], self.values[:half:2]
        self.steps.append(step)
        self.values.append(value)


@dataclass
class _Site:
    name: str
    kind: str
    short: str = ""  # what it goes by beside the sites of all ranks
    rows: list[tuple[float, ...]] = field(default_factory=list)
    gradient: bool = True
    reach: Reach | None = None
    changes: list[Columns] = field(default_factory=list)


@dataclass
class _Rank:
    """The records of one rank, as they come."""

    number: int
    path: str
    version: int = VERSION
    world_size: int = 1
    step: int = 0
    broken: int = 0
    parameters: dict[str, tuple[tuple[int, ...], str, bool, int | None]] = field(default_factory=dict)
    buffers: dict[str, tuple[tuple[int, ...], str]] = field(default_factory=dict)
    groups: list[dict[str, Any]] = field(default_factory=list)
    reached: dict[str, int] = field(default_factory=dict)
    zero: set[str] = field(default_factory=set)
    sites: dict[int, _Site] = field(default_factory=dict)
    columns: dict[str, _Column] = field(default_factory=dict)
    clocks: dict[str, int] = field(default_factory=dict)
    evaluating: dict[str, int] = field(default_factory=dict)
    evaluating_since: dict[str, tuple[int, int]] = field(default_factory=dict)
    gathers: tuple[Gather, ...] = ()
    reentrant: list[str] = field(default_factory=list)
    digests: dict[str, dict[int, str]] = field(default_factory=dict)
    rows: dict[str, list[tuple[int, np.ndarray[Any, Any], str]]] = field(default_factory=dict)
    scalars: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, dict[str, Any]] = field(default_factory=dict)  # by where they were found, the best first
    updates_before: int | None = None
    state: State | None = None
    off: str = ""  # why the recorder stopped before the training did
    seen_at: int = 0  # the step of the last look
    ended: bool = False
    optimizers: tuple[str, ...] = ()
    unchanged: dict[int, float] = field(default_factory=dict)
    looked: int = 0  # steps that were looked at

    def take(self, line: bytes) -> int:
        """One record. What makes no sense is counted and left out."""
        try:
            record = json.loads(line)
            kind = record.pop("kind")
            if kind in KINDS:
                getattr(self, f"_{kind}")(**record)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError, MemoryError):
            self.broken += 1
            return 0
        return 1

    # Each of these is a kind of record, with its fields by name.

    def _start(self, *, version: int, world_size: int, optimizers: Iterable[Any] = (), **_: Any) -> None:
        self.optimizers, self.unchanged = tuple(map(str, optimizers)), {}
        self.version, self.world_size, self.ended, self.off = int(version), int(world_size), False, ""
        self.reached, self.zero, self.reentrant = {}, set(), []  # a restarted run reaches them anew

    def _model(self, *, parameters: list[Any], buffers: list[Any], groups: list[Any], **_: Any) -> None:
        self.parameters = {
            str(name): (_shape(shape), str(dtype), bool(trainable), None if group is None else int(group))
            for name, shape, dtype, trainable, group in parameters
        }
        self.buffers = {str(name): (_shape(shape), str(dtype)) for name, shape, dtype in buffers}
        self.groups = [dict(group) for group in groups]

    def _loss(self, *, site: int, name: str, of: str, step: int, forward: int, gradient: bool, **values: Any) -> None:
        one = self._site(site, name, of)
        if one is None:
            return
        one.gradient = bool(gradient)
        measured = (*(values[key] for key in SCALARS_OF_SITE), values.get("twins", math.nan))
        row = (int(step), int(forward), *map(float, measured), *(float(values[key]) for key in ALIGNED))
        if len(one.rows) >= MAX_POINTS:
            one.rows[: MAX_POINTS // 2] = one.rows[: MAX_POINTS // 2 : 2]
        one.rows.append(row)

    def _columns(
        self, *, site: int, step: int, forward: int, anchors: int, columns: int, name: str = "", of: str = ""
    ) -> None:
        one = self._site(site, name, of) if name else self.sites.get(site)  # whose losses may arrive later
        if one is not None and len(one.changes) < MAX_CHANGES:
            one.changes.append(Columns(int(step), int(forward), int(anchors), int(columns)))

    def _arguments(self, *, of: str, values: Mapping[str, Any]) -> None:
        if len(self.arguments) < MAX_SITES:
            self.arguments[str(of)] = dict(values)

    def _off(self, *, step: int, reason: str) -> None:
        self.off, self.ended = f"watching ended at step {int(step)}, and the training went on: {reason}", True

    def _reach(self, *, site: int, name: str, of: str, anchors: bool, columns: int, reached: int) -> None:
        one = self._site(site, name, of)
        if one is not None:
            one.reach = Reach(bool(anchors), int(columns), int(reached))

    def _site(self, site: int, name: str, of: str) -> _Site | None:
        if site not in self.sites and len(self.sites) >= MAX_SITES:
            return None
        return self.sites.setdefault(int(site), _Site(str(name), str(of)))

    def _gradients(self, *, step: int, norms: Mapping[str, Any], reached: list[Any], zero: list[Any]) -> None:
        for part, norm in norms.items():
            self._add(f"gradient norm/{part}", step, norm)
        total = math.sqrt(sum(float(norm) ** 2 for norm in norms.values()))
        whole = self.columns.get("grad_norm")
        if not norms:
            pass  # only who had one is known
        elif whole is not None and whole.steps[-1] == int(step):  # of another optimizer
            whole.values[-1] = math.hypot(whole.values[-1], total)
        else:
            self._add("grad_norm", step, total)
        for name in reached:
            self.reached.setdefault(str(name), int(step))
        self.zero.update(map(str, zero))

    def _updates(self, *, step: int, ratios: Mapping[str, Any], digest: str, **_: Any) -> None:
        for part, ratio in ratios.items():
            self._add(f"update ratio/{part}", step, ratio)
        if digest:
            self.digests.setdefault("parameters", {})[int(step)] = str(digest)

    def _moments(self, *, step: int, values: Mapping[str, Any]) -> None:
        for part, (first, second) in values.items():
            self._add(f"first moment/{part}", step, first)
            self._add(f"second moment/{part}", step, second)

    def _rounding(self, *, step: int, changed: int, sampled: int) -> None:
        self.unchanged[int(step)] = 1 - int(changed) / int(sampled)

    def _scalars(self, *, step: int, values: Mapping[str, Any]) -> None:
        self.seen_at = int(step)
        for name, value in values.items():
            self.scalars[str(name)] = value
            self._add(str(name), step, value)

    def _rows(self, *, step: int, name: str, shape: list[Any], dtype: str, data: str) -> None:
        values = np.frombuffer(base64.b64decode(data, validate=True), np.float32).reshape(_shape(shape))
        kept = self.rows.setdefault(str(name), [])
        if kept and kept[-1][0] == int(step):
            kept.pop()
        kept.append((int(step), values, str(dtype)))
        del kept[1:-NEWEST]

    def _step(
        self, *, step: int, lr: list[Any], evaluating: Mapping[str, Any], gathers: list[Any], **clocks: Any
    ) -> None:
        self.seen_at = int(step)
        self.looked += 1
        for group, rate in enumerate(lr):
            self._add("learning_rate" if group == 0 else f"learning_rate/group {group}", step, rate)
        for name, count in evaluating.items():
            self.evaluating[str(name)] = self.evaluating.get(str(name), 0) + int(count)
        so_far = {str(name): self.evaluating_since.get(str(name), (self.seen_at, 0)) for name in evaluating}
        self.evaluating_since = {name: (since, looks + 1) for name, (since, looks) in so_far.items()}
        self.gathers = tuple(
            Gather(str(name), _shape(shape), bool(needs), bool(carries), int(calls))
            for name, shape, needs, carries, calls in gathers
        )
        self._clock(step, clocks)

    def _end(self, *, steps: int, **clocks: Any) -> None:
        self.ended = True
        self._clock(steps, clocks)

    def _reentrant(self, *, name: str, **_: Any) -> None:
        self.reentrant.append(str(name))

    def _begun(self, *, updates: int | None) -> None:
        self.updates_before = None if updates is None else int(updates)

    def _state(
        self, *, step: int, unsaved: list[Any], changed: list[Any], late: list[Any], failed: str, skipped: str
    ) -> None:
        names = (tuple(map(str, changed)), tuple(map(str, late)), str(failed), str(skipped))
        self.state = State(int(step), tuple(_unsaved(**one) for one in unsaved), *names)

    def _saved(self, *, step: int) -> None:
        self._add("saved", step, 1.0)

    def _digest(self, *, step: int, values: Mapping[str, Any]) -> None:
        for name, digest in values.items():
            self.digests.setdefault(str(name), {})[int(step)] = str(digest)

    def _clock(self, step: int, clocks: Mapping[str, Any]) -> None:
        self.step = int(step)
        counts = {name: int(count) for name, count in clocks.items() if isinstance(count, int) and name != "code"}
        self.clocks = {**counts, "steps": int(step)}
        for name in ("seconds", "elapsed"):
            if isinstance(clocks.get(name), (int, float)):
                self._add(f"watching/{name}", step, clocks[name])

    def _add(self, name: str, step: int, value: Any) -> None:
        if name in self.columns or len(self.columns) < MAX_SERIES:
            self.columns.setdefault(name, _Column()).add(int(step), float(value))

    # --- and what they come to -------------------------------------------------------------------------------------

    def seen(self) -> Rank:
        parameters = {
            name: Parameter(name, shape, dtype, trainable, group, self._gradient(name), self.reached.get(name))
            for name, (shape, dtype, trainable, group) in self.parameters.items()
        }
        return Rank(
            self.number,
            self.world_size,
            self.path,
            parameters=parameters,
            sites=tuple(_loss_site(one) for _, one in sorted(self.sites.items()) if one.rows),
            gathers=self.gathers,
            clocks=self.clocks | {"forwards": self.clocks.get("backwards", 0)} if self.in_parts else self.clocks,
            evaluating=self.evaluating,
            evaluating_since=self.evaluating_since,
            reentrant=tuple(self.reentrant),
            digests=self.digests,
            optimizers=self.optimizers,
            unchanged=self.unchanged,
            state=self.state,
            updates_before=self.updates_before,
        )

    @property
    def saved_at(self) -> int:
        """The step of the last checkpoint that was seen to be written; 0 where none was."""
        return self.columns["saved"].steps[-1] if "saved" in self.columns else 0

    @property
    def in_parts(self) -> bool:
        """Whether the model is never called as a whole, so its backward passes have to stand for its forwards."""
        return not self.clocks.get("forwards") and self.clocks.get("backwards", 0) > 0

    def _gradient(self, name: str) -> str:
        if name in self.reached:
            return "some"
        if not self.looked or not self.reached:
            return "unknown"  # nothing had a gradient yet, or gradients are kept in pieces that have no names
        return "zero" if name in self.zero else "none"

    def all_series(self) -> dict[str, Series]:
        series = {name: self._series(name, one.steps, one.values) for name, one in self.columns.items()}
        for site in self.seen().sites:
            name = f"loss at {site.name}"
            series[name] = Series(name, site.steps, site.loss, Source(self.path, site.name), forwards=site.forwards)
        return series

    def _series(self, name: str, steps: Iterable[int], values: Iterable[float]) -> Series:
        source = Source(self.path, name)
        return Series(name, np.array(list(steps), np.int64), np.array(list(values), np.float64), source)

    def facts(self) -> Iterator[Fact]:
        """What the recording says by itself, and what the training's own objects said of its configuration.

        Forwards per step are a clock, and no configuration.
        """
        yield Fact("world_size", self.world_size, Source(self.path, "start"))
        yield Fact("global_step", self.step, Source(self.path, "step"))
        stated: dict[str, Fact] = {}
        for of, values in self.arguments.items():
            for fact in trainer.arguments(values, self.path):
                stated.setdefault(fact.name, replace(fact, source=Source(self.path, f"{of}: {fact.source.key}")))
        yield from stated.values()
        own = [fact for fact in trainer.facts(self.scalars, self.path) if fact.name.startswith("bank_")]
        waits = any(fact.name == "bank_warmup" and fact.value > 0 for fact in (*stated.values(), *own))
        for fact in own:  # numbers and switches that a bank itself keeps
            state = fact.source.key in self.buffers or STATE.search(fact.source.key)
            if not (waits and fact.value is False and state):
                yield fact
        decay = [rate for group in self.groups if isinstance(rate := group.get("weight_decay"), (int, float))]
        if decay:
            yield Fact("weight_decay", max(decay), Source(self.path, "optimizer"))

    def checkpoints(self) -> Iterable[Checkpoint]:
        """What was recorded of the model: whenever the rows of its banks were written, and now."""
        for step in sorted({step for kept in self.rows.values() for step, _, _ in kept} - {self.seen_at}):
            yield self._checkpoint(step)
        yield self._checkpoint(self.seen_at)

    def _checkpoint(self, step: int) -> Checkpoint:
        banks = {name: values for name, kept in self.rows.items() for at, values, _ in kept if at == step}
        tensors: dict[str, Tensor] = {}
        shapes = {name: (shape, dtype) for name, (shape, dtype, _, _) in self.parameters.items()} | self.buffers
        for name, (shape, dtype) in shapes.items():
            values = banks.get(name)
            if values is None and name in self.scalars and math.prod(shape) == 1:
                values = np.full(shape, self._scalar(name, step))
            tensors[name] = _tensor(name, shape, dtype, Source(self.path, name), values)
        for name, value in self.scalars.items():  # numbers and flags that modules keep as plain attributes
            if name not in tensors:
                kind = "bool" if isinstance(value, bool) else "int64" if isinstance(value, int) else "float64"
                tensors[name] = _tensor(name, (), kind, Source(self.path, name), np.array(self._scalar(name, step)))
        optimizer = self._optimizer() if step == self.seen_at else None
        why = "a recording holds small tensors and banks, and of the others their names and shapes"
        return Checkpoint(self.path, step, tensors, optimizer, trainer_step=step, partial=why)

    def _scalar(self, name: str, step: int) -> float:
        column = self.columns[name]
        place = max(int(np.searchsorted(column.steps, step, side="right")) - 1, 0)
        return column.values[place]

    def _group_options(self, place: int) -> dict[str, Any]:
        """As they were at the start; a rate that was 0 there, before a warmup set by hand, is the highest seen."""
        rates = self.columns.get("learning_rate" if place == 0 else f"learning_rate/group {place}")
        options = self.groups[place]
        if rates is None or "initial_lr" in options or options.get("lr") != 0:
            return options
        return {**options, "lr": max(rates.values)}

    def _optimizer(self) -> Optimizer | None:
        held = [(name, group) for name, (_, _, _, group) in self.parameters.items() if group is not None]
        if not held:
            return None
        names = {index: (name,) for index, (name, _) in enumerate(held)}
        groups = tuple(
            OptimizerGroup(
                place, tuple(i for i, (_, group) in enumerate(held) if group == place), self._group_options(place)
            )
            for place in range(len(self.groups))
        )
        states = {
            i: ParameterState(i, self.seen_at) for i, (name, _) in enumerate(held) if self._gradient(name) != "none"
        }
        return Optimizer(Source(self.path, "optimizer"), groups, states, names, "named as they were watched")


def _unsaved(*, name: str, kind: str, shape: list[Any], bank: bool, counts: bool, first: Any, last: Any) -> Unsaved:
    values = (None if one is None else float(one) for one in (first, last))
    return Unsaved(str(name), str(kind), _shape(shape), bool(bank), bool(counts), *values)


def _shape(shape: Iterable[Any]) -> tuple[int, ...]:
    lengths = tuple(int(length) for length in shape)
    if any(length < 0 for length in lengths) or len(lengths) > 16:
        raise ValueError("no shape")
    return lengths


def _loss_site(site: _Site) -> LossSite:
    table = np.array(site.rows, np.float64).T  # (columns, calls)
    steps, forwards, anchors, candidates, loss, null, top1, twins, *places = table
    first, last, lowest, highest = (float(np.median(one[-64:])) for one in places)
    if first == last:
        targets = "diagonal" if first == 0 else "shifted"
    else:
        targets = "constant" if lowest == highest else "other"
    return LossSite(
        site.short or site.name,
        site.kind,
        targets,
        int(first) if targets in ("diagonal", "shifted") else 0,
        steps.astype(np.int64),
        forwards.astype(np.int64),
        np.rint(anchors).astype(np.int64),
        candidates,
        loss,
        null,
        top1,
        site.gradient,
        twins,
        site.reach,
        tuple(site.changes),
    )


def _tensor(
    name: str, shape: tuple[int, ...], dtype: str, source: Source, values: np.ndarray[Any, Any] | None
) -> Tensor:
    """A tensor with the recorded values, or one of which only the name, shape and type are known."""

    def missing(*_: object) -> NoReturn:
        raise Missing(f"the recording holds no values of {name}")

    measure: Callable[[], Statistics] = missing
    value: Callable[[], np.ndarray[Any, Any]] = missing
    digest: Callable[[], str] = missing
    if values is not None and values.shape == shape:
        known = values

        def measured() -> Statistics:
            return _statistics(known)

        def of() -> np.ndarray[Any, Any]:
            return known

        def hashed() -> str:
            return hashlib.sha256(known.tobytes()).hexdigest()

        measure, value, digest = measured, of, hashed
    size = math.prod(shape) * 4
    return Tensor(name, shape, dtype, source, measure=measure, read=value, digest=digest, nbytes=size)


def _statistics(values: np.ndarray[Any, Any]) -> Statistics:
    """Of a small tensor in memory."""
    numbers = values.astype(np.float64).reshape(-1)
    finite = numbers[np.isfinite(numbers)]
    kept = finite if finite.size else np.zeros(1)
    single = kept.astype(np.float32)
    centred = kept - kept.mean()
    variance = float((centred**2).mean())
    return Statistics(
        count=numbers.size,
        mean=float(kept.mean()),
        std=math.sqrt(variance),
        norm=float(np.linalg.norm(finite)),
        minimum=float(kept.min()),
        maximum=float(kept.max()),
        nans=int(np.isnan(numbers).sum()),
        infs=int(np.isinf(numbers).sum()),
        zeros=int((numbers == 0).sum()),
        bf16_exact=float((single.view(np.uint32) & 0xFFFF == 0).mean()),
        fp16_exact=float((single.astype(np.float16) == single).mean()),
    )
