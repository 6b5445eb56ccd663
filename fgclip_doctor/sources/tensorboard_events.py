"""TensorBoard event files -> series, settings and restarts of a run, and the same again as the files grow.

A directory's files are one log: those that begin where the others have ended are restarts, those that run beside each
other are writers of one process or of several. Sub-directories are parts of the run; their names come before a tag
only where two of them hold it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgclip_doctor.run import Event, Fact, Run, Series, Source
from fgclip_doctor.sources import trainer
from fgclip_doctor.sources.event_records import MARGIN, Columns, decode, frame, is_record, ordered
from fgclip_doctor.sources.facts import typed
from fgclip_doctor.sources.files import Unreadable, inside, open_regular, read_at
from fgclip_doctor.sources.several import each_apart

NAME = "tfevents"  # stands in the name of every event file, whoever wrote it
BLOCK = 3 << 20  # bytes decoded at a time: usually less than 1 << 16 records, so that sorting them is fast
MAX_RECORD = 8 << 20  # bytes; longer records are graphs and media
MAX_DAMAGE = 64 << 20  # bytes without a record after which the rest of a file is left alone
MAX_TAGS = 1 << 16  # of all files together
MAX_TEXTS = 64  # of a file
MAX_SETTINGS = 10_000
MAX_DEPTH = 6  # directories
MAX_ENTRIES = 100_000  # looked at to find event files
MAX_FILES = 2_000
SETTINGS = re.compile(r"arg|conf|cfg|hyper|hparam|param|setting|option|flag", re.IGNORECASE)  # tags of such texts
OF_ONE_RUN = re.compile(  # directories so called are parts of one run
    r"train(?:ing)?|val(?:id|idation)?|eval(?:uation)?|test|(?:rank|worker|process|node|host|gpu)[-_]?\d+",
    re.IGNORECASE,
)
PAIR = re.compile(r"""(?<![\w.])([A-Za-z_][\w.-]{0,79})['"]?\s*[:=|]\s*('[^'\n]*'|"[^"\n]*"|[^\s,|(){}\[\]]+)""")


def is_event_file(path: Path) -> bool:
    """True if a record stands at the beginning of the file, or if its name claims so. Raises `Unreadable`."""
    if NAME in path.name:
        return True
    with open_regular(path) as descriptor:
        return is_record(os.pread(descriptor, 12, 0))


def event_files(directory: Path) -> list[Path]:
    """The event files in a directory and below it, to a bounded depth; links to directories aren't followed."""
    found, looked, level = [], 0, [directory]
    for _ in range(MAX_DEPTH):
        below: list[Path] = []
        for folder in level:
            for entry in _entries(folder):
                looked += 1
                if entry.is_dir(follow_symlinks=False):
                    below.append(folder / entry.name)
                elif NAME in entry.name:
                    found.append(folder / entry.name)
                if looked >= MAX_ENTRIES or len(found) >= MAX_FILES:
                    return sorted(found)
        level = below
    return sorted(found)


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError:  # gone meanwhile, or not ours to read: then nothing of the run is known from it
        return


@dataclass
class Rows:
    """The scalars of one tag in the order of the file. Growing it costs what the new ones cost."""

    count: int = 0
    space: tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]] = field(
        default_factory=lambda: (np.empty(0, np.int64), np.empty(0), np.empty(0))
    )

    def append(self, *columns: NDArray[Any]) -> None:
        """Steps, wall times and values."""
        count = self.count + len(columns[0])
        if count > len(self.space[0]):
            room = max(count, self.count * 3 // 2)
            steps, walls, values = (
                np.concatenate([old[: self.count], np.empty(room - self.count, old.dtype)]) for old in self.space
            )
            self.space = steps, walls, values
        for old, new in zip(self.space, columns, strict=True):
            old[self.count : count] = new
        self.count = count

    @property
    def steps(self) -> NDArray[np.int64]:
        return self.space[0][: self.count]

    @property
    def walls(self) -> NDArray[np.float64]:
        return self.space[1][: self.count]

    @property
    def values(self) -> NDArray[np.float64]:
        return self.space[2][: self.count]


class EventFile:
    """One event file, read as far as it was written, and further whenever `poll` is called."""

    def __init__(self, path: Path, *, within: Path | None = None, checksums: bool = True) -> None:
        """`within` is the directory that the file was found in: a link may not lead out of it."""
        self.path = path
        self.within = within
        self.checksums = checksums
        self.room = MAX_TAGS  # how many tags it may hold
        self._forget()

    def _forget(self) -> None:
        self.rows: dict[str, Rows] = {}
        self.texts: dict[str, str] = {}  # the first of each tag
        self.settings: dict[str, Any] = {}
        self.offset = 0  # where the next record begins
        self.size = 0
        self.lost = self.broken = self.long = self.left_out = 0
        self.problem: Unreadable | None = None
        self._identity: tuple[int, int] | None = None
        self._before = b""  # the bytes just before `offset`: what was read is still what the file holds

    def poll(self) -> int:
        """Read what was appended. Returns the number of new scalars. A last record that isn't whole waits for the rest.

        A file that was replaced, cut or written over is read from its beginning.
        """
        self.problem = None
        try:
            if self.within is not None and self.path.is_symlink():
                inside(self.within, os.path.relpath(self.path, self.within))
            with open_regular(self.path) as descriptor:
                status = os.fstat(descriptor)
                if self._identity is not None and not self._same(descriptor, status):
                    self._forget()
                self._identity, self.size = (status.st_dev, status.st_ino), status.st_size
                count = sum(self._keep(columns) for columns in self._read(descriptor))
                self._before = read_at(descriptor, self.path, max(self.offset - 16, 0), min(self.offset, 16))
                return count
        except Unreadable as error:
            self.problem = error
            return 0

    def _same(self, descriptor: int, status: os.stat_result) -> bool:
        same = (status.st_dev, status.st_ino) == self._identity and status.st_size >= self.offset
        return same and os.pread(descriptor, len(self._before), self.offset - len(self._before)) == self._before

    def _read(self, descriptor: int) -> Iterator[Columns]:
        """Block by block from `offset` to the size that the file had, or to what isn't a whole record yet."""
        block, buffer = BLOCK, bytearray()
        while self.offset < self.size and self.lost <= MAX_DAMAGE:
            length = min(block, self.size - self.offset)
            if len(buffer) < length + 2 * MARGIN:
                buffer = bytearray(length + 2 * MARGIN)
            if os.preadv(descriptor, [memoryview(buffer)[MARGIN : MARGIN + length]], self.offset) < length:
                return  # cut meanwhile; the next poll will see it
            data = np.frombuffer(buffer, np.uint8)
            frames = frame(data, MARGIN, MARGIN + length)
            at_end = self.offset + length == self.size
            if at_end and frames.damaged and frames.damaged[-1][1] == frames.end and not frames.needed:
                frames.end = frames.damaged.pop()[0]  # it may be that the rest is still being written
            self.lost += sum(stop - start for start, stop in frames.damaged)
            yield decode(data, frames, checksums=self.checksums)
            self.offset += frames.end - MARGIN
            block = BLOCK
            if frames.needed and self.offset + frames.needed <= self.size:
                if frames.needed > MAX_RECORD:
                    self.offset += frames.needed
                    self.long += 1
                else:
                    block = max(BLOCK, frames.needed)
            elif at_end:
                return

    def _keep(self, columns: Columns) -> int:
        order = ordered(columns.tags)
        tags = columns.tags[order]
        bounds = [0, *(np.flatnonzero(np.diff(tags)) + 1).tolist(), len(tags)]
        sorted_columns = [column[order] for column in (columns.steps, columns.walls, columns.values)]
        for start, end in pairwise(bounds):
            if start == end:
                continue
            name = columns.names[tags[start]]
            if name in self.rows or len(self.rows) < self.room:
                self.rows.setdefault(name, Rows()).append(*(column[start:end] for column in sorted_columns))
            else:
                self.left_out += end - start
        for message in columns.messages:
            for tag, text in message.texts:
                if SETTINGS.search(tag) and len(self.texts) < MAX_TEXTS:
                    self.texts.setdefault(tag, text)
            if len(self.settings) < MAX_SETTINGS:
                self.settings.update(*message.settings[:1])
        self.broken += columns.broken
        return len(tags)

    @property
    def first(self) -> float:
        """The wall time of the first scalar."""
        return min((float(rows.walls[0]) for rows in self.rows.values()), default=np.inf)

    def problems(self) -> Iterator[Unreadable]:
        if self.problem:
            yield self.problem
        if self.lost > MAX_DAMAGE:
            yield Unreadable(
                self.path, f"holds no records after byte {self.offset - self.lost:,}; the rest was not read"
            )
        elif self.lost:
            yield Unreadable(self.path, f"is damaged: {self.lost:,} bytes belong to no record, and were passed over")
        if self.broken:
            yield Unreadable(
                self.path, f"is damaged: {self.broken:,} records are not what was written, and were left out"
            )
        if self.long:
            yield Unreadable(
                self.path, f"holds {self.long:,} records of over {MAX_RECORD:,} bytes, which were passed over"
            )
        if self.torn and not self.rows:
            yield Unreadable(self.path, self.torn)

    def notes(self) -> Iterator[str]:
        """What is no fault of the file: a run that was killed or is under way leaves half a record behind."""
        if self.left_out:
            yield f"{self.path}: has tags over the limit of {MAX_TAGS:,}; {self.left_out:,} scalars were left out"
        if self.torn and self.rows:
            yield f"{self.path}: {self.torn}"

    @property
    def torn(self) -> str:
        if self.problem is not None or self.offset >= self.size or self.lost > MAX_DAMAGE:
            return ""
        return f"ends in the middle of a record, or in damage, from byte {self.offset:,} on"

    def facts(self) -> Iterator[Fact]:
        """What the texts and the hyperparameters in the file say of the configuration."""
        for tag, text in self.texts.items():
            yield from trainer.arguments(settings_in(text), f"{self.path}: {tag}")
        yield from trainer.facts(self.settings, f"{self.path}: hparams")


def settings_in(text: str) -> Mapping[str, Any]:
    """The settings in a text: a JSON object, else pairs as in a Markdown table, YAML, a `Namespace` or a `dict`."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = {name: typed(value.strip("'\"")) for name, value in PAIR.findall(text)}
    return content if isinstance(content, Mapping) else {}


class EventLog:
    """All event files under a path, as one run: `poll` reads what is new, `run` tells what is known."""

    def __init__(self, path: Path, *, checksums: bool = True) -> None:
        self.path = path
        self.checksums = checksums
        self.files: dict[Path, EventFile] = {}

    def poll(self) -> int:
        """Read what was appended, and new files. Returns the number of new scalars."""
        within = self.path if self.path.is_dir() else None
        for path in event_files(self.path) if within else [self.path]:
            if path not in self.files:
                self.files[path] = EventFile(path, within=within, checksums=self.checksums)
        count, room = 0, MAX_TAGS - sum(len(file.rows) for file in self.files.values())
        for file in self.files.values():
            file.room = room + len(file.rows)
            count += file.poll()
            room = file.room - len(file.rows)
        return count

    def run(self) -> Run:
        """The series of single files are views of what was read: they cost nothing, however long."""
        run = Run(str(self.path))
        files = sorted(self.files.values(), key=lambda file: (file.first, file.path.name))
        parts: list[_Part] = []
        for file in files:
            run.problems += [str(problem) for problem in file.problems()]
            run.notes += file.notes()
            if file.rows:
                _join(parts, file)
        for file in reversed(files):  # the latest launch says what the run is now
            for fact in file.facts():
                run.facts.setdefault(fact.name, fact)
        for part, tag, name in _named(parts, self.path):
            run.series[name] = part.series(tag, name)
        if len(parts) > 1 and (runs := _side_by_side(parts, self.path)):
            run.notes.append(each_apart(self.path, runs))
        run.events = [event for part in parts for event in part.events]
        return run


def read(path: Path, *, checksums: bool = True, readers: dict[Path, object] | None = None) -> Run:
    """What the event files under `path` tell of a run, or the one that it is; with `readers`, from where it was left.

    Raises `Unreadable` if there are some, but nothing in them can be read.
    """
    log = (readers or {}).get(path)
    if not isinstance(log, EventLog):
        log = EventLog(path, checksums=checksums)
    if readers is not None:
        readers[path] = log
    log.poll()
    run = log.run()
    problems = [problem for file in log.files.values() for problem in file.problems()]
    if problems and not (run.series or run.facts):
        raise problems[0]
    if path in log.files and not run.series:
        raise Unreadable(path, "holds no scalars")
    return run


@dataclass
class _Part:
    """Files that go on with each other's tags, in the order of their beginnings."""

    folder: Path  # of the first file
    folders: set[Path] = field(default_factory=set)
    files: list[EventFile] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    known: dict[str, tuple[int, float, int]] = field(default_factory=dict)  # tag: first step, last wall time and step

    def shared(self, file: EventFile) -> str | None:
        """The tag of which `file` has most, among those of this part."""
        tags = [tag for tag in file.rows if tag in self.known]
        return max(tags, key=lambda tag: file.rows[tag].count, default=None)

    def goes_on(self, file: EventFile) -> bool:
        """True if `file`, of another directory, takes up where this part stopped, and doesn't begin anew.

        What begins anew logs its first value at the step that the others began with, or after one interval of logging.
        """
        tag = self.shared(file)
        if tag is None:
            return False
        steps, wall = file.rows[tag].steps[:2].tolist(), float(file.rows[tag].walls[0])
        first, last_wall, _ = self.known[tag]
        return wall >= last_wall and steps[0] > max(first, steps[-1] - steps[0])

    def add(self, file: EventFile) -> None:
        tag = self.shared(file)
        if tag is not None:
            step, wall = int(file.rows[tag].steps[0]), float(file.rows[tag].walls[0])
            _, last_wall, last_step = self.known[tag]
            if wall >= last_wall:
                detail = f"logging of {tag} went on at step {step}, in a new file, after step {last_step}"
                self.events.append(Event("resume", step, detail, Source(str(file.path), tag)))
        for tag, rows in file.rows.items():
            first = self.known[tag][0] if tag in self.known else int(rows.steps[0])
            self.known[tag] = first, float(rows.walls[-1]), int(rows.steps[-1])
        self.folders.add(file.path.parent)
        self.files.append(file)

    def series(self, tag: str, name: str) -> Series:
        files = [file for file in self.files if tag in file.rows]
        rows = [file.rows[tag] for file in files]
        steps, walls, values = rows[0].steps, rows[0].walls, rows[0].values
        if len(rows) > 1:
            steps = np.concatenate([one.steps for one in rows])
            walls = np.concatenate([one.walls for one in rows])
            values = np.concatenate([one.values for one in rows])
            if any(after.walls[0] < before.walls[-1] for before, after in pairwise(rows)):
                order = np.argsort(walls, kind="stable")  # written side by side
                steps, walls, values = steps[order], walls[order], values[order]
        return Series(name, steps, values, Source(str(files[-1].path), tag), walls=walls)


def _join(parts: list[_Part], file: EventFile) -> None:
    """Put `file` with those of its directory, or with those of another that it goes on with."""
    folder = file.path.parent
    for part in reversed(parts):
        if folder in part.folders or part.goes_on(file):
            part.add(file)
            return
    parts.append(_Part(folder))
    parts[-1].add(file)


def _named(parts: Iterable[_Part], root: Path) -> Iterator[tuple[_Part, str, str]]:
    """(part, tag, name of the series). `SummaryWriter.add_scalars` puts loss/a and loss/b into loss_a and loss_b, as
    loss: such directories are named back."""
    holders: dict[str, list[_Part]] = {}
    for part in parts:
        for tag in part.known:
            holders.setdefault(tag, []).append(part)
    for tag, sharing in holders.items():
        above = Path(os.path.commonpath([part.folder for part in sharing]))
        for part in sharing:
            within = part.folder.relative_to(above).as_posix()
            if len(sharing) == 1 or within == ".":
                yield part, tag, tag
            elif within.startswith(f"{tag.replace('/', '_')}_"):
                yield part, tag, f"{tag}/{within[len(tag) + 1 :]}"
            else:
                yield part, tag, f"{within}/{tag}"


def _side_by_side(parts: Iterable[_Part], root: Path) -> list[str]:
    """The directories that log the same losses and aren't parts of one run, if there are several."""
    holders: dict[str, set[str]] = {}
    for part in parts:
        within = part.folder.relative_to(root)
        of_one = any(OF_ONE_RUN.fullmatch(name) for name in within.parts)
        for tag in part.known if not of_one else ():
            if "loss" in tag.lower() and not part.folder.name.startswith(f"{tag.replace('/', '_')}_"):
                holders.setdefault(tag, set()).add(within.as_posix())
    most = max(holders.values(), key=len, default=set())
    return sorted(most) if len(most) > 1 else []
