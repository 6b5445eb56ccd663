"""The same paths again and again, while a run goes on. No file system has to tell of changes: sizes and times do."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fgclip_doctor.run import Run
from fgclip_doctor.sources import load
from fgclip_doctor.sources.files import Unreadable
from fgclip_doctor.sources.recording import Reader

MAX_ENTRIES = 20_000  # files whose sizes and times are compared
MAX_DEPTH = 6
MAX_AGAIN = 8 << 20  # bytes of a recording that are read again to see how it was at an earlier step

State = tuple[str, int, int, int]


class Following:
    """`poll` gives the run whenever it has changed. Recordings and event files are read on from where they were left;
    other files that changed are read again, and through the cache what didn't is not.
    """

    def __init__(
        self, paths: Sequence[Path], *, base: Path | None, facts: Mapping[str, str], roles: Mapping[str, str]
    ) -> None:
        self.paths = paths
        self.base = base
        self.facts = facts
        self.roles = roles
        self.readers: dict[Path, object] = {}
        self.state: list[State] | None = None
        self.problem = ""  # why there is nothing to read yet

    def ended(self) -> bool:
        """Whether all of it is a recording that was brought to its end."""
        return bool(self.readers) and all(isinstance(one, Reader) and one.ended for one in self.readers.values())

    def poll(self) -> Run | None:
        """The run, or None if nothing changed since, or nothing can be read yet."""
        state = sorted(_states(self.paths))
        if state == self.state:
            return None
        self.state = state
        try:
            run = load(self.paths, self.base, self.facts, self.roles, readers=self.readers)
        except Unreadable as error:
            self.problem = str(error)
            return None
        self.problem = ""
        return run

    def until(self, step: int) -> Run | None:
        """The run as it was after a step. None unless all of it is recordings, none of them long."""
        readers: dict[Path, object] = {
            path: Reader(path, until=step)
            for path, one in self.readers.items()
            if isinstance(one, Reader) and sum(one.offsets.values()) <= MAX_AGAIN
        }
        if readers.keys() != {*self.paths}:
            return None
        try:
            return load(self.paths, self.base, self.facts, self.roles, readers=readers)
        except Unreadable:
            return None  # nothing of it was there yet


def _states(paths: Sequence[Path]) -> Iterator[State]:
    """Name, number, size and time of every file under `paths`; what vanishes meanwhile is gone."""
    waiting = [(path, 0) for path in paths]
    seen = 0
    while waiting and seen < MAX_ENTRIES:
        path, depth = waiting.pop()
        try:
            if path.is_dir():
                if depth < MAX_DEPTH:
                    waiting += [(Path(entry.path), depth + 1) for entry in os.scandir(path)]
                continue
            status = path.stat()
        except OSError:
            continue
        seen += 1
        yield str(path), status.st_ino, status.st_size, status.st_mtime_ns
