"""The first steps of a real training command, run to be judged: a preflight of minutes before a run of weeks."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from fgclip_doctor.live.launcher import STEPS, VARIABLE, Command
from fgclip_doctor.sources.recording import Reader

LOOK = 0.2  # seconds between two looks at the step
PATIENCE = (10.0, 5.0, 5.0)  # seconds after SIGINT, SIGTERM and SIGKILL
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # whoever asks us to leave, or closes the terminal
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h: what a child leaves behind becomes ours, so that we can end it


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the steps went. `reason` is why they ended: "steps", "time", or "exit" with the command's own `code`."""

    directory: Path
    step: int
    reason: str
    code: int
    seconds: float
    saved: int = 0  # the step of the last checkpoint that was seen to be written


def run_steps(
    words: Sequence[str],
    directory: Path,
    *,
    steps: int,
    max_time: float,
    variables: Mapping[str, str] | None = None,
    on_step: Callable[[int], object] = lambda step: None,
    until_saved: bool = False,
) -> Outcome:
    """Run a command until it has done `steps` optimizer steps, and end it with all that it started.

    With `until_saved` it goes on until a checkpoint was written, too. What it writes by itself, checkpoints and logs,
    is left alone. Its output goes to ``output.txt`` beside the recording. Raises `OSError` if there is no such command.
    """
    directory.mkdir(parents=True, exist_ok=True)
    reader = Reader(directory)
    began = time.monotonic()
    step, reason = 0, "exit"
    with (directory / "output.txt").open("wb") as output, _orphans_are_ours() as hurried:
        streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
        told = {STEPS: str(steps), **(variables or {})}
        command = Command(words, directory, variables=told, start_new_session=True, **streams)
        try:
            while command.running(LOOK):
                reader.poll()
                first = reader.first
                step = first.step if first else 0
                on_step(step)
                done = step >= steps and (not until_saved or (first is not None and first.saved_at > 0))
                if done or time.monotonic() - began > max_time:
                    reason = "steps" if done else "time"
                    break
        finally:
            end(command, directory, hurried)
        reader.poll()
        step = max((rank.step for rank in reader.ranks.values()), default=0)
        saved = max((rank.saved_at for rank in reader.ranks.values()), default=0)
    return Outcome(directory, step, reason, command.exit_code, time.monotonic() - began, saved)


def end(command: Command, directory: Path, hurried: Callable[[], bool] = lambda: False) -> None:
    """End a command that leads a session of its own, and every process that it has left anywhere.

    It is asked first, unless or until we are `hurried`.
    """
    for number, patience in zip((signal.SIGINT, signal.SIGTERM, signal.SIGKILL), PATIENCE, strict=True):
        if hurried() and number != signal.SIGKILL:
            continue
        with suppress(ProcessLookupError):
            os.killpg(command.process.pid, number)
        for process in left_behind(directory):
            with suppress(ProcessLookupError):
                os.kill(process, number)
        until = time.monotonic() + patience
        while time.monotonic() < until and (number == signal.SIGKILL or not hurried()):
            _reap(command.process.pid)
            if not command.running(0.05) and not left_behind(directory):
                return


def left_behind(directory: Path) -> list[int]:
    """The processes that were started with this recording, whatever session they are in. Empty where /proc isn't."""
    mark = f"{VARIABLE}={directory.absolute()}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            alive = entry.joinpath("stat").read_bytes().rpartition(b")")[2].split()[:1] != [b"Z"]
            if alive and int(entry.name) != os.getpid() and mark in entry.joinpath("environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue  # it has ended, or is somebody else's
    return found


@contextmanager
def _orphans_are_ours() -> Iterator[Callable[[], bool]]:
    """What loses its parent in here is adopted by this process (on Linux), and a signal ends us in order.

    A second signal changes nothing of that, but what is yielded is true from then on.
    """
    came: list[int] = []

    def leave(number: int, _: object) -> None:
        came.append(number)
        if len(came) == 1:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    before = {one: signal.getsignal(one) for one in STOPS}
    for one, handler in before.items():
        if handler is not signal.SIG_IGN:  # as `nohup` and a shell's background have it
            signal.signal(one, leave)
    _adopt(1)
    try:
        yield lambda: len(came) > 1
    finally:
        _adopt(0)
        for one, handler in before.items():
            signal.signal(one, handler)


def _adopt(on: int) -> None:
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, on, 0, 0, 0)


def _reap(own: int) -> None:
    """Take note of adopted processes that have ended; `Command` waits for its `own` by itself."""
    for entry in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):
            for child in entry.read_text().split():
                if int(child) != own:
                    os.waitpid(int(child), os.WNOHANG)
