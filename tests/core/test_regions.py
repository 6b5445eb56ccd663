"""Region pooling against torchvision's roi_align, whose results `fixtures/make_roi_align.py` wrote down."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fgclip_doctor.core.regions import pool_regions, region_weights

FIXTURE = np.load(Path(__file__).with_name("fixtures") / "roi_align.npz")
CASES = sorted(name.removesuffix("_pooled") for name in FIXTURE if name.endswith("_pooled"))
ENOUGH = 40  # samples for the widest of the fixture's boxes, which reach far out of the map


def fixture(case: str, part: str, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(FIXTURE[f"{case}_{part}"]).to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("case", CASES)
def test_pooling_is_torchvisions(case: str, dtype: torch.dtype, tolerance: float) -> None:
    size = case.rpartition("_")[2]
    height, width = map(int, size.split("x"))
    features = torch.from_numpy(FIXTURE[f"features_{size}"]).to(dtype).requires_grad_()  # (2, C, height, width)
    boxes, images = fixture(case, "boxes", torch.float64), fixture(case, "image", torch.int64)
    order = images.argsort(stable=True)  # ours wants the regions of one image side by side

    weights = region_weights(boxes[order], height, width, ENOUGH)
    dense = features.flatten(2).transpose(1, 2)  # (2, height * width, C)
    pooled = pool_regions(dense, weights, images[order], per_image=len(boxes))

    expected = fixture(case, "pooled", dtype)[order]
    assert torch.allclose(pooled, expected, rtol=0, atol=tolerance)
    (gradient,) = torch.autograd.grad((pooled * fixture(case, "weight", dtype)[order]).sum(), features)
    assert torch.allclose(gradient, fixture(case, "gradient", dtype), rtol=0, atol=tolerance)


def test_the_default_bound_is_enough_for_boxes_inside_the_image() -> None:
    corners = torch.rand(500, 2, 2, generator=torch.Generator().manual_seed(0)).sort(dim=1).values
    boxes = torch.cat([corners.flatten(1), torch.tensor([[0.0, 0.0, 1.0, 1.0]])])
    assert torch.equal(region_weights(boxes, 7, 7), region_weights(boxes, 7, 7, ENOUGH))


def test_an_image_without_regions_takes_no_part() -> None:
    dense = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
    weights = region_weights(torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.5, 0.5]]), 2, 2)
    pooled = pool_regions(dense, weights, torch.tensor([0, 2]), per_image=1)
    assert torch.allclose(pooled, torch.stack([dense[0].mean(0), dense[2, 0]]))
