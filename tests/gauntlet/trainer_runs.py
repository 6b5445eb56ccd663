"""Runs of the real `transformers.Trainer`: on a fork of FG-CLIP with names of its own, and on a plain `CLIPModel`.

The fork and its faults are those of `tests.real.trainer_run`. The plain model is trained in the ways in which people
fine-tune one: whole, with a tower frozen, with low-rank adapters, with the sigmoid loss. The adapters are hand-made, in
the layout that peft saves, for peft is not installed here.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPConfig,
    CLIPModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from tests.gauntlet.watched import callback_of
from tests.real import trainer_run
from tests.real.trainer_run import CAP, Recipe, Scenes, clip_config, contrastive

ADAPTED = ("q_proj", "v_proj")
RANK, ALPHA = 4, 8


@dataclass(frozen=True, kw_only=True)
class TrainerBase:
    """A plain CLIP, which both kinds of runs fine-tune."""

    width: int = 32

    def make(self, directory: Path, base: Path | None) -> None:
        trainer_run.pretrain(directory, width=self.width)


@dataclass(frozen=True, kw_only=True)
class ForkRun:
    """The fork of `tests.real.trainer_run`, by the settings of its `Recipe`."""

    start: TrainerBase | None = TrainerBase()
    width: int = 32
    recipe: Mapping[str, Any] = field(default_factory=dict)
    resume_at: int | None = None

    @property
    def made(self) -> Recipe:
        usual: dict[str, Any] = {"steps": 80, "save_steps": 20, "accumulation": 2}
        return Recipe(**{**usual, **self.recipe})

    @property
    def facts(self) -> dict[str, str]:
        recipe = self.made
        stated = {
            "micro_batch": recipe.micro_batch,
            "accumulation": recipe.accumulation,
            "bank_size": recipe.bank_size,
            "regions_per_sample": 1,
            "dimension": self.width,
            "max_steps": recipe.steps,
        }
        return {name: str(value) for name, value in stated.items()}

    def make(self, directory: Path, base: Path | None, recording: Path) -> None:
        def leg(resume: Path | None = None) -> None:
            callbacks = [callback_of(recording)]
            trainer_run.train(directory, base, self.made, width=self.width, resume=resume, callbacks=callbacks)

        leg()
        if self.resume_at is not None:  # what came after that step is lost
            for later in directory.glob("checkpoint-*"):
                if int(later.name.rpartition("-")[2]) > self.resume_at:
                    shutil.rmtree(later)
            leg(directory / f"checkpoint-{self.resume_at}")


@dataclass(frozen=True, kw_only=True)
class PlainRun:
    """A `CLIPModel` in the real trainer; `arguments` are changes to its `TrainingArguments`."""

    start: TrainerBase | None = TrainerBase()
    width: int = 32
    arguments: Mapping[str, Any] = field(default_factory=dict)
    fault: str = ""
    loss: str = "softmax"  # or "sigmoid", with a bias of its own: Zhai et al. 2023, algorithm 1
    frozen: tuple[str, ...] = ()  # prefixes of parameter names
    adapters: bool = False
    label_smoothing: float = 0.0
    resume_at: int | None = None
    seed: int = 0

    @property
    def settings(self) -> dict[str, Any]:
        usual = {
            "max_steps": 160,
            "save_steps": 80,
            "per_device_train_batch_size": 12,
            "gradient_accumulation_steps": 1,
            "learning_rate": 5e-4,
            "warmup_steps": 10,
            "weight_decay": 0.0,
            "lr_scheduler_type": "cosine",
        }
        return {**usual, **self.arguments}

    @property
    def facts(self) -> dict[str, str]:
        settings = self.settings
        stated = {
            "micro_batch": settings["per_device_train_batch_size"],
            "candidates": max(settings["per_device_train_batch_size"], 2),  # one term alone, and no bank
            "scale": 14.3 if self.start is None else 100,
            "accumulation": settings["gradient_accumulation_steps"],
            "dimension": self.width,
            "max_steps": settings["max_steps"],
        }
        if self.loss == "sigmoid":
            stated["loss_kind"] = "sigmoid"
        if self.label_smoothing:
            stated["label_smoothing"] = self.label_smoothing
        return {name: str(value) for name, value in stated.items()}

    def make(self, directory: Path, base: Path | None, recording: Path) -> None:
        fit(self, directory, base, recording)
        if self.resume_at is not None:
            for later in directory.glob("checkpoint-*"):
                if int(later.name.rpartition("-")[2]) > self.resume_at:
                    shutil.rmtree(later)
            checkpoint = directory / f"checkpoint-{self.resume_at}"
            if self.fault == "optimizer_lost":
                (checkpoint / "optimizer.pt").unlink()
            fit(self, directory, base, recording, resume=checkpoint)
        if self.adapters:
            for checkpoint in directory.glob("checkpoint-*"):
                as_adapters(checkpoint)


class Adapted(nn.Module):
    """A linear layer with a low-rank adapter, under the names that peft gives them."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = layer
        self.lora_A = nn.Linear(layer.in_features, RANK, bias=False)
        self.lora_B = nn.Linear(RANK, layer.out_features, bias=False)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))  # Hu et al. 2021, section 4.1: B starts at zero
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.base_layer(inputs) + ALPHA / RANK * self.lora_B(self.lora_A(inputs))


class Plain(CLIPModel):
    """CLIP with a loss of its own, and the planted faults of a model."""

    def __init__(self, config: CLIPConfig, run: PlainRun) -> None:
        super().__init__(config)
        self.run = run
        if run.loss == "sigmoid":
            self.logit_bias = nn.Parameter(torch.tensor(-10.0))

    def forward(self, pixel_values: Tensor, input_ids: Tensor, **_: Tensor) -> dict[str, Tensor]:
        if self.run.fault == "captions_of_others":
            input_ids = input_ids.roll(1, 0)
        pooled = self.vision_model(pixel_values=pixel_values.to(self.visual_projection.weight.dtype)).pooler_output
        images = F.normalize(self.visual_projection(pooled), dim=-1)
        texts = F.normalize(self.text_projection(self.text_model(input_ids=input_ids).pooler_output), dim=-1)
        if self.run.fault == "text_detached":
            texts = texts.detach()
        if self.run.loss == "sigmoid":
            logits = self.logit_scale.exp() * images @ texts.T + self.logit_bias
            signs = 2 * torch.eye(len(logits)) - 1
            return {"loss": -F.logsigmoid(signs * logits).sum(1).mean()}
        scale, smoothing = self.logit_scale, self.run.label_smoothing
        both = contrastive(images, texts, scale, smoothing) + contrastive(texts, images, scale, smoothing)
        return {"loss": both / 2}


class PlainTrainer(Trainer):
    """The trainer, with the planted faults of a loop."""

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = model(**inputs)["loss"]
        run = self.model.run
        if run.fault == "nan" and self.state.global_step >= 40:
            loss = loss * math.nan
        if run.fault == "not_divided":  # the trainer divides, so what is not divided is as many times too large
            loss = loss * self.args.gradient_accumulation_steps
        return loss

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if self.model.run.fault == "head_orphaned":  # what the optimizer steps is no longer what the model uses
            self.model.visual_projection.weight = nn.Parameter(self.model.visual_projection.weight.detach().clone())
        if self.model.run.fault == "adapters_at_rate_zero":
            for group in optimizer.param_groups:
                group["lr"] = 0.0
        return optimizer

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        names: list[str] = super().get_decay_parameter_names(model)
        if self.model.run.fault == "scale_decayed":
            return names
        return [name for name in names if not name.startswith("logit_")]


class Clamp(TrainerCallback):
    """Keeps the scale at or under ln 100."""

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Plain, **_: Any
    ) -> None:
        model.logit_scale.data.clamp_(max=CAP)


def fit(run: PlainRun, directory: Path, base: Path | None, recording: Path, *, resume: Path | None = None) -> None:
    """One leg of a run."""
    torch.manual_seed(run.seed)
    model = Plain(CLIPConfig.from_pretrained(base) if base else clip_config(run.width), run)
    if base:
        model.load_state_dict(CLIPModel.from_pretrained(base).state_dict(), strict=False)
    if run.loss == "sigmoid" and base is None:
        model.logit_scale.data.fill_(math.log(10))  # Zhai et al. 2023, algorithm 1
    if run.fault == "projection_transposed":
        model.text_projection.weight.data.copy_(model.text_projection.weight.data.T.clone())
    if run.fault == "pure_bf16":
        model.to(torch.bfloat16)
    if run.adapters:
        model.requires_grad_(False)
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.Linear) and name.endswith(ADAPTED):
                parent, _, last = name.rpartition(".")
                setattr(model.get_submodule(parent), last, Adapted(module))
    for name, parameter in model.named_parameters():
        if name.startswith(run.frozen or "-"):
            parameter.requires_grad_(False)
    arguments = TrainingArguments(
        output_dir=str(directory),
        logging_steps=1,
        seed=run.seed,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        **run.settings,
    )
    count = arguments.max_steps * arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    callbacks = [Clamp(), callback_of(recording)]
    trainer = PlainTrainer(
        model=model, args=arguments, train_dataset=Scenes(count, seed=2 + run.seed), callbacks=callbacks
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)


def as_adapters(checkpoint: Path) -> None:
    """Leaves of a checkpoint's weights what peft would save: the adapters and their configuration."""
    weights = load_file(checkpoint / "model.safetensors")
    adapters = {f"base_model.model.{name}": tensor for name, tensor in weights.items() if ".lora_" in name}
    save_file(adapters, checkpoint / "adapter_model.safetensors", metadata={"format": "pt"})
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "config.json").unlink()
    configuration = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.0,
        "target_modules": list(ADAPTED),
        "bias": "none",
        "fan_in_fan_out": False,
        "base_model_name_or_path": None,
        "inference_mode": False,
    }
    (checkpoint / "adapter_config.json").write_text(json.dumps(configuration, indent=2), encoding="utf-8")
