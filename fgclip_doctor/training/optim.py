"""AdamW with the parameter groups of FG-CLIP fine-tuning, and the learning-rate schedule."""

from __future__ import annotations

import math
from typing import Any

import torch

from fgclip_doctor.core.model import FgclipModel
from fgclip_doctor.training.settings import TrainConfig

Group = dict[str, Any]


def parameter_groups(model: FgclipModel, config: TrainConfig) -> list[Group]:
    """Vision tower, text tower, projections and scales, each with its learning rate, the first three also by decay.

    Norms, biases, scales and the class embedding, which are all that has fewer than two dimensions, are not decayed.
    """
    rates = {
        "vision": config.learning_rate,
        "text": config.text_learning_rate,
        "projections": config.projection_learning_rate,
        "scales": config.scale_learning_rate,
    }
    groups: dict[tuple[str, bool], Group] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part, decayed = part_of(name), parameter.ndim >= 2
        rate = rates[part]
        group = groups.setdefault(
            (part, decayed),
            {
                "params": [],
                "name": part if decayed else f"{part}-no-decay",
                "lr": config.learning_rate if rate is None else rate,
                "weight_decay": config.weight_decay if decayed else 0.0,
            },
        )
        group["params"].append((name, parameter))  # named, so that the saved state says which parameter is which
    return list(groups.values())


def part_of(name: str) -> str:
    """The part of the model that a parameter belongs to."""
    for prefix, part in (("vision_model.", "vision"), ("text_model.", "text"), ("logit_scale", "scales")):
        if name.startswith(prefix):
            return part
    return "projections"


def build_optimizer(groups: list[Group], config: TrainConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True)


def build_scheduler(optimizer: torch.optim.Optimizer, config: TrainConfig) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warmup, then constant or a half cosine to zero, all in optimizer steps."""

    def factor(step: int) -> float:
        if step < config.warmup_steps:
            return step / config.warmup_steps
        if config.schedule == "constant":
            return 1.0
        done = (step - config.warmup_steps) / max(config.max_steps - config.warmup_steps, 1)
        return (1 + math.cos(math.pi * min(done, 1.0))) / 2

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
