"""Rows that a memory bank may hold: noise, and what real encoders leave, each as (rows, width) float32 unit rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fgclip_doctor.run import Checkpoint, Run
from tests import runs

Rows = NDArray[np.float32]
Pairs = tuple[Rows, Rows]


def unit(rows: NDArray[Any]) -> Rows:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / lengths, dtype=np.float32)


def noise(rng: np.random.Generator, rows: int, width: int) -> Pairs:
    return unit(rng.standard_normal((rows, width))), unit(rng.standard_normal((rows, width)))


def uniform_noise(rng: np.random.Generator, rows: int, width: int) -> Pairs:
    return unit(rng.random((rows, width))), unit(rng.random((rows, width)))


def cone(rng: np.random.Generator, rows: int, width: int) -> Pairs:
    """As CLIP's: each modality around its own mean direction, pairs unaligned but for that."""
    images, texts = noise(rng, rows, width)
    means = unit(rng.standard_normal((2, width)))
    return unit(images + 0.6 * means[0]), unit(texts + 0.6 * means[1])


def aligned(rng: np.random.Generator, rows: int, width: int, cosine: float = 0.1) -> Pairs:
    """Spread evenly over the sphere, as a perfectly uniform encoder's; pairs at a small cosine."""
    images, texts = noise(rng, rows, width)
    return images, unit(cosine * images + np.sqrt(1 - cosine**2) * texts)


def decaying(rng: np.random.Generator, rows: int, width: int) -> Pairs:
    """Centred and unaligned; variances that fall as 1 / i."""
    spectrum = np.arange(1, width + 1) ** -0.5
    images, texts = (rng.standard_normal((rows, width)) * spectrum for _ in range(2))
    return unit(images), unit(texts)


def untrained(rng: np.random.Generator, rows: int, width: int) -> Pairs:
    """Two random layers with a ReLU between them, over inputs of 64 dimensions."""
    first, second = rng.standard_normal((64, 256)), rng.standard_normal((256, width))
    images, texts = (np.maximum(rng.standard_normal((rows, 64)) @ first, 0) @ second for _ in range(2))
    return unit(images), unit(texts)


ENCODED: tuple[Callable[[np.random.Generator, int, int], Pairs], ...] = (cone, aligned, decaying, untrained)


ROLES = {
    "bank.image_keys": "region_image_queue",
    "bank.text_keys": "region_text_queue",
    "bank.pointer": "queue_ptr",
    "bank.full": "queue_is_full",
    "bank.enabled": "use_memory_bank",
    "clock.forwards": "training_steps",
    "scale.region": "logit_scale_finegraind",
    "head.image": "visual_projection.weight",
}


def saved(
    pairs: Pairs,
    *,
    pointer: int | None,
    full: bool | None,
    step: int | None = 240,
    enabled: bool | None = None,
    forwards: int | None = None,
    dtype: str = "float32",
    more: Mapping[str, ArrayLike] | None = None,
) -> Checkpoint:
    """A checkpoint with the bank `pairs`, stored (D, K); None leaves a buffer out."""
    scalars = {"queue_ptr": pointer, "queue_is_full": full, "use_memory_bank": enabled, "training_steps": forwards}
    tensors: dict[str, Any] = {
        name: runs.tensor(name, np.array([value]), "int64" if isinstance(value, int) and value is not True else "bool")
        for name, value in scalars.items()
        if value is not None
    }
    tensors["region_image_queue"] = runs.tensor("region_image_queue", pairs[0].T, dtype)
    tensors["region_text_queue"] = runs.tensor("region_text_queue", pairs[1].T, dtype)
    return runs.checkpoint({**tensors, **(more or {})}, step)


def bank_run(*checkpoints: Checkpoint, **facts: Any) -> Run:
    """A run of banks; without a width among the facts, that of the last one is stated."""
    keys = checkpoints[-1].tensors.get("region_image_queue")
    stated = {"dimension": keys.shape[0]} if keys is not None and "dimension" not in facts else {}
    return runs.run(*checkpoints, facts={**stated, **facts}, roles=ROLES)
