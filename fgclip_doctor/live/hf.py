"""The recorder as a callback of `transformers.Trainer`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from fgclip_doctor.live.launcher import fresh_directory
from fgclip_doctor.live.recorder import Recorder


class DoctorCallback(TrainerCallback):
    """``Trainer(..., callbacks=[DoctorCallback()])`` records the run into `directory`.

    Gradients are looked at as the optimizer steps, where `on_pre_optimizer_step` stands: later they are gone.
    """

    def __init__(self, directory: str | Path | None = None) -> None:
        self.recorder = Recorder(Path(directory) if directory else fresh_directory())

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.recorder.start(kwargs["model"], kwargs["optimizer"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.recorder.stop(0)
