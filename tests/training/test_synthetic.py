from __future__ import annotations

import itertools

import pytest
import torch

from fgclip_doctor.core.config import FgclipConfig
from fgclip_doctor.training.data import NEGATIVES, collate, micro_batches
from fgclip_doctor.training.synthetic import CHOICES, COLOURS, SIDE, WORDS, Scenes, WordTokenizer

SCENES = Scenes(200, regions=1.5)


def test_a_scene_depends_on_its_number_and_the_seed_alone() -> None:
    again, other = Scenes(10, regions=1.5), Scenes(10, regions=1.5, seed=1)
    assert torch.equal(SCENES[3].image, again[3].image)
    assert (SCENES[3].long_caption, SCENES[3].regions) == (again[3].long_caption, again[3].regions)
    assert SCENES[3].long_caption != other[3].long_caption


def test_boxes_hold_what_their_captions_say() -> None:
    """The colour of a region's caption is the colour of the middle of its box."""
    for sample in (SCENES[index] for index in range(100)):
        for region in sample.regions:
            left, top, right, bottom = region.box
            assert 0 <= left < right <= 1
            assert 0 <= top < bottom <= 1
            x, y = int((left + right) / 2 * SIDE), int((top + bottom) / 2 * SIDE)
            pixel = sample.image[:, y, x].float()  # (3,)
            nearest = min(COLOURS, key=lambda colour: float((pixel - torch.tensor(COLOURS[colour])).norm()))
            assert nearest in region.caption.split()


def test_hard_negatives_differ_in_one_word() -> None:
    for sample in (SCENES[index] for index in range(50)):
        for region in sample.regions:
            assert len({region.caption, *region.negatives}) == 1 + NEGATIVES
            for negative in region.negatives:
                assert sum(a != b for a, b in zip(region.caption.split(), negative.split(), strict=True)) == 1


def test_regions_per_scene_are_as_many_as_asked_for() -> None:
    counts = [len(SCENES[index].regions) for index in range(200)]
    assert set(counts) == {1, 2}
    assert sum(counts) / 200 == pytest.approx(1.5, abs=0.12)


def test_texts_fit_the_tiny_model() -> None:
    tokenizer, text = WordTokenizer(), FgclipConfig.preset("tiny").text_config
    assert len(set(WORDS)) == len(WORDS) <= text.bos_token_id
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (text.bos_token_id, text.eos_token_id)
    long = [len(tokenizer.encode(SCENES[index].long_caption)) for index in range(100)]
    short = [len(tokenizer.encode(SCENES[index].short_caption)) for index in range(100)]
    assert text.keep_len < min(long) <= max(long) <= text.longtext_len  # every long text reaches the stretched table
    assert max(short) <= text.max_position_embeddings


def test_a_batch_holds_every_text_once() -> None:
    samples = [SCENES[index] for index in range(12)]
    batch, tokenizer = collate(samples, WordTokenizer()), WordTokenizer()
    texts = [tuple(row.tolist()) for row in batch.text_ids]
    assert len(set(texts)) == len(texts)

    def text(index: torch.Tensor) -> list[int]:
        row = batch.text_ids[index].tolist()
        return row[: row.index(tokenizer.eos_token_id) + 1]

    regions = [region for sample in samples for region in sample.regions]
    assert [text(index) for index in batch.short_index] == [tokenizer.encode(one.short_caption) for one in samples]
    assert [text(index) for index in batch.region_index] == [tokenizer.encode(region.caption) for region in regions]
    assert batch.box_image.tolist() == [image for image, one in enumerate(samples) for _ in one.regions]
    for box, row in zip(batch.hard_box, batch.hard_index, strict=True):
        region = regions[int(box)]
        assert [text(index) for index in row] == [tokenizer.encode(t) for t in (region.caption, *region.negatives)]
    assert batch.boxes_per_image == 2


def test_batches_are_shuffled_by_epoch_and_can_be_taken_up_anywhere() -> None:
    def first_tokens(start: int, count: int) -> list[list[int]]:
        batches = micro_batches(Scenes(10), WordTokenizer(), size=3, seed=5, start=start)
        return [batch.long_ids[:, 5:20].flatten().tolist() for batch in itertools.islice(batches, count)]

    whole = first_tokens(0, 9)  # three epochs of three; one sample of each is left out
    assert first_tokens(4, 5) == whole[4:]
    assert whole[:3] != whole[3:6]


def test_captions_are_many_enough_to_tell_apart() -> None:
    assert len(list(itertools.product(*CHOICES.values()))) == 80
