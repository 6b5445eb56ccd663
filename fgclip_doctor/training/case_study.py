"""The fine-tuning run that this project was born from, in small: as it was reported, and corrected.

A base learns the scenes as CLIP learns images: from whole captions, with no regions, at a scale of 100. Both runs then
fine-tune it as FG-CLIP does, with a region head of their own, micro-batches of 4, accumulation 8 and a bank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from fgclip_doctor.core.config import LOGIT_SCALE_CAP, LOGIT_SCALE_FROM_SCRATCH, FgclipConfig
from fgclip_doctor.training.loop import train
from fgclip_doctor.training.settings import TrainConfig

OnStep = Callable[[int, int], None]  # steps done, of how many

BASE_STEPS = 150
STEPS = 160
BANK_SIZE = 80  # not the width, or nothing would tell the two axes of the bank apart
BANK_WARMUP = 50


def base(directory: Path, *, on_step: OnStep | None = None) -> Path:
    """Trains the base; as the runs do, returns its directory."""
    model = FgclipConfig.preset("tiny", logit_scale_init_value=LOGIT_SCALE_CAP, region_weight=0.0, hard_weight=0.0)
    config = TrainConfig(output_dir=directory, model=model, max_steps=BASE_STEPS, micro_batch=32, save_steps=BASE_STEPS)
    return run(config, on_step)


def as_reported(base: Path, directory: Path, *, on_step: OnStep | None = None) -> Path:
    """The run as it was reported: no bank, the wrong clock and scale, parameters in bf16 that the updates can't move.

    Its losses sat near chance, and its notes don't say why those of a pretrained model should. Here the cause is a
    common one: the loader of the base knew nothing of the attention weights.
    """
    return run(reported(base, directory), on_step)


def reported(base: Path, directory: Path) -> TrainConfig:
    """The settings of the run as it was reported."""
    config = fine_tuning(base, directory)
    return replace(
        config,
        model=config.model.with_changes(logit_scale_init_value=LOGIT_SCALE_FROM_SCRATCH),
        learning_rate=5e-6,
        text_learning_rate=2e-6,
        scale_learning_rate=None,
        warmup_steps=50,
        max_grad_norm=0.0,
        faults=(
            "bank-never-enabled",
            "warmup-in-forwards",
            "scale-from-scratch",
            "attention-left-at-init",
            "pure-bf16",
        ),
    )


def corrected(base: Path, directory: Path, *, on_step: OnStep | None = None) -> Path:
    """The same run with its faults taken out."""
    return run(fine_tuning(base, directory), on_step)


def run(config: TrainConfig, on_step: OnStep | None) -> Path:
    """Trains on one thread: a model of this size gains nothing by a second, and loses much beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return train(config, on_step=on_step and (lambda entry: on_step(int(entry["step"]), config.max_steps)))
    finally:
        torch.set_num_threads(threads)


def fine_tuning(base: Path, directory: Path) -> TrainConfig:
    """What both runs have in common, and the learning rates that suit a model of this size."""
    model = FgclipConfig.preset(
        "tiny",
        roi_projection=True,
        logit_scale_init_value=LOGIT_SCALE_CAP,
        use_memory_bank=True,
        memory_bank_size=BANK_SIZE,
        memory_bank_warmup_steps=BANK_WARMUP,
    )
    return TrainConfig(
        output_dir=directory,
        model=model,
        base=base,
        max_steps=STEPS,
        micro_batch=4,
        accumulation=8,
        regions_per_scene=1.05,
        learning_rate=1e-3,
        scale_learning_rate=1e-4,
        warmup_steps=20,
        save_steps=STEPS // 2,
    )
