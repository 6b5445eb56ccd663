"""How well a model tells regions, images and hard negatives apart, on scenes that it wasn't trained on."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fgclip_doctor.core.model import FgclipModel
from fgclip_doctor.training.data import Dataset, Tokenizer, collate


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Top-1 accuracies, each with its chance level."""

    image: float  # images to their long captions
    image_chance: float
    region: float  # regions to the distinct region captions
    region_chance: float
    hard: float  # regions to their own caption among hard negatives
    hard_chance: float


@torch.no_grad()
def evaluate(model: FgclipModel, dataset: Dataset, tokenizer: Tokenizer) -> Score:
    """Scores the whole dataset as one batch; the dataset should be a few hundred samples."""
    device = next(model.parameters()).device
    batch = collate([dataset[index] for index in range(len(dataset))], tokenizer).to(device)
    image_features = model.encode_image(batch.pixel_values)  # (B, D)
    long_features = model.encode_text(batch.long_ids, long=True)  # (B, D)
    region_features = model.encode_regions(batch)  # (R, D)
    text_features = model.encode_text(batch.text_ids)  # (U, D)

    images = torch.arange(len(image_features), device=device)
    captions, target = torch.unique(batch.region_index, return_inverse=True)  # (C,), (R,)
    hard = torch.einsum("hd,hcd->hc", region_features[batch.hard_box], text_features[batch.hard_index])  # (H, 11)
    return Score(
        image=accuracy(image_features @ long_features.T, images),
        image_chance=1 / len(images),
        region=accuracy(region_features @ text_features[captions].T, target),
        region_chance=1 / len(captions),
        hard=accuracy(hard, torch.zeros_like(batch.hard_box)),
        hard_chance=1 / hard.shape[1],
    )


def accuracy(logits: torch.Tensor, targets: torch.Tensor) -> float:
    return (logits.argmax(1) == targets).float().mean().item()
