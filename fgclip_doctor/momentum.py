"""Momentum encoders: copies of the weights that follow the trained ones slowly, told by their names and shapes.

MoCo's `encoder_k` follows `encoder_q`, ALBEF's `visual_encoder_m` follows `visual_encoder`, MoCo v3's
`momentum_encoder` the `base_encoder`. Teachers and targets are left out: a teacher may be meant to stand still.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fgclip_doctor.parts import FLOATS
from fgclip_doctor.run import Checkpoint, Tensor

FOLLOWS: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...] = (  # a word of a name, and what the one it follows may be
    (re.compile(r"(\w+?)_(?:m|momentum|ema)"), (r"\1",)),
    (re.compile(r"(?:momentum|ema)_(\w+)"), (r"\1", r"base_\1", r"online_\1")),
    (re.compile(r"(\w*encoder\w*)_k"), (r"\1_q",)),
    (re.compile(r"k_(\w*encoder\w*)"), (r"q_\1",)),
    (re.compile(r"key_(\w*encoder\w*)"), (r"query_\1",)),
)
LEAST = 3  # matrices: fewer that are named and shaped so may be anything
LOOKED_AT = 16  # matrices, evenly spread; each costs a pass over its bytes


@dataclass(frozen=True, slots=True)
class Follower:
    """The names of the matrices of the momentum encoder, each with that of the trained one."""

    names: Mapping[str, str]

    @property
    def modules(self) -> str:
        """The modules that follow, in words."""
        return ", ".join(sorted({_module(name, own) for name, own in self.names.items()}))

    def copies(self, one: Checkpoint) -> list[Tensor | None]:
        return [one.tensors.get(name) for name in self.names]

    def trained(self, one: Checkpoint) -> list[Tensor | None]:
        return [one.tensors.get(name) for name in self.names.values()]


def _module(name: str, own: str) -> str:
    """The module around a tensor of whose path the last word tells it from the trained one's."""
    words, others = name.split("."), own.split(".")
    place = next(place for place, (word, other) in enumerate(zip(words, others, strict=True)) if word != other)
    return ".".join(words[: place + 1])


def alike(some: list[Tensor | None], others: list[Tensor | None]) -> float | None:
    """The share of two lists of tensors that are bit-identical; None where one of them is not there."""
    pairs = [(one, other) for one, other in zip(some, others, strict=True) if one is not None and other is not None]
    return sum(one.digest == other.digest for one, other in pairs) / len(pairs) if len(pairs) == len(some) else None


def follower(tensors: Mapping[str, Tensor]) -> Follower | None:
    """The momentum encoder among `tensors`, or None."""
    found = {name: own for name in tensors if (own := _followed(name, tensors)) is not None}
    if len(found) < LEAST:
        return None
    spread = list(found.items())[:: -(-len(found) // LOOKED_AT)]
    return Follower(dict(spread))


def _followed(name: str, tensors: Mapping[str, Tensor]) -> str | None:
    """The matrix that this one follows, by one word of its name."""
    tensor, words = tensors[name], name.split(".")
    if len(tensor.shape) < 2 or tensor.dtype not in FLOATS or len(name) > 200:
        return None
    for place, word in enumerate(words[:-1]):
        for pattern, forms in FOLLOWS:
            match = pattern.fullmatch(word)
            for form in forms if match else ():
                own = ".".join([*words[:place], match.expand(form) if match else "", *words[place + 1 :]])
                if own in tensors and tensors[own].shape == tensor.shape and tensors[own].dtype == tensor.dtype:
                    return own
    return None
