"""The log of a run as it goes: JSON lines and TensorBoard events, every entry in both.

A resumed run appends. What an earlier one logged after the checkpoint that it is resumed from is logged once more, so
those lines are cut off, and TensorBoard is told to forget those steps.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Protocol

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

Entry = Mapping[str, float]
JSON_LINES = "log.jsonl"
EVENTS = "tensorboard"  # a directory
FLUSH_SECONDS = 10  # how far TensorBoard may lag behind


class Sink(Protocol):
    """Where entries of the log go. Each names its optimizer step as `step`."""

    def write(self, entry: Entry) -> None: ...
    def close(self) -> None: ...


class JsonLines:
    """One JSON object a line. NaN and infinities are strings, which every reader of JSON can read."""

    def __init__(self, path: Path, *, start: int) -> None:
        kept = list(_until(path, start)) if start and path.is_file() else []
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text("".join(kept), encoding="utf-8")
        partial.rename(path)
        self.file = path.open("a", encoding="utf-8", buffering=1)  # by line, so that a killed run keeps its log

    def write(self, entry: Entry) -> None:
        safe = {name: value if math.isfinite(value) else str(value) for name, value in entry.items()}
        self.file.write(json.dumps(safe) + "\n")

    def close(self) -> None:
        self.file.close()


def _until(path: Path, step: int) -> Iterator[str]:
    """The whole lines of a log up to a step."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if not line.endswith("\n") or json.loads(line)["step"] > step:
                return
            yield line


class TensorBoardEvents:
    """Scalars in TensorBoard's own files, one event for all values of a step."""

    def __init__(self, directory: Path, *, start: int) -> None:
        self.events = EventFileWriter(str(directory), flush_secs=FLUSH_SECONDS)
        restart = SessionLog(status=SessionLog.START)  # what was logged from the next step on is an orphan
        self.events.add_event(Event(wall_time=time.time(), step=start + 1, session_log=restart))

    def write(self, entry: Entry) -> None:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in entry.items() if name != "step"]
        self.events.add_event(Event(wall_time=time.time(), step=int(entry["step"]), summary=Summary(value=values)))

    def close(self) -> None:
        self.events.close()


@contextmanager
def logged(directory: Path, *, start: int = 0) -> Iterator[Callable[[Entry], None]]:
    """Yields what writes an entry into every log of the run in `directory`, which goes on after step `start`."""
    directory.mkdir(parents=True, exist_ok=True)
    with (
        closing(JsonLines(directory / JSON_LINES, start=start)) as lines,
        closing(TensorBoardEvents(directory / EVENTS, start=start)) as events,
    ):
        sinks: tuple[Sink, ...] = (lines, events)

        def write(entry: Entry) -> None:
            for sink in sinks:
                sink.write(entry)

        yield write
