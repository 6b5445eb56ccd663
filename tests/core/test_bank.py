from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fgclip_doctor.core.bank import MemoryBank, caption_ids

DIMENSION, SIZE = 8, 10


def bank(**changes: object) -> MemoryBank:
    return MemoryBank(DIMENSION, **{"size": SIZE, "warmup": 0, "clock": "step", **changes})  # type: ignore[arg-type]


def pairs(count: int, first: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Unit features with the captions `first`, `first` + 1 and so on, which alone determine them."""
    captions = range(first, first + count)
    rows = [torch.randn(2, DIMENSION, generator=torch.Generator().manual_seed(caption)) for caption in captions]
    images, texts = F.normalize(torch.stack(rows, dim=1) if rows else torch.empty(2, 0, DIMENSION), dim=-1)
    return images, texts, torch.tensor(captions, dtype=torch.long)


@pytest.mark.parametrize("sizes", [[3] * 7, [10, 10], [7, 6, 5], [1] * 23, [4, 0, 9]])
def test_the_ring_holds_the_last_rows(sizes: list[int]) -> None:
    ring, first = bank(), 0
    for size in sizes:
        ring.enqueue(*pairs(size, first))
        first += size
        kept = min(first, SIZE)
        assert ring.filled().sum() == kept
        assert sorted(ring.region_caption_queue[ring.filled()].tolist()) == list(range(first - kept, first))
        for column in torch.nonzero(ring.filled()).flatten():
            image, text, _ = pairs(1, int(ring.region_caption_queue[column]))
            assert torch.equal(ring.region_image_queue[:, column], image[0])
            assert torch.equal(ring.region_text_queue[:, column], text[0])
    assert ring.queue_ptr.item() == first % SIZE
    assert ring.queue_is_full.item() == (first >= SIZE)


def test_more_than_the_ring_holds_leaves_the_last() -> None:
    ring = bank()
    ring.enqueue(*pairs(25))
    assert sorted(ring.region_caption_queue.tolist()) == list(range(15, 25))


def test_only_filled_rows_with_another_caption_are_negatives() -> None:
    ring = bank()
    assert not ring.negatives(torch.tensor([0]))[2].any()
    ring.enqueue(*pairs(4))
    *_, usable = ring.negatives(torch.tensor([2, 9]))
    assert usable.tolist() == [[True, True, False, True] + 6 * [False], 4 * [True] + 6 * [False]]


def test_negatives_are_those_before_the_ring_moved_on() -> None:
    ring = bank()
    ring.enqueue(*pairs(SIZE))
    image_keys, text_keys, _ = ring.negatives(torch.tensor([0]))
    before = image_keys.clone(), text_keys.clone()
    ring.enqueue(*pairs(SIZE, first=SIZE))
    assert torch.equal(image_keys, before[0])
    assert torch.equal(text_keys, before[1])


def test_the_warmup_is_counted_in_its_clock() -> None:
    by_step, by_forward = bank(warmup=5, clock="step"), bank(warmup=5, clock="forward")
    for ring in (by_step, by_forward):
        ring.training_steps.fill_(8)
    assert [by_step.is_on(step) for step in (4, 5)] == [False, True]
    assert by_forward.is_on(0)
    by_forward.training_steps.fill_(4)
    assert not by_forward.is_on(100)


def test_a_resumed_bank_is_the_same() -> None:
    ring, other = bank(), bank()
    ring.enqueue(*pairs(13))
    ring.training_steps += 3
    other.load_state_dict(ring.state_dict())
    ring.enqueue(*pairs(4, first=13))
    other.enqueue(*pairs(4, first=13))
    for (name, mine), (_, theirs) in zip(ring.named_buffers(), other.named_buffers(), strict=True):
        assert torch.equal(mine, theirs), name


def test_caption_ids_see_the_text_and_not_its_padding() -> None:
    eos = 63
    texts = [[62, 1, 2, eos], [62, 2, 1, eos], [62, 1, eos, eos], [62, 1, 0, eos], [62, 0, 1, eos]]
    ids = caption_ids(torch.tensor(texts), eos)
    assert len(set(ids.tolist())) == len(texts)
    assert torch.equal(ids, caption_ids(F.pad(torch.tensor(texts), (0, 5), value=eos), eos))
    assert torch.equal(ids, caption_ids(F.pad(torch.tensor(texts), (0, 5), value=7), eos))
