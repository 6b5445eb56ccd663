"""Synthetic scenes: coloured shapes on a noisy canvas, with captions, boxes and attribute-swapped hard negatives.

Small enough to learn from scratch on a CPU within a minute, and hard enough to tell a run that learns from one that
doesn't: 80 distinct region captions, and hard negatives that differ from the truth in a single attribute.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from fgclip_doctor.training.data import NEGATIVES, Region, Sample

Plane = NDArray[np.float64]

SIDE = 48  # pixels
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 70, 220),
    "yellow": (235, 220, 50),
    "purple": (150, 50, 190),
    "orange": (240, 140, 30),
    "cyan": (60, 210, 220),
    "white": (250, 250, 250),
}
SHAPES: dict[str, Callable[[Plane, Plane], Plane]] = {  # 1 on the outline of a shape of radius 1, less inside
    "circle": np.hypot,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) * 1.15,
    "triangle": lambda x, y: np.maximum(abs(x) * 1.6 - y * 0.8, y * 1.4),
    "cross": lambda x, y: np.minimum(np.maximum(abs(x), abs(y) * 3), np.maximum(abs(x) * 3, abs(y))),
    "bar": lambda x, y: np.maximum(abs(x), abs(y) * 2.5),
}
SIZES = {"small": 7.5, "large": 11.5}  # radius in pixels
PLACES = {"top left": (12, 12), "top right": (36, 12), "bottom left": (12, 36), "bottom right": (36, 36)}
NUMBERS = {2: "two", 3: "three", 4: "four"}
CHOICES = {"size": [*SIZES], "colour": [*COLOURS], "shape": [*SHAPES]}
WORDS = (
    *COLOURS,
    *SHAPES,
    *SIZES,
    *NUMBERS.values(),
    *("top", "bottom", "left", "right", "a", "at", "the", "and", "with", "picture", "of", "shapes"),
)


class WordTokenizer:
    """One token a word of the scenes' vocabulary; then the begin and the end token, which has the highest id."""

    bos_token_id = 62
    eos_token_id = 63

    def __init__(self) -> None:
        self.ids = {word: number for number, word in enumerate(WORDS)}

    def encode(self, text: str, *, long: bool = False) -> list[int]:
        return [self.bos_token_id, *(self.ids[word] for word in text.split()), self.eos_token_id]


@dataclass(frozen=True, slots=True)
class Thing:
    """One shape, described by its three attributes."""

    size: str
    colour: str
    shape: str

    def __str__(self) -> str:
        return f"a {self.size} {self.colour} {self.shape}"

    def swapped(self) -> list[Thing]:
        """Every thing that differs in exactly one attribute; there are 12."""
        return [
            replace(self, **{attribute: value})
            for attribute, values in CHOICES.items()
            for value in values
            if value != getattr(self, attribute)
        ]


class Scenes:
    """`count` scenes of two to four things, of which `regions` on average have a box.

    A scene is made when it is asked for, from its number and the seed alone.
    """

    def __init__(self, count: int, *, seed: int = 0, regions: float = 2.0) -> None:
        self.count, self.seed, self.regions = count, seed, regions

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        rng = random.Random(self.seed * 1_000_003 + index)
        places = rng.sample(list(PLACES), rng.choice(list(NUMBERS)))
        things = [Thing(*(rng.choice(values) for values in CHOICES.values())) for _ in places]
        centres = [tuple(at + rng.uniform(-1.5, 1.5) for at in PLACES[place]) for place in places]
        boxed = min(int(self.regions) + (rng.random() < self.regions % 1), len(things))
        placed = " and ".join(f"{thing} at the {place}" for thing, place in zip(things, places, strict=True))
        return Sample(
            image=torch.from_numpy(paint(things, centres, np.random.default_rng(rng.getrandbits(32)))),
            long_caption=f"a picture of {NUMBERS[len(things)]} shapes with {placed}",
            short_caption=" and ".join(map(str, things[:2])),
            regions=tuple(
                Region(
                    box=box(thing, centre),
                    caption=str(thing),
                    negatives=tuple(map(str, rng.sample(thing.swapped(), NEGATIVES))),
                )
                for thing, centre in zip(things[:boxed], centres, strict=False)
            ),
        )


def paint(things: Sequence[Thing], centres: Sequence[Sequence[float]], rng: np.random.Generator) -> NDArray[np.uint8]:
    """The image, (3, SIDE, SIDE)."""
    grid = np.linspace(0.5, SIDE - 0.5, SIDE)  # the middles of the pixels
    canvas = rng.normal(110, 12, (3, SIDE, SIDE))
    for thing, (x, y) in zip(things, centres, strict=True):
        radius = SIZES[thing.size]
        distance = SHAPES[thing.shape]((grid[None, :] - x) / radius, (grid[:, None] - y) / radius)  # (SIDE, SIDE)
        inside = distance <= 1
        canvas[:, inside] = np.array(COLOURS[thing.colour])[:, None] + rng.normal(0, 8, (3, int(inside.sum())))
    return canvas.clip(0, 255).astype(np.uint8)


def box(thing: Thing, centre: Sequence[float]) -> tuple[float, float, float, float]:
    """The box of a thing, xyxy, normalised."""
    x, y, radius = *centre, SIZES[thing.size]
    left, top, right, bottom = (
        min(max(at / SIDE, 0.0), 1.0) for at in (x - radius, y - radius, x + radius, y + radius)
    )
    return left, top, right, bottom
