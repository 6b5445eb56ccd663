"""Which candidates of a loss carry a gradient, as the recorder reads it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fgclip_doctor.live.sites import Reach, reach

SCALE = torch.tensor(2.66, requires_grad=True)
OTHERS, BANK = (F.normalize(torch.randn(rows, 8, generator=torch.Generator().manual_seed(rows))) for rows in (4, 16))


class Gather(torch.autograd.Function):
    """Rows of two ranks, with their gradients."""

    @staticmethod
    def forward(ctx: object, rows: Tensor) -> Tensor:
        return torch.cat([rows, OTHERS])

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return grad[:4]


def features(seed: int) -> Tensor:
    """Unit features (4, 8) of a layer that learns."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(8, 8, generator=generator).requires_grad_()
    return F.normalize(torch.randn(4, 8, generator=generator) @ weight, dim=1)


def written(rows: Tensor) -> Tensor:
    """A matrix of constants into which one rank's rows were written."""
    every = torch.cat([OTHERS, OTHERS])
    every[4:] = rows
    return every


IMAGES, TEXTS = features(0), features(1)
LEARNS: Tensor = Gather.apply(TEXTS)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        (SCALE.exp() * IMAGES @ LEARNS.T, Reach(True, 8, 8)),
        (SCALE.exp() * IMAGES @ LEARNS.detach().T, Reach(True, 8, 0)),
        (SCALE.exp() * (IMAGES @ (SCALE * LEARNS.detach()).T), Reach(True, 8, 0)),  # a scale alone is no feature
        (SCALE.exp() * IMAGES @ torch.cat([OTHERS, TEXTS]).T, Reach(True, 8, 4)),
        (SCALE.exp() * IMAGES @ F.normalize(torch.cat([OTHERS, TEXTS])).T, Reach(True, 8, 4)),
        (SCALE.exp() * IMAGES @ written(TEXTS).T, Reach(True, 8, 4)),
        ((SCALE.exp() * LEARNS.detach() @ IMAGES.T).T, Reach(True, 8, 0)),  # made the other way round
        (F.linear(SCALE.exp() * IMAGES, LEARNS), Reach(True, 8, 8)),
        (IMAGES.detach() @ LEARNS.T, Reach(False, 8, 8)),
        (
            torch.cat([IMAGES @ LEARNS.T, (IMAGES @ BANK.T).masked_fill(torch.arange(16) < 4, -torch.inf)], dim=1),
            Reach(True, 24, 8),
        ),
        ((IMAGES[:, None] - LEARNS[:6]).square().sum(-1), None),  # no product of features
        (IMAGES.detach() @ BANK.T, None),
    ],
)
def test_what_carries_a_gradient_is_read_off_the_graph(logits: Tensor, expected: Reach | None) -> None:
    assert reach(logits) == expected
