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
from torch import distributed

from fgclip_doctor.core import pretrained
from fgclip_doctor.core.model import FgclipModel
from fgclip_doctor.core.ranks import rank, world_size
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


def step_of(checkpoint: Path) -> int:
    """The optimizer steps done at a checkpoint."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return int(state["global_step"])


def save(
    config: TrainConfig,
    model: FgclipModel,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    progress: Progress,
) -> Path:
    """Writes `output_dir/checkpoint-N`, which appears whole or not at all. All ranks call it, and the first writes."""
    directory = config.output_dir / f"checkpoint-{progress.step}"
    states = random_states_of_ranks()
    if rank() > 0:
        return directory
    partial = config.output_dir / f".{directory.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    pretrained.save(model, partial)
    torch.save(optimizer.state_dict(), partial / "optimizer.pt")
    torch.save(scheduler.state_dict(), partial / "scheduler.pt")
    for number, state in enumerate(states):
        torch.save(state, partial / rng_name(number))
    write_json(partial / "trainer_state.json", trainer_state(config, progress))
    arguments = config.to_training_args(world_size())  # a dict: nobody has to trust a pickle for it
    torch.save(arguments, partial / "training_args.bin")
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
    if (saved := len(list(directory.glob("rng_state*.pth")))) != world_size():
        raise ValueError(f"{directory}: {saved} ranks saved it, and {world_size()} can't take it up exactly")
    pretrained.restore(model, directory)
    optimizer_state, scheduler_state, random_state = (
        torch.load(directory / name, map_location="cpu", weights_only=True)
        for name in ("optimizer.pt", "scheduler.pt", rng_name(rank()))
    )
    optimizer.load_state_dict(optimizer_state)
    scheduler.load_state_dict(scheduler_state)
    set_random_states(random_state)
    state = json.loads((directory / "trainer_state.json").read_text(encoding="utf-8"))
    return Progress(step=state["global_step"], log_history=state["log_history"])


def random_states() -> dict[str, Any]:
    states: dict[str, Any] = {"python": random.getstate(), "cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def random_states_of_ranks() -> list[dict[str, Any]]:
    """Those of all ranks on each of them, so that one rank writes all files."""
    if world_size() == 1:
        return [random_states()]
    states: list[dict[str, Any]] = [{}] * world_size()
    distributed.all_gather_object(states, random_states())
    return states


def rng_name(number: int) -> str:
    """The file for the random states of a rank, as the Trainer names it."""
    return "rng_state.pth" if world_size() == 1 else f"rng_state_{number}.pth"


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
        "epoch": config.epoch(progress.step, world_size()),
        "eval_steps": None,
        "global_step": progress.step,
        "is_hyper_param_search": False,
        "is_local_process_zero": True,
        "is_world_process_zero": True,
        "log_history": progress.log_history,
        "logging_steps": config.logging_steps,
        "max_steps": config.max_steps,
        "num_input_tokens_seen": 0,
        "num_train_epochs": math.ceil(config.epoch(config.max_steps, world_size())),
        "save_steps": config.save_steps,
        "stateful_callbacks": {},
        "total_flos": 0.0,
        "train_batch_size": config.micro_batch,
        "trial_name": None,
        "trial_params": None,
    }


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
