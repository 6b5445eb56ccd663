"""What the ranks of one run tell each other. Where there is one rank only, all of it is the identity.

The ranks may differ in their numbers of rows, and have none: numbers are exchanged first, and rows padded on their way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed


def world_size() -> int:
    """The number of ranks."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """The number of this rank, from 0."""
    return distributed.get_rank() if world_size() > 1 else 0


def row_counts(rows: int) -> list[int]:
    """How many rows each rank has, of which this one has `rows`.

    The hosts exchange them, and no device waits; so the process group needs a backend for the CPU, such as gloo.
    """
    if world_size() == 1:
        return [rows]
    counts = torch.zeros(world_size(), dtype=torch.long)  # (world,)
    counts[rank()] = rows
    distributed.all_reduce(counts)
    return counts.tolist()


def gathered(rows: Tensor, counts: list[int]) -> Tensor:
    """The rows of all ranks in the order of the ranks, (n, ...) -> (sum of counts, ...), with their gradients."""
    if len(counts) == 1 or not sum(counts):
        return rows
    every: Tensor = Gather.apply(rows, counts)  # type: ignore[no-untyped-call]
    return every


class Gather(torch.autograd.Function):
    """Rows of every rank forward; backward, what the losses of all ranks say of this rank's own."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        padded = rows.new_zeros(max(counts), *rows.shape[1:])  # (most, ...)
        padded[: len(rows)] = rows
        slots = [torch.empty_like(padded) for _ in counts]
        distributed.all_gather(slots, padded)
        return torch.cat([slot[:count] for slot, count in zip(slots, counts, strict=True)])  # (sum of counts, ...)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        summed = grad.clone(memory_format=torch.contiguous_format)  # (sum of counts, ...)
        distributed.all_reduce(summed)
        return torch.split(summed, ctx.counts)[rank()], None
