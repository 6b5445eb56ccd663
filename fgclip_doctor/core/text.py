"""The text tower: a causal transformer with a position table for short and one for long texts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fgclip_doctor.core.config import TextConfig
from fgclip_doctor.core.transformer import Encoder


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

    def forward(self, ids: Tensor, *, long: bool) -> Tensor:
        length = ids.shape[1]
        if long:
            kept, stretched = self.position_embedding_ori.weight, self.position_embedding_res.weight
            table = torch.cat([kept[: self.keep_len], stretched[self.keep_len :]])  # (longtext_len, C)
        else:
            table = self.position_embedding.weight
        if length > len(table):
            raise ValueError(f"{length} tokens in a text, and {len(table)} positions")
        out: Tensor = self.token_embedding(ids) + table[:length]  # (B, T, C)
        return out


class TextTower(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.eos_token_id = config.eos_token_id
        self.embeddings = TextEmbeddings(config)
        self.encoder = Encoder(config, causal=True)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, ids: Tensor, *, long: bool = False) -> Tensor:
        """The state at the *first* end-of-text token, (B, C). What follows it, padding too, changes nothing."""
        ends = (ids == self.eos_token_id).int().argmax(dim=1)  # (B,): the first, for padding has the same id
        hidden = self.encoder(self.embeddings(ids, long=long))  # (B, T, C)
        out: Tensor = self.final_layer_norm(self.encoder.last.at(hidden, ends))  # (B, C)
        return out
