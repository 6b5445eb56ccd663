"""The pre-norm transformer that both towers are built from. Module names are those of Hugging Face's CLIP."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fgclip_doctor.core.config import TowerConfig


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI's approximation of GELU. Models trained with it lose accuracy with the exact one, and silently."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class Attention(nn.Module):
    def __init__(self, config: TowerConfig, *, causal: bool) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.causal = causal
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, T, head_dim)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))  # (B, T, C)
        return out

    def value_path(self, x: Tensor) -> Tensor:
        """Each token by itself, as if it attended to nothing but itself."""
        out: Tensor = self.out_proj(self.v_proj(x))
        return out


class Mlp(nn.Module):
    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.activation(self.fc1(x)))
        return out


class Layer(nn.Module):
    def __init__(self, config: TowerConfig, *, causal: bool) -> None:
        super().__init__()
        self.self_attn = Attention(config, causal=causal)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.reset_parameters(config.hidden_size, config.num_hidden_layers)

    def reset_parameters(self, width: int, depth: int) -> None:
        """Normal weights, narrower where many layers add up (as CLIP's code initialises them), and zero biases."""
        attention, narrow = self.self_attn, width**-0.5 * (2 * depth) ** -0.5
        for linear, std in (
            (attention.q_proj, narrow),
            (attention.k_proj, narrow),
            (attention.v_proj, narrow),
            (attention.out_proj, width**-0.5),
            (self.mlp.fc1, (2 * width) ** -0.5),
            (self.mlp.fc2, narrow),
        ):
            nn.init.normal_(linear.weight, std=std)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out

    def value_path(self, x: Tensor) -> Tensor:
        """The layer without its attention: dense features that stay where they are (Zhou et al. 2022, MaskCLIP)."""
        x = x + self.self_attn.value_path(self.layer_norm1(x))
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class Encoder(nn.Module):
    """A stack of layers, (B, T, C) -> (B, T, C)."""

    def __init__(self, config: TowerConfig, *, causal: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config, causal=causal) for _ in range(config.num_hidden_layers))

    def penultimate(self, x: Tensor) -> Tensor:
        """All layers but the last, which the image and the region branch use in two different ways."""
        for layer in self.layers[:-1]:
            x = layer(x)
        return x

    @property
    def last(self) -> Layer:
        return cast(Layer, self.layers[-1])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.penultimate(x))
        return out
