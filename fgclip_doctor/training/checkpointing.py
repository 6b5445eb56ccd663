"""Checkpoints in the layout of Hugging Face's Trainer, and exact resume from them."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fgclip_doctor.core import pretrained
from fgclip_doctor.core.model import FgclipModel
from fgclip_doctor.training.settings import TrainConfig

NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(slots=True)
class Progress:
    """How far a run has come."""

    step: int = 0  # optimizer steps done
    log_history: list[dict[str, Any]] = field(default_factory=list)


def latest(directory: Path) -> Path:
    """The checkpoint with the most steps in the directory of a run; a checkpoint itself is its own latest."""
    if (directory / "config.json").is_file():
        return directory
    found = [(int(match[1]), path) for path in directory.glob("checkpoint-*") if (match := NAME.fullmatch(path.name))]
    if not found:
        raise FileNotFoundError(f"{directory}: no checkpoint")
    return max(found)[1]


def save(
    config: TrainConfig,
    model: FgclipModel,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    progress: Progress,
) -> Path:
    """Writes `output_dir/checkpoint-N`, which appears whole or not at all."""
    directory = config.output_dir / f"checkpoint-{progress.step}"
    partial = config.output_dir / f".{directory.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    pretrained.save(model, partial)
    torch.save(optimizer.state_dict(), partial / "optimizer.pt")
    torch.save(scheduler.state_dict(), partial / "scheduler.pt")
    torch.save(random_states(), partial / "rng_state.pth")
    write_json(partial / "trainer_state.json", trainer_state(config, progress))
    torch.save(config.to_training_args(), partial / "training_args.bin")  # a dict: nobody has to trust a pickle for it
    if directory.exists():
        shutil.rmtree(directory)
    partial.rename(directory)
    return directory


def restore(
    directory: Path,
    model: FgclipModel,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
) -> Progress:
    """Takes up a run where a checkpoint left it, bank and random states included."""
    pretrained.restore(model, directory)
    states = {
        name: torch.load(directory / name, map_location="cpu", weights_only=True)
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth")
    }
    optimizer.load_state_dict(states["optimizer.pt"])
    scheduler.load_state_dict(states["scheduler.pt"])
    set_random_states(states["rng_state.pth"])
    state = json.loads((directory / "trainer_state.json").read_text(encoding="utf-8"))
    return Progress(step=state["global_step"], log_history=state["log_history"])


def random_states() -> dict[str, Any]:
    states: dict[str, Any] = {"python": random.getstate(), "cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])


def trainer_state(config: TrainConfig, progress: Progress) -> dict[str, Any]:
    """The fields of the Trainer's own `trainer_state.json`."""
    return {
        "best_global_step": None,
        "best_metric": None,
        "best_model_checkpoint": None,
        "epoch": config.epoch(progress.step),
        "eval_steps": None,
        "global_step": progress.step,
        "is_hyper_param_search": False,
        "is_local_process_zero": True,
        "is_world_process_zero": True,
        "log_history": progress.log_history,
        "logging_steps": config.logging_steps,
        "max_steps": config.max_steps,
        "num_input_tokens_seen": 0,
        "num_train_epochs": math.ceil(config.epoch(config.max_steps)),
        "save_steps": config.save_steps,
        "stateful_callbacks": {},
        "total_flos": 0.0,
        "train_batch_size": config.micro_batch,
        "trial_name": None,
        "trial_params": None,
    }


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
