"""`fgclip-doctor watch`: follows a run, tells each finding once, and can end it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.layout import Layout
from rich.live import Live

from fgclip_doctor.diagnosis import Report
from fgclip_doctor.findings import Severity
from fgclip_doctor.inert import inert
from fgclip_doctor.live import dashboard
from fgclip_doctor.live.follow import Changes, Follower, step_of
from fgclip_doctor.live.launcher import Command, signals_passed_to
from fgclip_doctor.reports import terminal, text
from fgclip_doctor.run import Run
from fgclip_doctor.theory import LN2

HEARTBEAT = 60.0  # seconds between two lines that say that all is well


@dataclass
class Options:
    interval: float = 2.0
    stop_on: Severity | None = None
    stop_at_once: bool = False
    dashboard: bool = False
    tensorboard: Path | None = None


class Watcher:
    """Shows what a follower finds, as lines or on a screen of its own."""

    def __init__(self, follower: Follower, options: Options, *, subject: str) -> None:
        self.follower = follower
        self.options = options
        self.subject = subject
        self.console = Console(stderr=True)
        self.live: Live | None = None
        self.began = self.beat = time.monotonic()
        self.stop_after: int | None = None  # the step at which something was found that is to end the run
        self.before = ""  # of a line of ours
        self.scalars = _Scalars(options.tensorboard) if options.tensorboard else None

    def look(self, *, last: bool = False) -> None:
        changes = self.follower.look(last=last)
        if changes is not None:
            self._tell(changes)
            if self.scalars and self.follower.run is not None:
                self.scalars.write(self.follower.run)
        if self.live is not None:
            self.live.update(self.screen(), refresh=True)
        elif not last and time.monotonic() - self.beat > HEARTBEAT:
            self.beat = time.monotonic()
            self._line(self.pulse())

    def screen(self) -> Layout:
        size = self.console.size
        follower = self.follower
        return dashboard.screen(
            follower.run,
            follower.report,
            list(follower.told.values()),
            state=f"{self.subject}  watched for {_duration(time.monotonic() - self.began)}",
            width=size.width,
            height=size.height,
        )

    def pulse(self) -> str:
        run = self.follower.run
        if run is None:
            return f"nothing to read yet in {self.subject}"
        open_ones = len(self.follower.told)
        return f"step {step_of(run):,}, {open_ones} finding{'' if open_ones == 1 else 's'}"

    def _tell(self, changes: Changes) -> None:
        for told in changes.new:
            self._line(f"step {told.step}: {text.finding_line(told.finding)}")
            worst = self.options.stop_on
            if worst is not None and told.finding.severity.at_least(worst) and self.stop_after is None:
                self.stop_after = changes.step
        for told in changes.withdrawn:
            self._line(
                f"step {changes.step}: withdrawn: {told.finding.code} {told.finding.where} (told at step {told.step})"
            )

    def _line(self, line: str) -> None:
        if self.live is None:
            print(f"{self.before}fgclip-doctor: {inert(line)}", file=sys.stderr, flush=True)

    def due(self) -> bool:
        """Whether the run is to be ended now: something was found, and a checkpoint was saved since."""
        if self.stop_after is None or self.follower.run is None:
            return False
        saved = self.follower.run.series.get("saved")
        return self.options.stop_at_once or (saved is not None and bool((saved.steps >= self.stop_after).any()))

    @contextmanager
    def shown(self) -> Iterator[None]:
        if not self.options.dashboard:
            yield
            return
        with Live(self.screen(), console=Console(), screen=True, auto_refresh=False) as self.live:
            try:
                yield
            finally:
                self.live = None

    def summary(self) -> None:
        """What was found, when it is over."""
        report = self.follower.report
        if report is None:
            self._line(f"nothing could be read of {self.subject}")
            return
        if self.console.is_terminal:
            self.console.print(terminal.render(report))
        else:
            print(text.render(report), file=sys.stderr, end="", flush=True)


def command(words: Sequence[str], directory: Path, watcher: Watcher) -> int:
    """Run a command, watch it, and give its exit code; 1 if it was ended for what was found. Raises `OSError`."""
    with ExitStack() as stack:
        streams: dict[str, Any] = {}
        if watcher.options.dashboard:  # the screen is ours: what the command prints is kept
            directory.mkdir(parents=True, exist_ok=True)
            output = stack.enter_context((directory / "output.txt").open("wb"))
            streams = {"stdout": output, "stderr": output}
        else:
            watcher.before = "\n"  # it writes there, too, and its progress bar leaves its line open
        run = Command(words, directory, **streams)
        stack.enter_context(signals_passed_to(run))
        ended = False
        try:
            with watcher.shown():
                while run.running(watcher.options.interval):
                    watcher.look()
                    if watcher.due() and not ended:
                        ended = True
                        run.stop()
        finally:
            run.stop(0.0)
        watcher.look(last=True)
        watcher.before = ""
        watcher.summary()
        return 1 if ended else run.exit_code


def paths(watcher: Watcher, *, once: bool, over: Callable[[], bool]) -> Report | None:
    """Follow paths until `over`, or Ctrl-C, which goes through to the caller after the summary."""
    try:
        if not once:
            with watcher.shown():
                watcher.look()
                while not over():
                    time.sleep(watcher.options.interval)
                    watcher.look()
        watcher.look(last=True)
    finally:
        if once and watcher.console.is_terminal:
            Console().print(watcher.screen(), height=min(watcher.console.size.height, 40))
        else:
            watcher.summary()
    return watcher.follower.report


class _Scalars:
    """Learnt bits, null levels and candidates as TensorBoard scalars under ``doctor/``."""

    def __init__(self, directory: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.writer = EventFileWriter(str(directory))
        self.event, self.summary = Event, Summary
        self.written: dict[str, int] = {}

    def write(self, run: Run) -> None:
        for site in run.recording.first.sites if run.recording else ():
            start = self.written.get(site.name, 0)
            for place in range(start, len(site.loss)):
                values = {
                    "null": site.null[place],
                    "bits": (site.null[place] - site.loss[place]) / LN2,
                    "candidates": site.candidates[place],
                }
                tags = [
                    self.summary.Value(tag=f"doctor/{name}/{site.name}", simple_value=float(value))
                    for name, value in values.items()
                ]
                self.writer.add_event(
                    self.event(wall_time=time.time(), step=int(site.steps[place]), summary=self.summary(value=tags))
                )
            self.written[site.name] = len(site.loss)
        self.writer.flush()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
