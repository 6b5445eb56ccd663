"""Runs any command with the recorder in every Python process of it, through the environment alone."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

VARIABLE = "FGCLIP_DOCTOR_RECORD"  # the directory of the recording
STEPS = "FGCLIP_DOCTOR_GATE"  # the steps of a dry run, after which the model is taken through a save and a load
OVERFIT = "FGCLIP_DOCTOR_OVERFIT"  # set where each call of the model is to get the first batch again
INJECTED = Path(__file__).parent / "injected"
FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)  # Ctrl-C reaches the command by itself


def environment(directory: Path, own: Mapping[str, str]) -> dict[str, str]:
    """`own` with what starts the recorder; torchrun, accelerate, deepspeed and shells hand it on to their children."""
    paths = [str(INJECTED), *filter(None, [own.get("PYTHONPATH")])]
    return {**own, VARIABLE: str(directory.absolute()), "PYTHONPATH": os.pathsep.join(paths)}


def start_recorder() -> None:
    """In a process of the watched command, once torch was imported."""
    from fgclip_doctor.live.recorder import Recorder

    recorder = Recorder(Path(os.environ[VARIABLE]))
    recorder.start()
    atexit.register(recorder.stop)


class Command:
    """A command under way. Its input, output and errors are the terminal's, as ever."""

    def __init__(
        self, command: Sequence[str], directory: Path, *, variables: Mapping[str, str] | None = None, **options: Any
    ) -> None:
        """`options` are those of `subprocess.Popen`. Raises `OSError` if there is no such command."""
        own = environment(directory, {**os.environ, **(variables or {})})
        self.process = subprocess.Popen(list(command), env=own, **options)  # noqa: S603

    def running(self, wait: float) -> bool:
        """Whether it still runs, after at most `wait` seconds."""
        try:
            self.process.wait(wait)
        except subprocess.TimeoutExpired:
            return True
        return False

    @property
    def exit_code(self) -> int:
        """Its own; 128 + n where signal n ended it, as shells have it."""
        code = self.process.returncode
        return 128 - code if code < 0 else code

    def stop(self, patience: float = 30.0) -> None:
        """Ask it to end, and make it after `patience` seconds."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)  # what trainers catch to save their state
            if self.running(patience):
                self.process.terminate()
            if self.running(5.0):
                self.process.kill()
                self.process.wait()


@contextmanager
def signals_passed_to(command: Command) -> Iterator[None]:
    """Signals that ask us to end go to the command. Ctrl-C reaches it by itself; we wait for what it makes of it."""

    def forward(number: int, _: FrameType | None) -> None:
        command.process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in FORWARDED}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def fresh_directory() -> Path:
    """``.fgclip-doctor/<time>``, where a recording goes unless another place is named."""
    return Path(".fgclip-doctor") / time.strftime("%Y-%m-%dT%H-%M-%S")
