"""RoIAlign to 1 x 1, exact and without sampling loops.

Bilinear weights are a product of one per axis, and so is their average over a grid of samples: a region's feature is
`wy^T F wx`. Both vectors come in closed form from the box, and one batched matrix product pools every region.
"""

from __future__ import annotations

import torch
from torch import Tensor


def axis_weights(start: Tensor, end: Tensor, cells: int, samples: int) -> Tensor:
    """Averaged bilinear weights along one axis, (R,) and (R,) -> (R, cells).

    As torchvision's `roi_align(aligned=True, sampling_ratio=-1)`: one sample per cell covered, rounded up; samples
    beyond one cell outside count as zero, the others are clamped into the map. `start` and `end` are in cells.
    `samples` bounds the samples per region: more cost time, fewer would be wrong.
    """
    size = end - start  # (R,)
    count = size.ceil().clamp(min=0)  # (R,): none for an empty or inverted box, whose feature is zero
    order = torch.arange(samples, device=start.device, dtype=start.dtype)  # (S,)
    spacing = size / count.clamp(min=1)  # (R,)
    position = (start - 0.5)[:, None] + (order + 0.5) * spacing[:, None]  # (R, S)
    inside = (order < count[:, None]) & (position >= -1) & (position <= cells)  # (R, S)
    cell = torch.arange(cells, device=start.device, dtype=start.dtype)  # (cells,)
    distance = position.clamp(0, cells - 1)[:, :, None] - cell  # (R, S, cells)
    triangle = (1 - distance.abs()).clamp(min=0) * inside[:, :, None]  # (R, S, cells)
    return triangle.sum(1) / count.clamp(min=1)[:, None]  # (R, cells)


def region_weights(boxes: Tensor, height: int, width: int, samples: int | None = None) -> Tensor:
    """The weight of every cell of the map in every region, (R, 4) -> (R, height * width).

    Boxes are xyxy, normalised to the image. `samples` defaults to what boxes inside the image can need; a box that
    reaches out of it by more than that needs a larger bound.
    """
    boxes = boxes.to(torch.promote_types(boxes.dtype, torch.float32))
    x1, y1, x2, y2 = boxes.unbind(-1)  # (R,) each
    bound = max(height, width) + 1 if samples is None else samples  # one more than cells: the size may round up
    wy = axis_weights(y1 * height, y2 * height, height, bound)  # (R, height)
    wx = axis_weights(x1 * width, x2 * width, width, bound)  # (R, width)
    return (wy[:, :, None] * wx[:, None, :]).flatten(1)  # (R, height * width)


def pool_regions(dense: Tensor, weights: Tensor, images: Tensor, per_image: int) -> Tensor:
    """Pools patch features (B, N, C) by the weights of the regions (R, N) to region features (R, C).

    `images` (R,), in ascending order, says which image each region is of, and `per_image` bounds the regions of one
    image; it is known on the host, so nothing waits for the device.
    """
    rank = torch.arange(len(images), device=images.device) - torch.searchsorted(images, images)  # (R,) in its image
    slot = images * per_image + rank  # (R,)
    table = dense.new_zeros(len(dense) * per_image, dense.shape[1])  # (B * per_image, N)
    table = table.index_copy(0, slot, weights.to(dense.dtype)).view(
        len(dense), per_image, dense.shape[1]
    )  # (B, per_image, N)
    return torch.bmm(table, dense).flatten(0, 1)[slot]  # (R, C)
