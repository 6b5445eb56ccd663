"""FG-CLIP: CLIP with long captions, a region branch, hard negatives and a memory bank (Xie et al. 2025).

Parameters bear the names of FG-CLIP checkpoints. Read `forward` first: it is the whole method.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fgclip_doctor.core.bank import MemoryBank, caption_ids
from fgclip_doctor.core.config import LOGIT_SCALE_CAP, FgclipConfig
from fgclip_doctor.core.losses import Term, global_loss, hard_loss, region_loss
from fgclip_doctor.core.regions import pool_regions, region_weights
from fgclip_doctor.core.text import Texts, TextTower
from fgclip_doctor.core.vision import VisionTower


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One micro-batch of B images, R boxes and U short texts.

    Each short text stands in `texts` once, however often it serves: as short caption, region caption or negative.
    """

    pixel_values: Tensor  # (B, 3, side, side)
    long_texts: Texts  # B
    texts: Texts  # U
    short_index: Tensor  # (B,) into texts
    boxes: Tensor  # (R, 4), xyxy, normalised
    box_image: Tensor  # (R,) into pixel_values, ascending
    boxes_per_image: int  # the most that one image has
    region_index: Tensor  # (R,) into texts
    hard_box: Tensor  # (H,) into boxes: those with hard negatives
    hard_index: Tensor  # (H, 11) into texts: the region's own caption first

    def to(self, device: torch.device) -> Self:
        moved: dict[str, Any] = {}
        for one in fields(self):
            if isinstance(value := getattr(self, one.name), Tensor):
                moved[one.name] = value.to(device, non_blocking=True)
            elif isinstance(value, Texts):
                moved[one.name] = value.to(device)
        return replace(self, **moved)

    @property
    def long_ids(self) -> Tensor:
        return self.long_texts.ids  # (B, T_long)

    @property
    def text_ids(self) -> Tensor:
        return self.texts.ids  # (U, T)


class FgclipModel(nn.Module):
    def __init__(self, config: FgclipConfig) -> None:
        super().__init__()
        self.config = config
        vision, text, dimension = config.vision_config, config.text_config, config.projection_dim
        self.vision_model = VisionTower(vision)
        self.text_model = TextTower(text)
        self.visual_projection = nn.Linear(vision.hidden_size, dimension, bias=False)
        self.text_projection = nn.Linear(text.hidden_size, dimension, bias=False)  # short texts and region captions
        self.text_filip_projection = nn.Linear(text.hidden_size, dimension, bias=False)  # long texts
        self.roi_projection = nn.Linear(vision.hidden_size, dimension, bias=False) if config.roi_projection else None
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value))  # images and texts
        self.logit_scale_finegraind = nn.Parameter(torch.tensor(config.logit_scale_init_value))  # regions
        self.logit_scale_hardneg = nn.Parameter(torch.tensor(config.logit_scale_init_value))  # hard negatives
        self.bank = (
            MemoryBank(
                dimension,
                size=config.memory_bank_size,
                warmup=config.memory_bank_warmup_steps,
                clock=config.memory_bank_clock,
            )
            if config.use_memory_bank
            else None
        )
        nn.init.normal_(self.visual_projection.weight, std=vision.hidden_size**-0.5)
        nn.init.normal_(self.text_projection.weight, std=text.hidden_size**-0.5)
        with torch.no_grad():  # heads that branch off start as copies
            self.text_filip_projection.weight.copy_(self.text_projection.weight)
            if self.roi_projection is not None:
                self.roi_projection.weight.copy_(self.visual_projection.weight)

    def forward(self, batch: Batch, *, step: int) -> dict[str, Term]:
        """The loss terms by name: global (long captions), global_short, region and hard.

        `step` is the number of optimizer updates so far; a bank whose warmup is counted in steps switches on by it.
        """
        tokens = self.vision_model.tokens(batch.pixel_values)  # (B, 1 + grid * grid, C)
        image_features = unit(self.visual_projection(self.vision_model.pooled(tokens)))  # (B, D)
        region_features = self.pooled_regions(tokens, batch)  # (R, D)
        long_features = self.encode_texts(batch.long_texts, long=True)  # (B, D)
        text_features = self.encode_texts(batch.texts)  # (U, D)

        config = self.config
        with torch.autocast(tokens.device.type, enabled=False):  # bfloat16 rounds a logit of 100 to a multiple of 0.5
            scale = self.logit_scale.exp()
            short_features = text_features[batch.short_index]  # (B, D)
            caption_features = text_features[batch.region_index]  # (R, D)
            return {
                "global": global_loss(image_features, long_features, scale, config.global_weight),
                "global_short": global_loss(image_features, short_features, scale, config.global_short_weight),
                "region": self.region_term(region_features, caption_features, batch, step),
                "hard": hard_loss(
                    region_features[batch.hard_box],  # (H, D)
                    text_features[batch.hard_index],  # (H, 11, D)
                    self.logit_scale_hardneg.exp(),
                    config.hard_weight,
                ),
            }

    def region_term(self, region_features: Tensor, caption_features: Tensor, batch: Batch, step: int) -> Term:
        """The region loss, with the bank's rows among the candidates once it is on; then the batch joins the bank."""
        scale, weight = self.logit_scale_finegraind.exp(), self.config.region_weight
        bank = self.bank if self.training else None
        if bank is None:
            return region_loss(region_features, caption_features, scale, weight, None)
        on = bank.is_on(step)
        captions = caption_ids(batch.text_ids, self.config.text_config.eos_token_id)[batch.region_index]  # (R,)
        negatives = bank.negatives(captions) if on else None
        term = region_loss(region_features, caption_features, scale, weight, negatives)
        if on:
            bank.enqueue(region_features, caption_features, captions)
        bank.training_steps += 1
        return term

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """Unit image features, (B, D)."""
        return unit(self.visual_projection(self.vision_model(pixel_values)))

    def encode_text(self, ids: Tensor, *, long: bool = False) -> Tensor:
        """Unit text features of padded token ids, (B, T) -> (B, D)."""
        return self.encode_texts(Texts.of(ids, self.config.text_config.eos_token_id), long=long)

    def encode_texts(self, texts: Texts, *, long: bool = False) -> Tensor:
        """Unit text features, (B, D)."""
        projection = self.text_filip_projection if long else self.text_projection
        return unit(projection(self.text_model(texts, long=long)))

    def encode_regions(self, batch: Batch) -> Tensor:
        """Unit region features, (R, D)."""
        return self.pooled_regions(self.vision_model.tokens(batch.pixel_values), batch)

    def pooled_regions(self, tokens: Tensor, batch: Batch) -> Tensor:
        """Region features from the hidden states before the last layer, (R, D).

        The projection has no bias, so pooling before it is the same as after it, and far less work.
        """
        dense = self.vision_model.dense(tokens)  # (B, grid * grid, C)
        grid = round(dense.shape[1] ** 0.5)
        weights = region_weights(batch.boxes, grid, grid)  # (R, grid * grid)
        pooled = pool_regions(dense, weights, batch.box_image, batch.boxes_per_image)  # (R, C)
        projection = self.visual_projection if self.roi_projection is None else self.roi_projection
        return unit(projection(pooled))

    def checkpoint_layers(self) -> None:
        """Trades memory for time: the layers of both towers are computed again in the backward pass."""
        self.vision_model.encoder.checkpointing = self.text_model.encoder.checkpointing = True

    def compile_layers(self) -> None:
        """Compiles the layers of both towers: a minute once, with a C++ compiler, or Triton on a GPU."""
        self.vision_model.encoder.compile_layers()
        self.text_model.encoder.compile_layers()

    def logit_scales(self) -> dict[str, nn.Parameter]:
        """The three scales by name, in log space."""
        names = ("logit_scale", "logit_scale_finegraind", "logit_scale_hardneg")
        return {name: getattr(self, name) for name in names}

    @torch.no_grad()
    def clamp_scales(self) -> None:
        """Holds every scale at or under ln 100; to be called after each optimizer step."""
        for scale in self.logit_scales().values():
            scale.clamp_(max=LOGIT_SCALE_CAP)


def unit(features: Tensor) -> Tensor:
    """L2-normalised, in float32 whatever the towers computed in."""
    return F.normalize(features.float(), dim=-1)
