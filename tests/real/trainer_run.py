"""Makes small runs with the real `transformers.Trainer`, sound or with one planted fault, for the doctor to audit.

The model is transformers' CLIPModel with a region head and a memory bank added here, as a fork of FG-CLIP would add
them; the names are deliberately not those of our own core. Nothing in this file knows the doctor.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from transformers import (
    CLIPConfig,
    CLIPModel,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

ATTRIBUTES, VALUES = 3, 16  # each half of a picture shows three patterns, each one of sixteen
PATCH, GRID = 8, 4  # a picture is 4 x 4 patches of 8 x 8 pixels
BOS, EOS, VOCABULARY = 0, 63, 64  # some tokens are never used, as in any vocabulary
CAP = math.log(100)
FAULTS = ("bank_off", "head_detached", "head_left_out", "warmup_clock", "scale")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a run is made. `fault` is one of `FAULTS`, or empty for a sound run; the rest varies what is sound."""

    fault: str = ""
    seed: int = 0
    samples: int = 0  # that there are; 0 for as many as the run sees
    steps: int = 75
    save_steps: int = 15
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    micro_batch: int = 8
    accumulation: int = 8
    bank_size: int = 128
    bank_warmup: int = 20  # optimizer steps
    label_smoothing: float = 0.0
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    bf16: bool = False
    frozen: tuple[str, ...] = ()  # prefixes of parameter names
    save_only_model: bool = False


class Scenes(Dataset[dict[str, Tensor]]):
    """Pictures of two halves, a caption of the whole and one of a half (the region): the patterns decide the tokens."""

    def __init__(self, count: int, seed: int) -> None:
        patterns = torch.randn(ATTRIBUTES, VALUES, 3, PATCH, 2 * PATCH, generator=torch.Generator().manual_seed(0))
        generator = torch.Generator().manual_seed(seed)
        values = torch.randint(VALUES, (count, 2, ATTRIBUTES), generator=generator)
        shown = patterns[torch.arange(ATTRIBUTES), values]  # (count, 2, ATTRIBUTES, 3, PATCH, 2 * PATCH)
        pixels = 0.3 * torch.randn(count, 3, GRID * PATCH, GRID * PATCH, generator=generator)
        pixels[:, :, : ATTRIBUTES * PATCH] += shown.permute(0, 3, 2, 4, 1, 5).reshape(count, 3, ATTRIBUTES * PATCH, -1)
        words = 1 + VALUES * torch.arange(ATTRIBUTES) + values  # (count, 2, ATTRIBUTES)
        sides = torch.randint(2, (count,), generator=generator)
        self.columns = {
            "pixel_values": pixels,
            "input_ids": sentences(words.flatten(1)),
            "region_side": sides,
            "region_ids": sentences(words[torch.arange(count), sides]),
        }

    def __len__(self) -> int:
        return len(self.columns["input_ids"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: column[index] for name, column in self.columns.items()}


def sentences(words: Tensor) -> Tensor:
    """(B, L) words -> (B, L + 2) tokens."""
    return F.pad(F.pad(words, (1, 0), value=BOS), (0, 1), value=EOS)


def clip_config(width: int) -> CLIPConfig:
    tower = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 4}
    special = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": EOS}
    length = {"vocab_size": VOCABULARY, "max_position_embeddings": 2 * ATTRIBUTES + 2}
    vision = {**tower, "image_size": GRID * PATCH, "patch_size": PATCH}
    return CLIPConfig(text_config={**tower, **special, **length}, vision_config=vision, projection_dim=width)


def contrastive(images: Tensor, texts: Tensor, logit_scale: Tensor, smoothing: float = 0.0) -> Tensor:
    """InfoNCE of unit rows: the i-th image belongs to the i-th text; texts beyond the images are negatives only."""
    logits = logit_scale.exp() * images @ texts.T  # (B, B + K)
    return F.cross_entropy(logits, torch.arange(len(images)), label_smoothing=smoothing)


class RegionClip(PreTrainedModel):
    """CLIP, a head for regions (the mean of the patches of one half) and a bank of recent regions and their texts."""

    config_class = CLIPConfig

    def __init__(self, config: CLIPConfig, recipe: Recipe) -> None:
        super().__init__(config)
        width, rows = config.projection_dim, recipe.bank_size
        self.recipe = recipe
        self.clip = CLIPModel(config)
        self.region_head = nn.Linear(config.vision_config.hidden_size, width, bias=False)
        self.region_logit_scale = nn.Parameter(self.clip.logit_scale.detach().clone())
        self.register_buffer("mem_img", F.normalize(torch.randn(rows, width), dim=-1))
        self.register_buffer("mem_txt", F.normalize(torch.randn(rows, width), dim=-1))
        self.register_buffer("mem_ptr", torch.zeros((), dtype=torch.long))
        self.register_buffer("mem_filled", torch.zeros((), dtype=torch.bool))
        self.register_buffer("forward_count", torch.zeros((), dtype=torch.long))
        self.optimizer_steps = 0  # the trainer tells
        self.post_init()
        nn.init.normal_(self.region_head.weight, std=config.vision_config.hidden_size**-0.5)

    def _init_weights(self, module: nn.Module) -> None:
        """The parts initialise themselves."""

    def start_from(self, base: Path) -> None:
        """Takes the weights of a plain CLIP; the region branch starts as a copy of the global one."""
        self.clip.load_state_dict(CLIPModel.from_pretrained(base).state_dict())
        self.region_head.weight.data.copy_(self.clip.visual_projection.weight)
        if self.recipe.fault == "scale":
            self.clip.logit_scale.data.fill_(self.config.logit_scale_init_value)
        self.region_logit_scale.data.copy_(self.clip.logit_scale)

    @property
    def bank_on(self) -> bool:
        clock = int(self.forward_count) if self.recipe.fault == "warmup_clock" else self.optimizer_steps
        return self.recipe.fault != "bank_off" and clock >= self.recipe.bank_warmup

    def text_features(self, input_ids: Tensor) -> Tensor:
        pooled = self.clip.text_model(input_ids=input_ids).pooler_output
        return F.normalize(self.clip.text_projection(pooled), dim=-1)  # (B, D)

    def region_features(self, patches: Tensor, side: Tensor) -> Tensor:
        """(B, 16, width) patches and the half each region takes -> (B, D)."""
        halves = patches.unflatten(1, (GRID, 2, GRID // 2)).mean(dim=(1, 3))  # (B, 2, width)
        pooled = self.clip.vision_model.post_layernorm(halves[torch.arange(len(side)), side])
        weight = self.region_head.weight
        return F.normalize(
            F.linear(pooled, weight.detach() if self.recipe.fault == "head_detached" else weight), dim=-1
        )

    def forward(
        self, pixel_values: Tensor, input_ids: Tensor, region_side: Tensor, region_ids: Tensor
    ) -> dict[str, Tensor]:
        seen = self.clip.vision_model(pixel_values=pixel_values)
        images = F.normalize(self.clip.visual_projection(seen.pooler_output), dim=-1)
        texts, smoothing = self.text_features(input_ids), self.recipe.label_smoothing
        scale = self.clip.logit_scale
        whole = contrastive(images, texts, scale, smoothing) + contrastive(texts, images, scale, smoothing)

        images = self.region_features(seen.last_hidden_state[:, 1:], region_side)
        texts, scale = self.text_features(region_ids), self.region_logit_scale
        rows = len(self.mem_img) if self.mem_filled else int(self.mem_ptr)
        more_images = torch.cat([images, self.mem_img[: rows if self.bank_on else 0].to(images.dtype)])
        more_texts = torch.cat([texts, self.mem_txt[: rows if self.bank_on else 0].to(texts.dtype)])
        region = contrastive(images, more_texts, scale, smoothing) + contrastive(texts, more_images, scale, smoothing)
        if self.training:
            self.remember(images.detach(), texts.detach())
        return {"loss": (whole + region) / 2, "contrastive_loss": whole / 2, "region_loss": region / 2}

    def remember(self, images: Tensor, texts: Tensor) -> None:
        self.forward_count += 1
        if not self.bank_on:
            return
        slots = (self.mem_ptr + torch.arange(len(images))) % len(self.mem_img)
        self.mem_img[slots], self.mem_txt[slots] = images.float(), texts.float()
        self.mem_filled |= self.mem_ptr + len(images) >= len(self.mem_img)
        self.mem_ptr.copy_((self.mem_ptr + len(images)) % len(self.mem_img))


class EachStep(TrainerCallback):
    """Tells the model the step, and keeps the scales at or under ln 100."""

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: RegionClip, **_: Any
    ) -> None:
        model.optimizer_steps = state.global_step

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: RegionClip, **_: Any
    ) -> None:
        for scale in (model.clip.logit_scale, model.region_logit_scale):
            scale.data.clamp_(max=CAP)


class RegionTrainer(Trainer):
    """Logs each loss term as its mean over the forwards since the last line of the log."""

    terms: dict[str, list[float]]

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        outputs: dict[str, Tensor] = model(**inputs)
        for name in ("contrastive_loss", "region_loss"):
            self.terms.setdefault(name, []).append(outputs[name].item())
        return outputs["loss"]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        means = {name: sum(values) / len(values) for name, values in self.terms.items() if values}
        self.terms.clear()
        super().log({**logs, **means}, *args, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.model.recipe.fault == "head_left_out":
            decayed = set(self.get_decay_parameter_names(self.model)) - {"region_head.weight"}
            taken = {name: p for name, p in self.model.named_parameters() if name != "region_head.weight"}
            groups = [
                {"params": [p for name, p in taken.items() if name in decayed], "weight_decay": self.args.weight_decay},
                {"params": [p for name, p in taken.items() if name not in decayed], "weight_decay": 0.0},
            ]
            self.optimizer = torch.optim.AdamW(groups, lr=self.args.learning_rate)
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        return optimizer


def pretrain(path: Path, *, width: int = 32, steps: int = 300) -> None:
    """Trains a plain CLIP from scratch and saves it, as the base that a run fine-tunes. Its scale ends at ln 100."""
    torch.manual_seed(0)
    model = CLIPModel(clip_config(width))
    start = model.logit_scale.item()
    model.logit_scale.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=steps)
    for step, batch in enumerate(DataLoader(Scenes(64 * steps, seed=1), batch_size=64)):
        model.logit_scale.fill_(start + (CAP - start) * min(1.0, 2 * step / steps))
        output = model(input_ids=batch["input_ids"], pixel_values=batch["pixel_values"], return_loss=True)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        schedule.step()
    model.save_pretrained(path)


def train(
    path: Path,
    base: Path | None,
    recipe: Recipe,
    *,
    width: int = 32,
    resume: Path | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> None:
    """Fine-tunes `base` (or trains from scratch without one) and leaves the run in `path`, checkpoints and all."""
    torch.manual_seed(recipe.seed)
    config = CLIPConfig.from_pretrained(base) if base else clip_config(width)
    config.update({"use_memory_bank": True, "memory_bank_size": recipe.bank_size})
    config.update({"memory_bank_warmup_steps": recipe.bank_warmup})
    model = RegionClip(config, recipe)
    if base:
        model.start_from(base)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(recipe.frozen or "-"))
    arguments = TrainingArguments(
        output_dir=str(path),
        max_steps=recipe.steps,
        save_steps=recipe.save_steps,
        logging_steps=1,
        per_device_train_batch_size=recipe.micro_batch,
        gradient_accumulation_steps=recipe.accumulation,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.schedule,
        warmup_steps=5,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        bf16=recipe.bf16,
        save_only_model=recipe.save_only_model,
        seed=recipe.seed,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    count = recipe.samples or recipe.steps * recipe.micro_batch * recipe.accumulation
    samples = Scenes(count, seed=2 + recipe.seed)
    trainer = RegionTrainer(model=model, args=arguments, train_dataset=samples, callbacks=[EachStep(), *callbacks])
    trainer.terms = {}
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)


def as_pickles(run: Path, path: Path, recipe: Recipe) -> None:
    """Copies a run with its weights as pytorch_model.bin, in the order of the module, as transformers 4 wrote them."""
    shutil.copytree(run, path)
    for file in path.glob("checkpoint-*/model.safetensors"):
        weights = load_file(file)
        names = RegionClip(CLIPConfig.from_pretrained(file.parent), recipe).state_dict()
        torch.save({name: weights[name] for name in names}, file.with_name("pytorch_model.bin"))
        file.unlink()
