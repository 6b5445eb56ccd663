"""Runs of our own core: what each recipe trains, from scratch or from a base that is trained once."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from fgclip_doctor.core.config import LOGIT_SCALE_CAP, LOGIT_SCALE_FROM_SCRATCH, FgclipConfig
from fgclip_doctor.training.checkpointing import latest
from fgclip_doctor.training.loop import train
from fgclip_doctor.training.settings import TrainConfig
from tests.gauntlet.watched import recorded, recorder_of

SCENES = 96  # few, so that a run of seconds learns them
BANK = 48  # rows; not the width, or nothing would tell the two axes of the bank apart
BANK_WARMUP = 30


@dataclass(frozen=True, kw_only=True)
class CoreBase:
    """A model that has learnt the scenes, regions too, as the base of a fine-tuning.

    It learns fast enough to shape its weights, as long training does, and only then gets used to a scale of 100.
    """

    width: int = 64
    scale: float = LOGIT_SCALE_CAP
    seed: int = 100
    rate: float = 7e-3

    def make(self, directory: Path, base: Path | None) -> None:
        learning = TrainConfig(
            output_dir=directory / "learning",
            model=model_of(self.width, region_weight=1.0),
            max_steps=260,
            micro_batch=16,
            scenes=SCENES,
            seed=self.seed,
            learning_rate=self.rate,
            warmup_steps=20,
            save_steps=260,
        )
        learnt = latest(train(learning))
        if self.scale > LOGIT_SCALE_FROM_SCRATCH:
            rescale(learnt / "model.safetensors", self.scale)
        settled = replace(
            learning,
            output_dir=directory,
            base=learnt,
            max_steps=60,
            learning_rate=1e-3,
            save_steps=60,
            seed=self.seed + 1,
        )
        train(settled)


def rescale(weights: Path, scale: float) -> None:
    """Sets the three scales of saved weights."""
    tensors = load_file(weights)
    for name in tensors:
        if name.startswith("logit_scale"):
            tensors[name] = torch.tensor(scale)
    save_file(tensors, weights, metadata={"format": "pt"})


@dataclass(frozen=True, kw_only=True)
class CoreRun:
    """A run of `fgclip_doctor.training`. `model` and `settings` are changes to those of `fine_tuning` or `scratch`."""

    start: CoreBase | None
    width: int
    model: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    resume_at: int | None = None  # the step of the checkpoint that a second leg takes up
    ranks: int = 1

    @property
    def config(self) -> TrainConfig:
        """Its settings; where it is saved and what it starts from are yet to come."""
        return TrainConfig(
            output_dir=Path("nowhere"), model=model_of(self.width, **self.model), faults=self.faults, **self.settings
        )

    @property
    def facts(self) -> dict[str, str]:
        """What a user knows of the run without any artefact."""
        config = self.config
        stated: dict[str, object] = {
            "micro_batch": config.micro_batch,
            "accumulation": config.accumulation,
            "regions_per_sample": config.regions_per_scene,
            "dimension": self.width,
            "max_steps": config.max_steps,
            "world_size": self.ranks,
        }
        if config.model.use_memory_bank:
            stated["bank_size"] = config.model.memory_bank_size
        return {name: str(value) for name, value in stated.items()}

    def make(self, directory: Path, base: Path | None, recording: Path) -> None:
        config = replace(self.config, output_dir=directory, base=base)
        if self.ranks > 1:
            on_ranks(config, self.ranks, recording)
            return
        if self.resume_at is not None:
            interrupted(config, self.resume_at, recording)
            config = replace(config, resume=True)
        with recorded(recording) as start:
            train(config, on_start=start)


class Interrupted(Exception):
    """The run ends here, and is taken up from its last checkpoint."""


def interrupted(config: TrainConfig, step: int, recording: Path) -> None:
    """Trains until the step after a checkpoint, and dies."""

    def die(entry: Mapping[str, float]) -> None:
        if entry["step"] > step:
            raise Interrupted

    try:
        with recorded(recording) as start:
            train(replace(config, save_steps=step), on_start=start, on_step=die)
    except Interrupted:
        return
    raise ValueError(f"the run was over before step {step}")


def on_ranks(config: TrainConfig, ranks: int, recording: Path) -> None:
    """Trains on several processes, as torchrun would start them."""
    context = get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = (config, recording, ranks, port)
    processes = [context.Process(target=of_rank, args=(number, *shared)) for number in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError(f"a rank failed: {[process.exitcode for process in processes]}")


def of_rank(number: int, config: TrainConfig, recording: Path, ranks: int, port: int) -> None:
    torch.set_num_threads(1)
    where: dict[str, object] = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "gauntlet"}
    where |= {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": ranks}
    os.environ.update({name: str(value) for name, value in where.items()})
    recorder = recorder_of(recording)
    recorder.start()  # it finds the model by itself, as under `fgclip-doctor watch`
    train(config)
    recorder.stop(0)


def model_of(width: int, **changes: Any) -> FgclipConfig:
    """The tiny preset, with towers of another width."""
    tiny = FgclipConfig.preset("tiny", projection_dim=width, **changes)
    vision, text = (
        replace(tower, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2)
        for tower in (tiny.vision_config, tiny.text_config)
    )
    return tiny.with_changes(vision_config=vision, text_config=text)


def tuned(
    *faults: str,
    width: int = 64,
    scale: float = LOGIT_SCALE_CAP,
    bank: bool = True,
    model: Mapping[str, Any] | None = None,
    resume_at: int | None = None,
    ranks: int = 1,
    base_rate: float = CoreBase.rate,
    **settings: Any,
) -> CoreRun:
    """A fine-tuning of FG-CLIP's kind: a region head of its own, a bank, learning rates by part."""
    plain = {"roi_projection": True, "logit_scale_init_value": scale}
    with_bank = {"use_memory_bank": True, "memory_bank_size": BANK, "memory_bank_warmup_steps": BANK_WARMUP}
    usual = {
        "max_steps": 90,
        "micro_batch": 6,
        "scenes": SCENES,
        "learning_rate": 3e-4,
        "text_learning_rate": 2e-4,
        "scale_learning_rate": 1e-4,
        "warmup_steps": 10,
        "save_steps": 45,
    }
    return CoreRun(
        start=CoreBase(width=width, scale=scale, rate=base_rate),
        width=width,
        model={**plain, **(with_bank if bank else {}), **(model or {})},
        settings={**usual, **settings},
        faults=faults,
        resume_at=resume_at,
        ranks=ranks,
    )


def scratch(
    *faults: str,
    width: int = 64,
    scale: float = LOGIT_SCALE_FROM_SCRATCH,
    model: Mapping[str, Any] | None = None,
    resume_at: int | None = None,
    **settings: Any,
) -> CoreRun:
    """A run from nothing, at the scale that CLIP starts from."""
    usual = {
        "max_steps": 170,
        "micro_batch": 8,
        "scenes": SCENES,
        "learning_rate": 2e-3,
        "warmup_steps": 10,
        "save_steps": 85,
    }
    return CoreRun(
        start=None,
        width=width,
        model={"logit_scale_init_value": scale, **(model or {})},
        settings={**usual, **settings},
        faults=faults,
        resume_at=resume_at,
    )
