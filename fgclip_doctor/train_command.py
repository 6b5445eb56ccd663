"""``fgclip-doctor train``: what will happen, then the run with a progress bar and its logs, then where it lies."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fgclip_doctor import forecast
from fgclip_doctor.run import Missing, Run
from fgclip_doctor.training import settings_file
from fgclip_doctor.training.settings import TrainConfig
from fgclip_doctor.training.settings_file import SettingsError

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from fgclip_doctor.core.model import FgclipModel

REPORTS = 20  # lines of progress at least, where there are as many steps, in a run that no terminal shows
MOST_STEPS = 100  # between two of them
SMALL = 128  # wide at most: a model that gains nothing by a second thread, and loses much beside other work
SCALES = {"global": "logit_scale", "region": "logit_scale_finegraind", "hard": "logit_scale_hardneg"}


class Interrupted(Exception):  # noqa: N818 - not an error; says what is left of the run
    """Ctrl-C."""


def settings(path: Path | None, assignments: Sequence[str], *, resume: bool) -> TrainConfig:
    """The settings of a run; those of a resumed one are what it was started with, and what is now said over them.

    Raises `SettingsError`.
    """
    unnamed = Path(".fgclip-doctor", time.strftime("train-%Y-%m-%d-%H%M%S"))
    config = settings_file.read(path, assignments, output_dir=str(unnamed))
    if not (resume or config.resume):
        if any(config.output_dir.glob("checkpoint-*")):
            raise SettingsError(f"{config.output_dir} already holds a run: --resume goes on, or --set output_dir=DIR")
        return config
    if config.output_dir == unnamed:
        raise SettingsError("--resume needs to know which run: --set output_dir=DIR")
    saved = config.output_dir / settings_file.SAVED
    return replace(settings_file.read(path, assignments, saved=saved), resume=True)


def train(config: TrainConfig, console: Console) -> None:
    """Trains, and tells of it on `console`. Under torchrun only the first rank tells anything.

    Raises `Interrupted` on Ctrl-C.
    """
    import torch

    from fgclip_doctor.training import loop
    from fgclip_doctor.training.checkpointing import latest, step_of
    from fgclip_doctor.training.logs import logged

    if config.model.vision_config.hidden_size <= SMALL:
        torch.set_num_threads(1)
    if int(os.environ.get("RANK", "0")):
        loop.train(config)
        return
    start = step_of(latest(config.output_dir)) if config.resume else 0
    settings_file.save(replace(config, resume=False))
    display = Display(config.max_steps, console, start)

    def on_step(entry: Mapping[str, float]) -> None:
        log(entry)
        display.step(entry)

    try:
        with logged(config.output_dir, start=start) as log:
            loop.train(config, on_start=display.start, on_step=on_step)
    except KeyboardInterrupt:
        raise Interrupted(_kept(config.output_dir, display.done)) from None
    finally:
        display.stop()
    say(console, f"the run is in {config.output_dir}; read it with: fgclip-doctor audit {config.output_dir}")


def say(console: Console, text: str) -> None:
    """Prints text as it is, whatever its length."""
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def _kept(directory: Path, step: int) -> str:
    """What is left of a run that was interrupted."""
    from fgclip_doctor.training.checkpointing import latest

    try:
        last = latest(directory)
    except FileNotFoundError:
        return f"interrupted after step {step}, before the first checkpoint of {directory}"
    return f"interrupted after step {step}; --resume --set output_dir={directory} goes on from {last.name}"


def foretold(config: TrainConfig, model: FgclipModel, optimizer: Optimizer, *, ranks: int) -> str:
    """What will happen: the parameters that are trained, then the forecast of their losses."""
    rows = [("parameters", "tensors", "count", "peak learning rate", "weight decay")]
    for group in optimizer.param_groups:
        count = sum(parameter.numel() for parameter in group["params"])
        rate, decay = group["initial_lr"], group["weight_decay"]  # a scheduler leaves the peak in initial_lr
        rows.append((group["name"], f"{len(group['params'])}", f"{count:,}", f"{rate:g}", f"{decay:g}"))
    facts = {fact.name: fact for fact in forecast.planned(config, ranks=ranks, source="settings")}
    scales = {term: model.get_parameter(name).exp().item() for term, name in SCALES.items()}
    try:
        plan = forecast.render(forecast.forecast(Run("settings", facts=facts), scales))
    except Missing as reason:
        plan = f"no forecast of the losses: {reason}\n"
    return "\n".join([*forecast.aligned(rows), "", plan])


class Display:
    """Tells of a run: with a bar on a terminal, else with a line now and then."""

    def __init__(self, steps: int, console: Console, start: int) -> None:
        self.steps, self.console = steps, console
        self.done = self.first = self.told = start
        self.began = 0.0
        self.bank_on, self.bank_size = False, 0
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[said]}"), TimeRemainingColumn())
        self.bar = Progress(*columns, console=console) if console.is_terminal else None

    def start(self, config: TrainConfig, model: FgclipModel, optimizer: Optimizer) -> None:
        """Says what will happen, and starts the clock."""
        from fgclip_doctor.core.ranks import world_size

        say(self.console, foretold(config, model, optimizer, ranks=world_size()))
        self.bank_size = config.model.memory_bank_size
        self.began = time.monotonic()
        if self.bar is not None:
            self.bar.start()
            self.bar.add_task("training", total=self.steps, completed=self.first, said="")

    def step(self, entry: Mapping[str, float]) -> None:
        self.done = int(entry["step"])
        if entry.get("bank_on") and not self.bank_on:
            self.bank_on = True
            at = f"step {self.done}, forward {entry['forwards']:.0f}"
            rows = f"{entry['bank_rows']:.0f} of {self.bank_size} rows, pointer {entry['bank_pointer']:.0f}"
            say(self.console, f"memory bank on at {at}: {rows}")
        rate = (self.done - self.first) / max(time.monotonic() - self.began, 1e-9)
        bits = (f"{name} {entry[f'learnt_bits_{name}']:.2f}" for name in SCALES if f"learnt_bits_{name}" in entry)
        said = f"loss {entry['loss']:.3f}  learnt bits: {', '.join(bits)}  {rate:.1f} step/s"
        last = self.done == self.steps
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=self.done, said=said)
        elif last or self.done - self.told >= min(max(self.steps // REPORTS, 1), MOST_STEPS):
            self.told = self.done
            say(self.console, f"step {self.done}/{self.steps}  {said}")

    def stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
