"""The pre-norm transformer that both towers are built from. Module names are those of Hugging Face's CLIP."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fgclip_doctor.core.config import TowerConfig


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI's approximation of GELU. Models trained with it lose accuracy with the exact one, and silently."""
    return F.silu(1.702 * x) / 1.702  # x * sigmoid(1.702 x), in fewer passes over memory and with less to keep


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class Packing(NamedTuple):
    """How U sequences of up to T tokens share N rows: nothing is computed on padding, and no shared state twice.

    Only attention sees whole sequences; the rest of a layer goes row by row.
    """

    path: Tensor  # (U, T): the row of each token; behind the end of a sequence, of any token
    origin: Tensor  # (N,): where in the flattened path each row stands for the first time

    def unpack(self, x: Tensor) -> Tensor:
        return F.embedding(self.path, x)  # (U, T, C); its gradient sums a row's many uses far faster than indexing's

    def pack(self, x: Tensor) -> Tensor:
        return F.embedding(self.origin, x.flatten(0, 1))  # (N, C)

    def row_at(self, x: Tensor, position: Tensor) -> Tensor:
        """The row of one token of each sequence, (N, C) and (U,) -> (U, 1, C)."""
        return F.embedding(self.path.gather(1, position[:, None]), x)  # (U, 1, C)


class Attention(nn.Module):
    def __init__(self, config: TowerConfig, *, causal: bool) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.causal = causal
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, packing: Packing | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C), or packed, (N, C) -> (N, C)."""
        q, k, v = (self.heads_of(projection(x), packing) for projection in (self.q_proj, self.k_proj, self.v_proj))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)  # (B, heads, T, head_dim)
        mixed = mixed.transpose(1, 2).flatten(2)  # (B, T, C)
        out: Tensor = self.out_proj(mixed if packing is None else packing.pack(mixed))
        return out

    def at(self, row: Tensor, x: Tensor, position: Tensor, packing: Packing | None = None) -> Tensor:
        """What `forward` gives at one position of each sequence, (B,), whose row is `row`, (B, 1, C) -> (B, 1, C)."""
        k, v = (self.heads_of(projection(x), packing) for projection in (self.k_proj, self.v_proj))
        q = self.heads_of(self.q_proj(row))  # (B, heads, 1, head_dim)
        order = torch.arange(k.shape[2], device=x.device)  # (T,)
        visible = (order <= position[:, None])[:, None, None] if self.causal else None  # (B, 1, 1, T)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)  # (B, heads, 1, head_dim)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))  # (B, 1, C)
        return out

    def heads_of(self, x: Tensor, packing: Packing | None = None) -> Tensor:
        x = x if packing is None else packing.unpack(x)
        batch, length, width = x.shape
        return x.view(batch, length, self.heads, width // self.heads).transpose(1, 2)  # (B, heads, T, head_dim)

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

    def forward(self, x: Tensor, packing: Packing | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C), or packed, (N, C) -> (N, C)."""
        x = x + self.self_attn(self.layer_norm1(x), packing)
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out

    def at(self, x: Tensor, position: Tensor, packing: Packing | None = None) -> Tensor:
        """What `forward` gives at one position of each sequence, (B,), for far less work: (B, C)."""
        pick = row_at if packing is None else packing.row_at
        normed = self.layer_norm1(x)
        row = pick(x, position) + self.self_attn.at(pick(normed, position), normed, position, packing)  # (B, 1, C)
        out: Tensor = (row + self.mlp(self.layer_norm2(row)))[:, 0]  # (B, C)
        return out

    def value_path(self, x: Tensor) -> Tensor:
        """The layer without its attention: dense features that stay where they are (Zhou et al. 2022, MaskCLIP)."""
        x = x + self.self_attn.value_path(self.layer_norm1(x))
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class Encoder(nn.Module):
    """A stack of layers. The last one stands apart: of it, each branch of the model needs something else.

    With `checkpointing`, a layer keeps its input alone and is computed once more in the backward pass.
    """

    def __init__(self, config: TowerConfig, *, causal: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config, causal=causal) for _ in range(config.num_hidden_layers))
        self.checkpointing = False

    def forward(self, x: Tensor, packing: Packing | None = None) -> Tensor:
        """All layers but the last, (B, T, C) -> (B, T, C), or packed, (N, C) -> (N, C)."""
        for layer in self.layers[:-1]:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, packing, use_reentrant=False, preserve_rng_state=False)
            else:
                x = layer(x, packing)
        return x

    def compile_layers(self) -> None:
        """Compiles the layers, all but the last, in place; the names of the parameters stay as they are."""
        for layer in self.layers[:-1]:
            layer.compile()

    @property
    def last(self) -> Layer:
        return cast(Layer, self.layers[-1])


def row_at(x: Tensor, position: Tensor) -> Tensor:
    """One row of each sequence, (B, T, C) and (B,) -> (B, 1, C)."""
    return x[torch.arange(len(x), device=x.device), position][:, None]  # (B, 1, C)
