from __future__ import annotations

from collections import Counter
from math import log

import numpy as np
import pytest

from fgclip_doctor.annotations import Boxes, Repeats


def repeats(texts: list[int], siblings: dict[int, int] | None = None) -> Repeats:
    times, distinct = np.unique(list(Counter(texts).values()), return_counts=True)
    return Repeats(times.astype(np.int64), distinct.astype(np.int64), siblings or {0: 1})


def test_texts_that_occur_once_never_meet_a_copy() -> None:
    clash = repeats(list(range(40))).among(1000)
    assert (clash.share, clash.floor) == (0.0, pytest.approx(0.0, abs=1e-9))


def test_one_text_alone_is_its_own_copy_everywhere() -> None:
    clash = repeats([7] * 500).among(99)
    assert clash.share == 1.0
    assert clash.floor == pytest.approx(log(100), rel=1e-6)


def test_nothing_is_nothing() -> None:
    empty = Repeats(np.array([], dtype=np.int64), np.array([], dtype=np.int64))
    assert empty.among(10).share == 0.0


@pytest.mark.parametrize("others", [3, 31, 200])
def test_share_and_floor_are_those_of_drawn_batches(others: int) -> None:
    rng = np.random.default_rng(0)
    texts = rng.zipf(1.7, 3000)
    copies = []
    for _ in range(3000):
        batch = texts[rng.choice(len(texts), others + 1, replace=False)]
        copies.append(int((batch[1:] == batch[0]).sum()))
    clash = repeats(texts.tolist()).among(others)
    assert clash.share == pytest.approx(np.mean(np.array(copies) > 0), abs=0.03)
    assert clash.floor == pytest.approx(np.log1p(copies).mean(), abs=0.06)


def test_the_floor_is_what_the_best_features_reach() -> None:
    texts = np.array([0, 0, 0, 1, 1, 2])  # a batch of six: copies have equal features, all else is told apart
    logits = np.where(texts[:, None] == texts, 1e3, 0.0)
    loss = np.log(np.exp(logits - 1e3).sum(axis=1)).mean()
    assert repeats(texts.tolist()).among(5).floor == pytest.approx(loss, abs=0.1)  # drawn with replacement


def test_copies_in_the_same_image_always_meet() -> None:
    clash = repeats(list(range(1000)), {0: 90, 1: 10}).among(20)
    assert clash.share == pytest.approx(0.1)
    assert clash.floor == pytest.approx(0.1 * log(2), rel=1e-3)


def test_a_text_that_is_shown_half_the_time_meets_half_as_often() -> None:
    texts = repeats([0] * 10 + list(range(1, 10_000)))
    assert texts.among(40, shown=0.5) == texts.among(20)
    paired = repeats(list(range(1000)), {1: 1})
    assert paired.among(20, shown=0.5).share == pytest.approx(0.5)


def boxes(sample: np.ndarray) -> Boxes:  # type: ignore[type-arg]
    return Boxes(len(sample), 0, 0, 0, 0, sample)


def corners(count: int = 400) -> np.ndarray:  # type: ignore[type-arg]
    rng = np.random.default_rng(0)
    first = rng.uniform(0, 0.8, (count, 2))
    return np.hstack([first, first + rng.uniform(0.05, 1, (count, 2)) * (1 - first)])


def sizes(box: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    return np.hstack([box[:, :2], box[:, 2:] - box[:, :2]])


def centres(box: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    return np.hstack([(box[:, :2] + box[:, 2:]) / 2, box[:, 2:] - box[:, :2]])


LAYOUTS = {
    "": corners(),
    "x, y, width, height": sizes(corners()),
    "centre, width, height": centres(corners()),
    "x1, x2, y1, y2": corners()[:, [0, 2, 1, 3]],
    "x1, x2, y1, y2, in pixels": np.floor(corners() * [640, 480, 640, 480])[:, [0, 2, 1, 3]],
    "in pixels": np.floor(corners() * [640, 480, 640, 480]),
    "in percent": corners() * 100,
    "in thousandths, or pixels of images of that size": np.floor(corners() * 1000),
    "with width, height, in pixels": np.floor(sizes(corners() * [640, 480, 640, 480])),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_is_told(layout: str) -> None:
    assert boxes(LAYOUTS[layout]).layout == layout


@pytest.mark.parametrize(
    "healthy",
    [
        corners(5),
        np.tile([0.0, 0.0, 1.0, 1.0], (50, 1)),
        corners() * 0.05,  # all in a corner of the image
        corners() + 0.02,  # a detector that reaches over the edge
        np.tile([0.5, 0.5, 1.0, 1.0], (50, 1)),
    ],
)
def test_odd_but_sound_boxes_are_in_no_other_layout(healthy: np.ndarray) -> None:  # type: ignore[type-arg]
    assert boxes(healthy).layout == ""


def test_swapped_corners_in_some_boxes_are_no_layout() -> None:
    swapped = corners()
    swapped[::4] = swapped[::4][:, [2, 1, 0, 3]]
    assert boxes(swapped).turned == pytest.approx(0.25)
    assert boxes(swapped).layout == ""
