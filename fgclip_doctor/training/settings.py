"""What a training run is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fgclip_doctor.core.config import FgclipConfig


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run, on `data` or else on the synthetic scenes. Steps are optimizer steps; learning rates are peaks.

    The learning rates of the parts default to `learning_rate`. `base` is a checkpoint, or the directory of a run, with
    the weights to start from; what `model` has beyond them (a region head, a bank) is added.
    """

    output_dir: Path
    model: FgclipConfig = field(default_factory=lambda: FgclipConfig.preset("tiny"))
    base: Path | None = None
    resume: bool = False  # from the latest checkpoint in output_dir

    max_steps: int = 300
    micro_batch: int = 16  # per rank
    accumulation: int = 1
    scenes: int = 4096  # with `data`, this and the next become what is found there
    regions_per_scene: float = 2.0
    data: Path | None = None  # records as in FineHARD, see `fgclip_doctor.training.finehard`
    images: Path | None = None  # the folder of their images; else that of `data`
    max_regions: int = 4  # of one image; of `data` only, as the rest here
    decode_images: bool = True  # all of them before the first step; else only their headers
    workers: int = 0  # processes on each rank that make micro-batches ahead
    seed: int = 0

    learning_rate: float = 1e-3
    text_learning_rate: float | None = None
    projection_learning_rate: float | None = None
    scale_learning_rate: float | None = None
    betas: tuple[float, float] = (0.9, 0.98)  # with eps, CLIP's for a ViT: Radford et al. 2021, table 19
    eps: float = 1e-6
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0  # 0 is off
    warmup_steps: int = 20
    schedule: Literal["cosine", "constant"] = "cosine"
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16 is autocast; parameters are fp32 either way
    gradient_checkpointing: bool = False  # less memory and more time: layers are computed again in the backward pass
    torch_compile: bool = False  # the layers of both towers, at the first step, which then takes a minute or more

    logging_steps: int = 1
    save_steps: int = 100
    faults: tuple[str, ...] = ()  # names of `fgclip_doctor.training.faults.FAULTS`, planted on purpose

    def __post_init__(self) -> None:
        for name in ("max_steps", "micro_batch", "accumulation", "logging_steps", "save_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")

    def epoch(self, step: int, ranks: int) -> float:
        """Passes over the data after `step` optimizer steps; what does not fill all micro-batches is left out."""
        return step * self.accumulation / (self.scenes // (self.micro_batch * ranks))

    def to_training_args(self, ranks: int) -> dict[str, Any]:
        """The settings under the names of Hugging Face's `TrainingArguments`, where it has one."""
        return {
            "output_dir": str(self.output_dir),
            "max_steps": self.max_steps,
            "per_device_train_batch_size": self.micro_batch,
            "gradient_accumulation_steps": self.accumulation,
            "learning_rate": self.learning_rate,
            "text_model_lr": self.text_learning_rate,
            "projection_lr": self.projection_learning_rate,
            "logit_scale_lr": self.scale_learning_rate,
            "adam_beta1": self.betas[0],
            "adam_beta2": self.betas[1],
            "adam_epsilon": self.eps,
            "weight_decay": self.weight_decay,
            "max_grad_norm": self.max_grad_norm,
            "warmup_steps": self.warmup_steps,
            "lr_scheduler_type": self.schedule,
            "bf16": self.precision == "bf16",
            "fp16": False,
            "gradient_checkpointing": self.gradient_checkpointing,
            "torch_compile": self.torch_compile,
            "logging_steps": self.logging_steps,
            "save_steps": self.save_steps,
            "seed": self.seed,
            "dataset_size": self.scenes,
            "regions_per_sample": self.regions_per_scene,
            "world_size": ranks,
        }
