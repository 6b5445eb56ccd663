from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fgclip_doctor.core.losses import global_loss, hard_loss, info_nce, region_loss, total


def units(*shape: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def by_hand(anchors: Tensor, positives: Tensor, negatives: list[list[Tensor]], scale: float) -> float:
    """Mean over the anchors of -log(e^(positive) / sum of e^(all)), one logit at a time."""
    losses = []
    for anchor, positive, others in zip(anchors, positives, negatives, strict=True):
        logits = [scale * float(anchor @ other) for other in (positive, *others)]
        losses.append(math.log(sum(map(math.exp, logits))) - logits[0])
    return sum(losses) / len(losses)


def others(rows: Tensor) -> list[list[Tensor]]:
    return [[row for number, row in enumerate(rows) if number != mine] for mine in range(len(rows))]


def test_global_loss_by_hand() -> None:
    images, texts = units(5, 16, seed=0), units(5, 16, seed=1)
    term = global_loss(images, texts, torch.tensor(14.0), weight=1.0)
    expected = (by_hand(images, texts, others(texts), 14) + by_hand(texts, images, others(images), 14)) / 2
    assert term.loss.item() == pytest.approx(expected, rel=1e-5)
    assert term.candidates.item() == 5


def test_region_loss_with_a_bank_by_hand() -> None:
    regions, texts = units(3, 16, seed=0), units(3, 16, seed=1)
    old_regions, old_texts = units(4, 16, seed=2), units(4, 16, seed=3)
    usable = torch.tensor([[True, True, False, False], [False, True, True, False], [True, True, True, False]])
    term = region_loss(regions, texts, torch.tensor(14.0), 0.1, (old_regions.T, old_texts.T, usable))

    def negatives(rows: Tensor, old: Tensor) -> list[list[Tensor]]:
        return [fresh + list(old[mask]) for fresh, mask in zip(others(rows), usable, strict=True)]

    expected = by_hand(regions, texts, negatives(texts, old_texts), 14) / 2
    expected += by_hand(texts, regions, negatives(regions, old_regions), 14) / 2
    assert term.loss.item() == pytest.approx(expected, rel=1e-5)
    assert term.candidates.item() == pytest.approx(3 + 7 / 3)
    assert total({"region": term}).item() == pytest.approx(0.1 * expected, rel=1e-5)


def test_an_empty_bank_changes_nothing() -> None:
    regions, texts = units(3, 16, seed=0), units(3, 16, seed=1)
    empty = (torch.zeros(16, 4), torch.zeros(16, 4), torch.zeros(3, 4, dtype=torch.bool))
    without, with_empty = (region_loss(regions, texts, torch.tensor(14.0), 0.1, bank) for bank in (None, empty))
    assert torch.equal(without.loss, with_empty.loss)
    assert without.candidates == with_empty.candidates == 3


def test_hard_loss_by_hand() -> None:
    regions, texts = units(3, 16, seed=0), units(3, 11, 16, seed=1)
    term = hard_loss(regions, texts, torch.tensor(14.0), 0.5)
    expected = by_hand(regions, texts[:, 0], [list(row[1:]) for row in texts], 14)
    assert term.loss.item() == pytest.approx(expected, rel=1e-5)
    assert term.candidates.item() == 11


def test_what_comes_with_the_loss() -> None:
    logits = torch.tensor([[4.0, 1.0, -torch.inf], [3.0, 1.0, 2.0]])
    term = info_nce(logits, torch.tensor([0, 1]), 1.0)
    assert term.candidates.item() == 2.5
    assert term.accuracy.item() == 0.5
    assert term.margin.item() == pytest.approx(((4 - 2.5) + (1 - 2)) / 2)
