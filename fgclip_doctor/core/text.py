"""The text tower: a causal transformer with a position table for short and one for long texts."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fgclip_doctor.core.config import TextConfig
from fgclip_doctor.core.transformer import Encoder, Packing


def stretched_positions(table: Tensor, keep: int = 20) -> Tensor:
    """A position table (T, C) stretched to (4 T - 3 keep, C): 77 rows become 248.

    The first `keep` rows stay; after them come three interpolated rows between each two neighbours, and three that
    carry on the last slope (Zhang et al. 2024, Long-CLIP, section 3.2).
    """
    tail = table[keep:]  # (T - keep, C)
    slopes = torch.cat([tail[1:] - tail[:-1], tail[-1:] - tail[-2:-1]])  # (T - keep, C)
    quarters = torch.arange(4, dtype=table.dtype, device=table.device)[:, None] / 4  # (4, 1)
    stretched = tail[:, None] + quarters * slopes[:, None]  # (T - keep, 4, C)
    return torch.cat([table[:keep], stretched.flatten(0, 1)])  # (4 T - 3 keep, C)


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """B texts, as the N distinct beginnings of the U distinct texts among them.

    The tower is causal: the state at a token depends on what precedes it and on nothing else. So texts that begin
    alike share the states of their beginning, a caption with its hard negatives above all, and each is computed once.
    """

    ids: Tensor  # (B, T), padded behind the first end token with whatever
    tokens: Tensor  # (N,): the last token of each beginning
    positions: Tensor  # (N,): and where it stands
    path: Tensor  # (U, T): the beginnings of each distinct text, from its first token on
    origin: Tensor  # (N,): where in the flattened path each beginning stands for the first time
    ends: Tensor  # (U,): the position of the first end token
    index: Tensor  # (B,): which of the distinct texts each text is

    @classmethod
    def of(cls, ids: Tensor, eos_token_id: int) -> Self:
        """Sorts the texts, so that those that begin alike are neighbours. For the host: a device would have to wait."""
        is_end = ids == eos_token_id  # (B, T)
        if not is_end.any(dim=1).all():
            raise ValueError("a text without end-of-text token")
        length = int(is_end.int().argmax(dim=1).max()) + 1 if len(ids) else 1
        rows, index = torch.unique(ids[:, :length], dim=0, return_inverse=True)  # (U, T), (B,)
        ends = (rows == eos_token_id).int().argmax(dim=1)  # (U,): the first, for padding has the same id
        used = torch.arange(length, device=ids.device) <= ends[:, None]  # (U, T)
        unlike = (rows[1:] != rows[:-1]).int().cumsum(dim=1) > 0  # (U - 1, T): the previous text began otherwise
        new = used & torch.cat([used[:1], unlike])  # (U, T)
        origin = new.flatten().nonzero()[:, 0]  # (N,)
        number = new.flatten().cumsum(0).view_as(new) - 1  # (U, T)
        return cls(
            ids=ids,
            tokens=rows.flatten()[origin],
            positions=origin % length,
            path=torch.where(new, number, 0).cummax(dim=0).values,
            origin=origin,
            ends=ends,
            index=index,
        )

    def to(self, device: torch.device) -> Self:
        moved = {one.name: getattr(self, one.name).to(device, non_blocking=True) for one in fields(self)}
        return type(self)(**moved)


class TextEmbeddings(nn.Module):
    """Tokens and positions. Long texts take their first `keep_len` positions from `_ori`, the others from `_res`."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.keep_len = config.keep_len
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.position_embedding_res = nn.Embedding(config.longtext_len, config.hidden_size)
        self.position_embedding_ori = nn.Embedding(config.longtext_len, config.hidden_size)
        for table in (self.token_embedding, self.position_embedding):
            nn.init.normal_(table.weight, std=0.02)
        self.stretch()

    @torch.no_grad()
    def stretch(self) -> None:
        """Starts both long tables from the short one."""
        longer = stretched_positions(self.position_embedding.weight, self.keep_len)
        self.position_embedding_res.weight.copy_(longer)
        self.position_embedding_ori.weight.copy_(longer)

    def forward(self, texts: Texts, *, long: bool) -> Tensor:
        length = texts.path.shape[1]
        if long:
            kept, stretched = self.position_embedding_ori.weight, self.position_embedding_res.weight
            table = torch.cat([kept[: self.keep_len], stretched[self.keep_len :]])  # (longtext_len, C)
        else:
            table = self.position_embedding.weight
        if length > len(table):
            raise ValueError(f"{length} tokens in a text, and {len(table)} positions")
        out: Tensor = self.token_embedding(texts.tokens) + F.embedding(texts.positions, table)  # (N, C)
        return out


class TextTower(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embeddings = TextEmbeddings(config)
        self.encoder = Encoder(config, causal=True)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, texts: Texts, *, long: bool = False) -> Tensor:
        """The state at the *first* end-of-text token, (B, C). What follows it, padding too, changes nothing."""
        packing = Packing(texts.path, texts.origin)
        hidden = self.encoder(self.embeddings(texts, long=long), packing)  # (N, C)
        pooled = self.final_layer_norm(self.encoder.last.at(hidden, texts.ends, packing))  # (U, C)
        return F.embedding(texts.index, pooled)  # (B, C)
