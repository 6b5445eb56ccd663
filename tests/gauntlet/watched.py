"""Records what a run of the gauntlet trains, as `fgclip_doctor.watching` and `DoctorCallback` do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn
from torch.optim import Optimizer

from fgclip_doctor.live.hf import DoctorCallback
from fgclip_doctor.live.recorder import Pace, Recorder
from fgclip_doctor.training.settings import TrainConfig

Start = Callable[[TrainConfig, nn.Module, Optimizer], None]


class EachStep(Pace):
    """Looks at every step: a run of seconds stands for one of hours, which has as many looks and is slowed by none."""

    looking = True

    def __init__(self) -> None:
        """It keeps no account of what looking costs."""

    def stepped(self, step: int, spent: float) -> None:
        """The next one is looked at, too."""


def recorder_of(directory: Path) -> Recorder:
    recorder = Recorder(directory)
    recorder.pace = EachStep()
    return recorder


def callback_of(directory: Path) -> DoctorCallback:
    callback = DoctorCallback(directory)
    callback.recorder = recorder_of(directory)
    return callback


@contextmanager
def recorded(directory: Path) -> Iterator[Start]:
    """Yields what begins the recording, which ends with the block. A leg that is resumed goes on in the directory."""
    recorder = recorder_of(directory)
    kept: list[nn.Module | Optimizer] = []  # or they are gone before the recorder's last look

    def start(_: TrainConfig, model: nn.Module, optimizer: Optimizer) -> None:
        kept.extend((model, optimizer))
        recorder.start(model, optimizer)

    try:
        yield start
    finally:
        recorder.stop(0)
