"""The memory bank: a ring of past region pairs that serve as further negatives."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from fgclip_doctor.core.ranks import gathered, row_counts


def caption_ids(ids: Tensor, eos_token_id: int) -> Tensor:
    """A 64-bit fingerprint of each text, (B, T) -> (B,), that does not depend on its padding."""
    ends = (ids == eos_token_id).int().cumsum(1)  # (B, T)
    tokens = torch.where(ends == 0, ids + 1, 0)  # (B, T)
    factors = torch.full((ids.shape[1],), 6364136223846793005, device=ids.device).cumprod(0)  # (T,), modulo 2^64
    return (tokens * factors).sum(1)  # (B,), modulo 2^64


class MemoryBank(nn.Module):
    """`size` rows per modality, first in, first out. A row counts only once it has been filled.

    The buffers bear the names of FG-CLIP checkpoints that carry a bank; keys are stored as columns, (D, K). The warmup
    says its clock: `clock="step"` counts optimizer steps, `clock="forward"` forward passes in training mode.
    """

    region_image_queue: Tensor  # (D, K), unit columns
    region_text_queue: Tensor  # (D, K)
    region_caption_queue: Tensor  # (K,): whose caption each column is
    queue_ptr: Tensor  # (1,): where the next row goes
    queue_is_full: Tensor  # (1,)
    training_steps: Tensor  # (1,): forward passes in training mode. The name misleads, and real checkpoints have it

    def __init__(self, dimension: int, *, size: int, warmup: int, clock: Literal["step", "forward"]) -> None:
        super().__init__()
        self.size, self.warmup, self.clock = size, warmup, clock
        self.register_buffer("region_image_queue", torch.zeros(dimension, size))
        self.register_buffer("region_text_queue", torch.zeros(dimension, size))
        self.register_buffer("region_caption_queue", torch.zeros(size, dtype=torch.long))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))
        self.register_buffer("queue_is_full", torch.zeros(1, dtype=torch.bool))
        self.register_buffer("training_steps", torch.zeros(1, dtype=torch.long))

    def is_on(self, step: int) -> bool:
        """Whether the warmup is over, `step` optimizer updates into the run. The forward clock reads a tensor."""
        return (step if self.clock == "step" else int(self.training_steps)) >= self.warmup

    def filled(self) -> Tensor:
        """Which rows hold a pair, (K,)."""
        return (torch.arange(self.size, device=self.queue_ptr.device) < self.queue_ptr) | self.queue_is_full

    def negatives(self, captions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Image keys (D, K), text keys (D, K), and which of them may serve each anchor, (R, K).

        A row with the anchor's own caption is no negative. The keys are copies: the ring moves on before the backward
        pass reads them.
        """
        usable = self.filled() & (self.region_caption_queue != captions[:, None])  # (R, K)
        image_keys, text_keys = (
            queue.to(torch.float32, copy=True) for queue in (self.region_image_queue, self.region_text_queue)
        )
        return image_keys, text_keys, usable

    @torch.no_grad()
    def enqueue(self, image_features: Tensor, text_features: Tensor, captions: Tensor) -> None:
        """Writes the unit features (R, D) of every rank over the oldest rows, around the end of the ring.

        So every rank holds the same bank, the one that a single process with the joined batch would hold.
        """
        counts = row_counts(len(captions))
        image_features, text_features, captions = (
            gathered(rows, counts) for rows in (image_features, text_features, captions)
        )
        image_features, text_features, captions = (x[-self.size :] for x in (image_features, text_features, captions))
        count = len(captions)
        at = (self.queue_ptr + torch.arange(count, device=captions.device)) % self.size  # (R,)
        self.region_image_queue.index_copy_(1, at, image_features.T.to(self.region_image_queue.dtype))
        self.region_text_queue.index_copy_(1, at, text_features.T.to(self.region_text_queue.dtype))
        self.region_caption_queue.index_copy_(0, at, captions)
        self.queue_is_full |= self.queue_ptr + count >= self.size
        self.queue_ptr.copy_((self.queue_ptr + count) % self.size)
