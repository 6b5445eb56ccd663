"""What is measured of a contrastive loss, however large it is and with however many others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fgclip_doctor.live.fetch import Fetcher
from fgclip_doctor.live.measured import MEASURED, Call, Losses

SCALE = 14.3
IMAGES, TEXTS, BANK = (
    F.normalize(torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed)))
    for rows, seed in ((4, 0), (4, 1), (16, 16))
)


def measured(logits: Tensor, targets: Tensor | None, *, kind: str = "softmax") -> dict[str, float]:
    found: list[float] = []
    losses = Losses(Fetcher())
    assert losses.add(Call("loss.py:1", kind, logits, targets, -100), found.extend)
    losses.measure()
    return dict(zip(MEASURED, found, strict=True))


def twins(logits: Tensor) -> float:
    return measured(logits, torch.arange(len(logits)))["twins"]


def test_a_positive_that_is_a_candidate_twice_is_seen() -> None:
    with torch.no_grad():
        once = SCALE * IMAGES @ torch.cat([TEXTS, BANK]).T
        again = torch.cat([SCALE * (IMAGES @ TEXTS.T), (SCALE * IMAGES) @ torch.cat([BANK, TEXTS]).T], dim=1)
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
        ("softmax", SCALE * IMAGES @ BANK.T, torch.tensor([3, -100, 0, 15])),
        ("softmax", MASKED, torch.arange(1, 7)),
        ("softmax", MASKED.bfloat16(), torch.arange(1, 7)),
        ("softmax", torch.full((2, 3), 400.0), torch.tensor([0, 1])),
        ("sigmoid", SCALE * IMAGES @ TEXTS.T - 3, None),
        ("sigmoid", IMAGES @ BANK.T, torch.eye(4, 16)),
        ("sigmoid", IMAGES @ TEXTS.T, 1 - torch.eye(4)),
    ],
)
def test_many_logits_are_measured_as_few_are(
    kind: str, logits: Tensor, targets: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = measured(logits, targets, kind=kind)
    monkeypatch.setattr("fgclip_doctor.live.measured.FEW", 0)
    assert measured(logits, targets, kind=kind) == pytest.approx(few, rel=1e-5, nan_ok=True)
    if kind == "softmax":
        assert targets is not None
        assert few["loss"] == pytest.approx(F.cross_entropy(logits.detach().float(), targets).item(), rel=1e-5)


@pytest.mark.parametrize("targets", [torch.eye(4, 16), torch.rand(4), None])
def test_targets_that_are_no_indices_are_left_alone(targets: Tensor | None) -> None:
    assert not Losses(Fetcher()).add(Call("loss.py:1", "softmax", IMAGES @ BANK.T, targets, -100), print)


@pytest.mark.parametrize("mask", [-1e4, -1e9, -65504.0, float(torch.finfo(torch.float32).min)])
def test_what_is_masked_is_no_candidate_whatever_it_is_masked_with(mask: float) -> None:
    filled = MASKED.masked_fill(MASKED.isinf(), mask)
    assert measured(filled, torch.arange(1, 7)) == pytest.approx(measured(MASKED, torch.arange(1, 7)), rel=1e-6)
    added = torch.where(MASKED.isinf(), mask + 20 * torch.randn(6, 9), MASKED)
    assert measured(added, torch.arange(1, 7))["null"] == pytest.approx(measured(MASKED, torch.arange(1, 7))["null"])


def test_losses_that_are_measured_together_are_as_each_alone() -> None:
    generator = torch.Generator().manual_seed(2)
    calls = [
        (20 * torch.randn(6, 9, generator=generator), torch.arange(6)),
        (MASKED, torch.arange(1, 7)),
        (torch.full((2, 3), torch.nan), torch.tensor([0, 1])),
        (torch.zeros(3, 5), torch.tensor([4, 0, 0])),
        (torch.cat([IMAGES @ TEXTS.T, IMAGES @ TEXTS.T], dim=1), torch.tensor([3, -100, 5, 0])),
        (IMAGES @ TEXTS.T, torch.full((4,), -100)),
    ]
    found: list[list[float]] = []
    losses = Losses(Fetcher())
    for logits, targets in calls:
        assert losses.add(Call("loss.py:1", "softmax", logits, targets, -100), found.append)
        logits.mul_(2)  # as a training may, once it has its loss
    losses.measure()
    for (logits, targets), values in zip(calls, found, strict=True):
        assert values == pytest.approx(list(measured(logits / 2, targets).values()), rel=1e-6, nan_ok=True)
    assert found[3][4] == pytest.approx(2 / 3)  # of equal candidates the first is the best
