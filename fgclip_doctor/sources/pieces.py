"""One tensor that lies in several places: the shards that ranks wrote, joined without copying them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fgclip_doctor.run import Source, Tensor
from fgclip_doctor.sources import measure
from fgclip_doctor.sources.files import Unreadable
from fgclip_doctor.sources.measure import SIZES, Stored

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Piece:
    """A box of the whole tensor, whose first element is at `offsets` in it."""

    stored: Stored
    offsets: tuple[int, ...]


def joined(
    name: str,
    shape: tuple[int, ...],
    dtype: str,
    source: Source,
    pieces: Callable[[], Sequence[Piece]],
    *,
    flat: bool = False,
) -> Tensor:
    """The tensor that `pieces` make up, which are looked up when something is first asked of it.

    With `flat`, they are stretches of its elements in a row. A check that asks for what isn't there gets `Unreadable`.
    """
    whole = _Joined(shape, dtype, source, pieces, flat)
    return Tensor(
        name,
        shape,
        dtype,
        source,
        measure=lambda: measure.statistics_of(whole.parts),
        read=whole.values,
        digest=whole.digest,
        nbytes=math.prod(shape) * SIZES[dtype],
    )


def in_a_row(name: str, shape: tuple[int, ...], source: Source, parts: Sequence[Stored]) -> Tensor:
    """The tensor whose elements are those of `parts`, one after the other. There is at least one part."""
    offsets = [sum(part.shape[0] for part in parts[:place]) for place in range(len(parts))]
    pieces = [Piece(part, (offset,)) for part, offset in zip(parts, offsets, strict=True)]
    return joined(name, shape, parts[0].dtype, source, lambda: pieces, flat=True)


class _Joined:
    def __init__(
        self, shape: tuple[int, ...], dtype: str, source: Source, find: Callable[[], Sequence[Piece]], flat: bool
    ) -> None:
        self.shape, self.dtype, self.source, self.find = shape, dtype, source, find
        self.extent = (math.prod(shape),) if flat else shape

    @cached_property
    def pieces(self) -> list[Piece]:
        """In the order of their place. Raises `Unreadable` if they aren't the whole tensor."""
        pieces = sorted(self.find(), key=lambda piece: piece.offsets)
        for piece in pieces:
            box = zip(piece.offsets, piece.stored.shape, self.extent, strict=False)
            fits = len(piece.offsets) == len(piece.stored.shape) == len(self.extent)
            if not fits or any(not 0 <= start <= end - length for start, length, end in box):
                raise Unreadable(self.source.path, f"has a piece of {self.source.key} that lies outside of it")
            if piece.stored.dtype != self.dtype or not piece.stored.contiguous:
                raise Unreadable(self.source.path, f"has a piece of {self.source.key} that is stored in another way")
        if sum(math.prod(piece.stored.shape) for piece in pieces) != math.prod(self.shape):
            raise Unreadable(self.source.path, f"doesn't hold all pieces of {self.source.key}")
        return pieces

    @property
    def parts(self) -> list[Stored]:
        return [piece.stored for piece in self.pieces]

    def values(self) -> NDArray[Any]:
        import numpy as np

        read = [measure.values(part) for part in self.parts]
        whole = np.zeros(self.extent, read[0].dtype if read else np.float32)
        for piece, values in zip(self.pieces, read, strict=True):
            box = zip(piece.offsets, values.shape, strict=True)
            whole[tuple(slice(start, start + length) for start, length in box)] = values
        return whole.reshape(self.shape)

    def digest(self) -> str:
        """That of the same bytes in one file if the pieces follow each other along the first axis."""
        rows = all(
            not any(piece.offsets[1:]) and piece.stored.shape[1:] == self.extent[1:]
            for piece in self.pieces
            if piece.offsets
        )
        layout = "" if rows else f"{[piece.offsets for piece in self.pieces]}"
        return measure.digest_of(self.parts, self.dtype, self.shape, layout)
