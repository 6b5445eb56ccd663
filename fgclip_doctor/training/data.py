"""Samples, and how a micro-batch is made of them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fgclip_doctor.core.model import Batch
from fgclip_doctor.core.text import Texts

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's training images: Radford et al. 2021, released code
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
NEGATIVES = 10  # hard negatives to a region: Xie et al. 2025 (FG-CLIP), section 3.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A box (xyxy, normalised) with its caption and either no or ten hard negatives.

    Where there is a long caption too, training draws one of the two for the region loss; hard negatives are always
    those of the short one.
    """

    box: tuple[float, float, float, float]
    caption: str
    long_caption: str = ""
    negatives: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One image, (3, side, side) in 0..255, with its captions and regions."""

    image: Tensor
    long_caption: str
    short_caption: str
    regions: tuple[Region, ...]


class Dataset(Protocol):
    """Samples by number: the same number is always the same sample."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Sample: ...


class Tokenizer(Protocol):
    """Text to token ids, begin and end tokens included, cut to the context; the end token also pads."""

    bos_token_id: int
    eos_token_id: int

    def encode(self, text: str, *, long: bool = False) -> list[int]: ...


def collate(samples: Sequence[Sample], tokenizer: Tokenizer, *, draw: int | None = None) -> Batch:
    """Joins samples into one micro-batch, in which every distinct short text stands once.

    `draw` seeds which regions show their long caption; without it, none does.
    """
    texts: dict[str, int] = {}  # in order of first use

    def number(text: str) -> int:
        return texts.setdefault(text, len(texts))

    short_index = [number(sample.short_caption) for sample in samples]
    regions = [(image, region) for image, sample in enumerate(samples) for region in sample.regions]
    region_index = [number(drawn_caption(region, draw)) for _, region in regions]
    hard = [(box, region) for box, (_, region) in enumerate(regions) if region.negatives]
    hard_index = [[number(text) for text in (region.caption, *region.negatives)] for _, region in hard]
    return Batch(
        pixel_values=pixels([sample.image for sample in samples]),
        long_texts=packed([tokenizer.encode(sample.long_caption, long=True) for sample in samples], tokenizer),
        texts=packed([tokenizer.encode(text) for text in texts], tokenizer),
        short_index=torch.tensor(short_index),
        boxes=torch.tensor([region.box for _, region in regions]).reshape(-1, 4),
        box_image=torch.tensor([image for image, _ in regions], dtype=torch.long),
        boxes_per_image=max(len(sample.regions) for sample in samples),
        region_index=torch.tensor(region_index, dtype=torch.long),
        hard_box=torch.tensor([box for box, _ in hard], dtype=torch.long),
        hard_index=torch.tensor(hard_index, dtype=torch.long).reshape(-1, 1 + NEGATIVES),
    )


def drawn_caption(region: Region, draw: int | None) -> str:
    """Either caption of a region with even odds, as FG-CLIP's released code draws them.

    The draw depends on nothing else, so the region's place in batches, on ranks and in workers does not matter.
    """
    if draw is None or not region.long_caption:
        return region.caption
    return random.Random(f"{draw} {region.box} {region.long_caption}").choice((region.caption, region.long_caption))


def pixels(images: Sequence[Tensor]) -> Tensor:
    """Images in 0..255 as CLIP's towers want them, (B, 3, side, side)."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD))  # (3, 1, 1)
    return (torch.stack(list(images)).float() / 255 - mean) / std  # (B, 3, side, side)


def packed(texts: Sequence[Sequence[int]], tokenizer: Tokenizer) -> Texts:
    """Token ids, padded to the longest text and sorted into their distinct beginnings."""
    ids = torch.full((len(texts), max(map(len, texts))), tokenizer.eos_token_id)  # (B, T)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = torch.tensor(text)
    return Texts.of(ids, tokenizer.eos_token_id)


class Job(NamedTuple):
    """What goes into a micro-batch: the numbers of its samples, and the seed for what its epoch draws."""

    samples: list[int]
    draw: int


class Batches:
    """The micro-batch of any `Job`; what a worker process needs to make it."""

    def __init__(self, dataset: Dataset, tokenizer: Tokenizer) -> None:
        self.dataset, self.tokenizer = dataset, tokenizer

    def __getitem__(self, job: Job) -> Batch:
        return collate([self.dataset[index] for index in job.samples], self.tokenizer, draw=job.draw)


def micro_batches(
    dataset: Dataset,
    tokenizer: Tokenizer,
    *,
    size: int,
    seed: int,
    start: int = 0,
    rank: int = 0,
    ranks: int = 1,
    workers: int = 0,
) -> Iterator[Batch]:
    """Shuffled micro-batches without end, beginning with number `start`, made ahead by so many worker processes.

    They depend on nothing but the seed, so a resumed run goes on where it stopped. Those of all ranks, one after
    another, are the micro-batch of a single process with as many times the size.
    """
    if len(dataset) < size * ranks:
        raise ValueError(f"{len(dataset)} samples do not make a micro-batch of {size * ranks}")
    jobs = schedule(len(dataset), size=size, seed=seed, start=start, rank=rank, ranks=ranks)
    batches = Batches(dataset, tokenizer)
    if not workers:
        return (batches[job] for job in jobs)
    return iter(
        DataLoader(
            cast("torch.utils.data.Dataset[Batch]", batches),
            sampler=cast("torch.utils.data.Sampler[Job]", jobs),
            batch_size=None,  # a job is a whole micro-batch already
            num_workers=workers,
            generator=torch.Generator(),  # the global one would make a run depend on its number of workers
        )
    )


def schedule(samples: int, *, size: int, seed: int, start: int, rank: int, ranks: int) -> Iterator[Job]:
    """The jobs of one rank, without end. Every epoch has its own order; what doesn't fill a micro-batch is left out."""
    per_epoch = samples // (size * ranks)
    epoch, first = divmod(start, per_epoch)
    while True:
        order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed + epoch)).tolist()
        for batch in range(first, per_epoch):
            first_sample = (batch * ranks + rank) * size
            yield Job(order[first_sample : first_sample + size], draw=seed + epoch)
        epoch, first = epoch + 1, 0
