"""Which candidates of a loss carry a gradient, and whose positive stands there twice, as the recorder reads them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fgclip_doctor.live import sites
from fgclip_doctor.live.fetch import Fetcher
from fgclip_doctor.live.sites import MEASURED, Call, Reach, measure, reach

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


def measured(logits: Tensor, targets: Tensor | None, *, kind: str = "softmax") -> dict[str, float]:
    found: list[float] = []
    assert measure(Call("loss.py:1", kind, logits, targets, -100), Fetcher(), found.extend)
    return dict(zip(MEASURED, found, strict=True))


def twins(logits: Tensor) -> float:
    return measured(logits, torch.arange(len(logits)))["twins"]


def test_a_positive_that_is_a_candidate_twice_is_seen() -> None:
    with torch.no_grad():
        scale = SCALE.exp()
        once = scale * IMAGES @ torch.cat([TEXTS, BANK]).T
        again = torch.cat([scale * (IMAGES @ TEXTS.T), (scale * IMAGES) @ torch.cat([BANK, TEXTS]).T], dim=1)
        assert twins(once) == 0
        assert twins(again) == pytest.approx(1)
        again[:2, 4:] = -torch.inf  # masked for half of the anchors
        assert twins(again) == pytest.approx(0.5)


def test_coarse_logits_say_nothing_of_it() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (20 * torch.randn(8, 512, generator=generator)).bfloat16()
    assert twins(logits) != twins(logits)


MASKED = (20 * torch.randn(6, 9, generator=torch.Generator().manual_seed(1))).masked_fill(
    torch.eye(6, 9) > 0, -torch.inf
)


@pytest.mark.parametrize(
    ("kind", "logits", "targets"),
    [
        ("softmax", SCALE.exp() * IMAGES @ BANK.T, torch.tensor([3, -100, 0, 15])),
        ("softmax", MASKED, torch.arange(1, 7)),
        ("softmax", MASKED.bfloat16(), torch.arange(1, 7)),
        ("softmax", torch.full((2, 3), 400.0), torch.tensor([0, 1])),
        ("sigmoid", SCALE.exp() * IMAGES @ TEXTS.T - 3, None),
        ("sigmoid", IMAGES @ BANK.T, torch.eye(4, 16)),
        ("sigmoid", IMAGES @ TEXTS.T, 1 - torch.eye(4)),
    ],
)
def test_many_logits_are_measured_as_few_are(
    kind: str, logits: Tensor, targets: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = measured(logits, targets, kind=kind)
    monkeypatch.setattr(sites, "FEW", 0)
    assert measured(logits, targets, kind=kind) == pytest.approx(few, rel=1e-5, nan_ok=True)
    if kind == "softmax":
        assert targets is not None
        assert few["loss"] == pytest.approx(F.cross_entropy(logits.detach().float(), targets).item(), rel=1e-5)


@pytest.mark.parametrize("targets", [torch.eye(4, 16), torch.rand(4), None])
def test_targets_that_are_no_indices_are_left_alone(targets: Tensor | None) -> None:
    assert not measure(Call("loss.py:1", "softmax", IMAGES @ BANK.T, targets, -100), Fetcher(), print)


@pytest.mark.parametrize("mask", [-1e4, -1e9, -65504.0, float(torch.finfo(torch.float32).min)])
def test_what_is_masked_is_no_candidate_whatever_it_is_masked_with(mask: float) -> None:
    filled = MASKED.masked_fill(MASKED.isinf(), mask)
    assert measured(filled, torch.arange(1, 7)) == pytest.approx(measured(MASKED, torch.arange(1, 7)), rel=1e-6)
    added = torch.where(MASKED.isinf(), mask + 20 * torch.randn(6, 9), MASKED)
    assert measured(added, torch.arange(1, 7))["null"] == pytest.approx(measured(MASKED, torch.arange(1, 7))["null"])
