"""The recorder as a callback of Lightning, under either of its names."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgclip_doctor.live.launcher import fresh_directory
from fgclip_doctor.live.recorder import Recorder

if TYPE_CHECKING:
    Callback = object
else:
    Callback = import_module("lightning.pytorch" if find_spec("lightning") else "pytorch_lightning").Callback


class LightningDoctor(Callback):
    """``Trainer(..., callbacks=[LightningDoctor()])`` records the run into `directory`.

    A module whose losses are in its `training_step` is never called as a whole: backward passes are then counted.
    """

    def __init__(self, directory: str | Path | None = None) -> None:
        self.recorder = Recorder(Path(directory) if directory else fresh_directory())

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.recorder.start(module, trainer.optimizers[0])

    def on_train_end(self, trainer: Any, module: Any) -> None:
        self.recorder.stop(0)

    def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
        self.recorder.stop(1)
