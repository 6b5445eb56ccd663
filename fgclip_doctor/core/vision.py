"""The vision tower: a pre-norm ViT with a class token. State-dict names are those of Hugging Face's CLIP."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fgclip_doctor.core.config import VisionConfig
from fgclip_doctor.core.transformer import Encoder


class VisionEmbeddings(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.patch_size = config.patch_size
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        self.patch_embedding = nn.Conv2d(3, width, config.patch_size, stride=config.patch_size, bias=False)
        self.position_embedding = nn.Embedding(config.grid**2 + 1, width)
        nn.init.normal_(self.patch_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding.weight, std=0.02)

    def forward(self, pixel_values: Tensor) -> Tensor:
        side = pixel_values.shape[-1]
        if pixel_values.shape[-2] != side or side % self.patch_size:
            raise ValueError(
                f"images must be square, in multiples of {self.patch_size}: got {tuple(pixel_values.shape)}"
            )
        pixel_values = pixel_values.to(self.patch_embedding.weight.dtype)
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)  # (B, grid * grid, C)
        classes = self.class_embedding.expand(len(patches), 1, -1)  # (B, 1, C)
        tokens = torch.cat([classes, patches], dim=1)  # (B, 1 + grid * grid, C)
        return tokens + self.positions(side // self.patch_size)

    def positions(self, grid: int) -> Tensor:
        """The position table, (1 + grid * grid, C), resized bicubically for images of another size."""
        table = self.position_embedding.weight
        trained = round((len(table) - 1) ** 0.5)
        if grid == trained:
            return table
        plane = table[1:].T.reshape(1, -1, trained, trained)  # (1, C, trained, trained)
        plane = F.interpolate(plane.float(), size=(grid, grid), mode="bicubic", align_corners=False).to(table.dtype)
        return torch.cat([table[:1], plane.flatten(2)[0].T])  # (1 + grid * grid, C)


class VisionTower(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)  # the name in every checkpoint
        self.encoder = Encoder(config, causal=False)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def tokens(self, pixel_values: Tensor) -> Tensor:
        """The hidden states before the last layer, (B, 1 + grid * grid, C)."""
        out: Tensor = self.encoder(self.pre_layrnorm(self.embeddings(pixel_values)))
        return out

    def pooled(self, tokens: Tensor) -> Tensor:
        """The class token after the last layer, (B, C)."""
        first = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)  # (B,)
        out: Tensor = self.post_layernorm(self.encoder.last.at(tokens, first))  # (B, C)
        return out

    def dense(self, tokens: Tensor) -> Tensor:
        """The patches through the last layer's value path only, (B, grid * grid, C)."""
        out: Tensor = self.post_layernorm(self.encoder.last.value_path(tokens[:, 1:]))  # (B, grid * grid, C)
        return out

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.pooled(self.tokens(pixel_values))
