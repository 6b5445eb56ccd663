"""Annotations in FineHARD's format, sound as they are, to be spoilt by tests."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fgclip_doctor.run import Run
from fgclip_doctor.sources import load

Record = dict[str, Any]
Region = dict[str, Any]

WORDS = (
    "red",
    "green",
    "blue",
    "wooden",
    "old",
    "small",
    "large",
    "tall",
    "shiny",
    "striped",
    "dusty",
    "bright",
    "dark",
    "metal",
    "plastic",
    "round",
    "wet",
    "dry",
)
THINGS = (
    "car",
    "dog",
    "cat",
    "tree",
    "table",
    "chair",
    "lamp",
    "window",
    "door",
    "man",
    "woman",
    "child",
    "boat",
    "bridge",
    "road",
    "wall",
    "book",
    "cup",
    "bottle",
)
PLACES = ("beside", "behind", "under", "near", "on top of", "in front of", "next to", "far from")


def phrase(draw: random.Random) -> str:
    what, where = (f"a {draw.choice(WORDS)} {draw.choice(THINGS)}" for _ in range(2))
    return f"{what} {draw.choice(PLACES)} {where}"


def records(count: int = 300, seed: int = 0) -> list[Record]:
    """Images with one to five regions, most of them with ten negatives, of which each changes two words."""
    draw = random.Random(seed)
    made = []
    for number in range(count):
        regions = [_region(draw) for _ in range(draw.choice((1, 1, 2, 2, 3, 4, 5)))]
        said = ". There is ".join(phrase(draw) for _ in range(8))
        made.append(
            {
                "f_path": f"grit-20m/data-12m/coyo_image_{number % 10}/{number}.jpg",
                "caption": f"This image shows {said}.",
                "short_caption": f"{phrase(draw)} and {phrase(draw)}",
                "bbox_info": regions,
            }
        )
    return made


def _region(draw: random.Random) -> Region:
    left, top = draw.uniform(0, 0.8), draw.uniform(0, 0.8)
    right, bottom = left + draw.uniform(0.05, 1 - left), top + draw.uniform(0.05, 1 - top)
    said = phrase(draw)
    region: Region = {
        "bbox": [round(at, 4) for at in (left, top, right, bottom)] + [0.87],
        "short_expr": said,
        "long_expr": f"{said}, seen from {phrase(draw)}",
        "flag_short_neg": 0,
    }
    if draw.random() < 0.7:
        words = said.split()
        others = [word for word in WORDS if word != words[1]]
        negatives = [" ".join([words[0], other, draw.choice(THINGS), *words[3:]]) for other in draw.sample(others, 10)]
        region |= {"flag_short_neg": 1, "short_expr_negs": {str(place): text for place, text in enumerate(negatives)}}
    return region


def spoilt(change: Callable[[Region], object], share: float = 1.0, count: int = 300, seed: int = 0) -> list[Record]:
    """`records` with a share of their regions changed in place."""
    draw, made = random.Random(seed + 1), records(count, seed)
    for record in made:
        for region in record["bbox_info"]:
            if draw.random() < share:
                change(region)
    return made


def audited(tmp_path: Path, made: list[Record], **facts: object) -> Run:
    """The run that these records alone make, with the facts that are stated."""
    path = tmp_path / "data.json"
    path.write_text(json.dumps(made), encoding="utf-8")
    return load([path], facts={name: str(value) for name, value in facts.items()})
