"""The values of a stored tensor: its statistics in one streaming pass of bounded memory, and its values on request.

A file is opened for each pass and never kept open. Chunks of half a mebibyte stay in the processor's cache while every
statistic is taken from them; their moments are merged with the formulas of Chan, Golub and LeVeque (1979), those of
third and fourth order by Pébay (Sandia report SAND2008-6212, 2008).
"""

from __future__ import annotations

import hashlib
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from fgclip_doctor.run import MAX_VALUES_BYTES, Missing, Source, Statistics, Tensor
from fgclip_doctor.sources.cache import as_digest, as_record_or_none, as_statistics, kept, recalled
from fgclip_doctor.sources.files import Unreadable, open_regular

R = TypeVar("R")
CHUNK_BYTES = 512 << 10
CHUNK_ELEMENTS = 128 << 10
ROW = 8 << 10  # elements of one BLAS dot product: few enough that OpenBLAS stays on this thread
MAX_AXES = 31  # numpy 1 allows 32, and the parts of complex numbers take one
MAX_ELEMENTS = 1 << 58  # so that bytes stay below 2^63
SIZES: dict[str, int] = {  # bytes of an element; the names are torch's, which are numpy's where numpy has the type
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint64": 8,
    "uint32": 4,
    "uint16": 2,
    "uint8": 1,
    "bool": 1,
    "complex64": 8,
    "complex128": 16,
}


def is_shape(lengths: Iterable[object]) -> bool:
    """Whether numpy can make an array of that shape: whole numbers, few enough, whose product stays in range."""
    known = list(islice(lengths, MAX_AXES + 1))
    if len(known) > MAX_AXES or not all(type(length) is int and length >= 0 for length in known):
        return False
    return math.prod(length for length in known if isinstance(length, int) and length) < MAX_ELEMENTS


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a tensor lies in a file: its first element at byte `offset`, the others `strides` elements apart.

    Without strides it is contiguous. The file had `file_size` bytes when that was learnt: one of another size is
    another file.
    """

    path: Path
    file_size: int
    offset: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    byteorder: Literal["<", ">"] = "<"

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * SIZES[self.dtype]

    @property
    def contiguous(self) -> bool:
        """Whether the elements lie one after the other, in the order of the axes."""
        steps = [math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape))]
        strides = zip(self.shape, self.strides or steps, steps, strict=True)
        return 0 in self.shape or all(length == 1 or stride == step for length, stride, step in strides)

    def cut(self, start: int, count: int) -> Stored:
        """`count` elements from `start`, flat, of a contiguous tensor."""
        return replace(self, offset=self.offset + start * SIZES[self.dtype], shape=(count,), strides=None)

    def tensor(self, name: str, source: Source) -> StoredTensor:
        """The `Tensor` that checks read."""
        return StoredTensor(self, name, source)


class StoredTensor(Tensor):
    """A tensor that lies in one place, and so can be cut into parts."""

    def __init__(self, stored: Stored, name: str, source: Source) -> None:
        self.stored = stored
        super().__init__(
            name,
            stored.shape,
            stored.dtype,
            source,
            measure=partial(statistics, stored),
            read=partial(values, stored),
            digest=partial(digest, stored),
            nbytes=stored.nbytes,
        )

    def remembered(self, kind: type[R], what: Sequence[object], compute: Callable[[], R | None]) -> R | None:
        return recalled([*what, self.stored], partial(as_record_or_none, kind), compute)


@kept(as_statistics)
def statistics(stored: Stored) -> Statistics:
    """Every statistic of a tensor, in one pass over its bytes. A complex one is measured by its parts."""
    repeats = math.prod(length for length, stride in _axes(stored) if not stride)
    return _measured([stored]).statistics(count=math.prod(stored.shape), repeats=repeats)


@kept(as_statistics)
def statistics_of(parts: Sequence[Stored]) -> Statistics:
    """Every statistic of a tensor that lies in several contiguous parts."""
    return _measured(parts).statistics(count=sum(math.prod(part.shape) for part in parts), repeats=1)


def _measured(parts: Iterable[Stored]) -> _Moments:
    moments = _Moments()
    with np.errstate(all="ignore"):
        for part in parts:
            for chunk in _chunks(part):
                moments.add(_widened(chunk, part.dtype))
    return moments


def values(stored: Stored) -> NDArray[Any]:
    """The values with the tensor's shape: floats as float32 (float64 stays), the rest as they are."""
    dtype = _raw_dtype(stored)
    span = _span(_axes(stored)) if 0 not in stored.shape else 0
    if span * dtype.itemsize > MAX_VALUES_BYTES:
        raise Missing(f"{stored.path}: the values are spread too widely to be read whole")
    raw = np.empty(span, dtype)
    with _opened(stored) as descriptor:
        _fill(descriptor, stored, stored.offset, raw.view(np.uint8))
    strides = [stride * dtype.itemsize for _, stride in _axes(stored)]
    shaped = np.lib.stride_tricks.as_strided(raw, [length for length, _ in _axes(stored)], strides)
    if stored.dtype.startswith("complex"):
        parts = np.ascontiguousarray(shaped, dtype.newbyteorder("="))
        return parts.view(np.dtype(stored.dtype)).reshape(stored.shape)
    return np.array(_decoded(shaped, stored.dtype), order="C")


def digest(stored: Stored) -> str:
    """A hash of dtype, shape and bytes: equal ones are bit-identical tensors, stored in the same order."""
    axes = _axes(stored)
    order = _storage_order(axes)
    layout = "" if order == sorted(order) and all(stride for _, stride in axes) else f"{order}"
    return digest_of([stored], stored.dtype, stored.shape, layout)


@kept(as_digest)
def digest_of(parts: Sequence[Stored], dtype: str, shape: tuple[int, ...], layout: str = "") -> str:
    """The hash of a tensor that lies in `parts`: with no `layout`, that of the same bytes in one place."""
    total = hashlib.sha256(f"{dtype}{shape}{layout}".encode())
    for part in parts:
        for chunk in _chunks(part):
            total.update(np.ascontiguousarray(chunk, chunk.dtype.newbyteorder("<")).data)
    return total.hexdigest()


# Streaming ------------------------------------------------------------------------------------------------------------

Axis = tuple[int, int]  # length and stride, in elements


class _Scratch(threading.local):
    """The buffers of one thread, so that no pass pays for fresh pages."""

    def __init__(self) -> None:
        self.raw = np.empty(CHUNK_BYTES, np.uint8)
        self.wide = np.empty(CHUNK_ELEMENTS, np.uint32)
        self.deviations = np.empty(CHUNK_ELEMENTS, np.float32)
        self.squares = np.empty(CHUNK_ELEMENTS, np.float32)
        self.bits = self.squares.view(np.uint32)  # never needed at the same time
        self.flags = np.empty(CHUNK_ELEMENTS, np.bool_)


_scratch = _Scratch()


@contextmanager
def _opened(stored: Stored) -> Iterator[int]:
    with open_regular(stored.path) as descriptor:
        if os.fstat(descriptor).st_size != stored.file_size:
            raise Unreadable(stored.path, "has changed since it was first read")
        yield descriptor


def _fill(descriptor: int, stored: Stored, offset: int, buffer: NDArray[np.uint8]) -> None:
    """Read `buffer` full from byte `offset`."""
    view = buffer.data
    while len(view):
        done = os.preadv(descriptor, [view], offset)
        if not done:
            raise Unreadable(stored.path, f"ends early, at byte {offset:,}")
        view, offset = view[done:], offset + done


def _raw_dtype(stored: Stored) -> np.dtype[Any]:
    """The numpy type of one stored number: bit patterns where numpy has no such type, the parts of complex numbers."""
    raw = {"bfloat16": "uint16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8", "bool": "uint8"}
    parts = {"complex64": "float32", "complex128": "float64"}
    return np.dtype({**raw, **parts}.get(stored.dtype, stored.dtype)).newbyteorder(stored.byteorder)


def _axes(stored: Stored) -> list[Axis]:
    """Length and stride of every axis of the stored numbers, a last one for the two parts of complex numbers."""
    shape, strides = stored.shape, stored.strides
    if strides is None:
        strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    if stored.dtype.startswith("complex"):
        return [*((length, 2 * stride) for length, stride in zip(shape, strides, strict=True)), (2, 1)]
    return list(zip(shape, strides, strict=True))


def _span(axes: list[Axis]) -> int:
    """Elements from the first to the last one, both counted."""
    return 1 + sum((length - 1) * stride for length, stride in axes)


def _storage_order(axes: list[Axis]) -> list[int]:
    """The axes that matter, in the order of storage; repeated ones (stride 0) last."""
    return sorted((axis for axis, (length, _) in enumerate(axes) if length > 1), key=lambda axis: -axes[axis][1])


def _chunks(stored: Stored) -> Iterator[NDArray[Any]]:
    """Every stored number once, in the order of storage, flat. A chunk is valid until the next one."""
    if 0 in stored.shape:
        return
    dtype = _raw_dtype(stored)
    axes: list[Axis] = []
    for length, stride in (_axes(stored)[axis] for axis in _storage_order(_axes(stored))):
        if axes and axes[-1][1] == length * stride:
            axes[-1] = (axes[-1][0] * length, stride)
        elif stride:
            axes.append((length, stride))
    limit = min(CHUNK_ELEMENTS, CHUNK_BYTES // dtype.itemsize)
    with _opened(stored) as descriptor:
        for start, block in _blocks(axes, 0, limit):
            span = _span(block)
            raw = _scratch.raw[: span * dtype.itemsize]
            _fill(descriptor, stored, stored.offset + start * dtype.itemsize, raw)
            chunk = raw.view(dtype)
            if block[1:] or any(stride > 1 for _, stride in block):  # not one stretch, even if it is as long as one
                strides = [stride * dtype.itemsize for _, stride in block]
                chunk = np.lib.stride_tricks.as_strided(chunk, [length for length, _ in block], strides).reshape(-1)
            yield chunk if dtype.isnative else chunk.astype(dtype.newbyteorder("="))


def _blocks(axes: list[Axis], start: int, limit: int) -> Iterator[tuple[int, list[Axis]]]:
    """Cuts `axes` into parts (first element, axes) that hold and span at most `limit` elements each."""
    if not axes or (_span(axes) <= limit and math.prod(length for length, _ in axes) <= limit):
        yield start, axes
        return
    (length, stride), inner = axes[0], axes[1:]
    rows = min((limit - _span(inner)) // stride + 1, limit // math.prod(length for length, _ in inner))
    if rows >= 1:
        for row in range(0, length, rows):
            yield start + row * stride, [(min(rows, length - row), stride), *inner]
    else:
        for row in range(length):
            yield from _blocks(inner, start + row * stride, limit)


# Types that numpy hasn't ----------------------------------------------------------------------------------------------


@cache
def _float8(dtype: str) -> NDArray[np.float32]:
    """The values of all 256 patterns. OCP 8-bit floating point specification (OFP8), revision 1.0, table 1."""
    exponent_bits, fraction_bits, bias = (4, 3, 7) if dtype == "float8_e4m3fn" else (5, 2, 15)
    table = np.empty(256, np.float32)
    for pattern in range(128):
        exponent, fraction = pattern >> fraction_bits, pattern & ((1 << fraction_bits) - 1)
        share = fraction / (1 << fraction_bits)
        value = math.ldexp(1 + share, exponent - bias) if exponent else math.ldexp(share, 1 - bias)
        if dtype == "float8_e4m3fn":  # no infinity, one NaN
            value = math.nan if pattern == 127 else value
        elif exponent == (1 << exponent_bits) - 1:
            value = math.nan if fraction else math.inf
        table[pattern], table[pattern + 128] = value, -value
    return table


def _decoded(raw: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Numbers from stored patterns, of any shape and byte order."""
    if dtype == "bfloat16":
        bits: NDArray[np.uint32] = np.left_shift(raw, 16, dtype=np.uint32)
        return bits.view(np.float32)
    if dtype.startswith("float8"):
        return _float8(dtype).take(raw)
    if dtype in ("float16", "bool"):
        return raw.astype(np.float32 if dtype == "float16" else np.bool_)
    native: NDArray[Any] = raw.astype(raw.dtype.newbyteorder("="), copy=False)
    return native


def _widened(chunk: NDArray[Any], dtype: str) -> NDArray[Any]:
    """A native flat chunk as float32 where that is exact, else as float64."""
    if dtype == "bfloat16":
        wide = _scratch.wide[: chunk.size]
        np.left_shift(chunk, np.uint32(16), out=wide, dtype=np.uint32)
        return wide.view(np.float32)
    decoded = _decoded(chunk, dtype)
    exact = decoded.dtype.itemsize < 4 or decoded.dtype == np.float32
    return decoded.astype(np.float32 if exact else np.float64, copy=False)


# Moments --------------------------------------------------------------------------------------------------------------

HALF_NORMAL = 113 << 23  # bits of 2^-14, float16's smallest normal number, in float32
HALF_RANGE = 30 << 23  # 30 binades from there to 65504
HALF_TINIEST = 103 << 23  # bits of 2^-24


def _dot(left: NDArray[Any], right: NDArray[Any]) -> float:
    """The sum of products, added up row by row in float64. A `right` of one row is repeated."""
    whole = left.size // ROW * ROW
    rest = left.size - whole
    total = float(left[whole:] @ right[-rest:]) if rest else 0.0
    if whole:
        rows = left[:whole].reshape(-1, 1, ROW) @ right[:whole].reshape(-1, ROW, 1)
        total += float(rows.sum(dtype=np.float64))
    return total


def _float16_exact(bits: NDArray[np.uint32]) -> int:
    """How many finite float32 patterns with 13 zeros at the end are float16 numbers."""
    magnitude = bits & np.uint32(0x7FFFFFFF)
    normal = np.count_nonzero(magnitude - np.uint32(HALF_NORMAL) < np.uint32(HALF_RANGE))
    small = magnitude[magnitude < np.uint32(HALF_NORMAL)]
    zeros = np.count_nonzero(small == 0)
    subnormal = small[small >= np.uint32(HALF_TINIEST)].view(np.float32)
    multiples = np.ldexp(subnormal, 24)  # of the smallest float16 number
    return int(normal + zeros + np.count_nonzero(multiples == np.trunc(multiples)))


class _Moments:
    """Running statistics: sums of powers of the deviations from the mean, merged chunk by chunk."""

    def __init__(self) -> None:
        self.finite = self.nans = self.infs = self.zeros = self.bf16 = self.fp16 = 0
        self.low, self.high = math.inf, -math.inf
        self.mean = self.second = self.third = self.fourth = 0.0

    def add(self, chunk: NDArray[Any]) -> None:
        """Take in a flat chunk of float32 or float64."""
        low, high = float(chunk.min()), float(chunk.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            nans = int(np.count_nonzero(np.isnan(chunk)))
            finite = chunk[np.isfinite(chunk)]
            self.nans += nans
            self.infs += chunk.size - finite.size - nans
            if not finite.size:
                return
            chunk, low, high = finite, float(finite.min()), float(finite.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._add_exact(chunk)
        if max(-low, high) > 1e30:  # float32 would overflow
            chunk = chunk.astype(np.float64)
        self._merge(chunk.size, *_central_moments(chunk, low, high))

    def _add_exact(self, chunk: NDArray[Any]) -> None:
        """Count zeros and what fewer bits would represent: all of that ends with 13 zero bits in float32."""
        if chunk.dtype == np.float64:
            narrow = chunk.astype(np.float32)
            chunk = narrow[narrow == chunk]
        bits, flags = _scratch.bits[: chunk.size], _scratch.flags[: chunk.size]
        patterns = chunk.view(np.uint32)
        np.bitwise_and(patterns, np.uint32(0x1FFF), out=bits)
        np.equal(bits, np.uint32(0), out=flags)
        short = patterns[flags]
        self.zeros += int(np.count_nonzero((short << np.uint32(1)) == 0))
        self.bf16 += int(np.count_nonzero((short & np.uint32(0xFFFF)) == 0))
        self.fp16 += _float16_exact(short)

    def _merge(self, count: int, mean: float, second: float, third: float, fourth: float) -> None:
        before, total = self.finite, self.finite + count
        shift = mean - self.mean
        if before:
            fourth += self.fourth + shift * (
                shift * shift * shift * before * count * (before * before - before * count + count * count) / total**3
                + 6 * shift * (before * before * second + count * count * self.second) / total**2
                + 4 * (before * third - count * self.third) / total
            )
            third += self.third + shift * (
                shift * shift * before * count * (before - count) / total**2
                + 3 * (before * second - count * self.second) / total
            )
            second += self.second + shift * shift * before * count / total
            mean = self.mean + shift * count / total
        self.finite, self.mean, self.second, self.third, self.fourth = total, mean, second, third, fourth

    def statistics(self, count: int, repeats: int) -> Statistics:
        """`count` as the shape has it; every number was met once and stands `repeats` times."""
        finite = self.finite
        variance = self.second / finite if finite else 0.0
        return Statistics(
            count=count,
            mean=self.mean,
            std=math.sqrt(variance),
            norm=math.sqrt((self.second + finite * self.mean * self.mean) * repeats),
            minimum=self.low if finite else 0.0,
            maximum=self.high if finite else 0.0,
            nans=self.nans * repeats,
            infs=self.infs * repeats,
            zeros=self.zeros * repeats,
            bf16_exact=self.bf16 / finite if finite else 1.0,
            fp16_exact=self.fp16 / finite if finite else 1.0,
            kurtosis=self.fourth / finite / (variance * variance) - 3 if variance * variance > 0 else math.nan,
        )


def _central_moments(chunk: NDArray[Any], low: float, high: float) -> tuple[float, float, float, float]:
    """The mean, and the sums of the second, third and fourth powers of the deviations from it."""
    if low == high:
        return low, 0.0, 0.0, 0.0
    count, kind = chunk.size, chunk.dtype.type
    sample = chunk[::509]
    about = float(kind(sample.mean()))  # near the mean is near enough: it is corrected below
    around = sample - kind(about)
    if 16 * about * about * sample.size < float(around @ around):
        about = 0.0  # as near, and a pass cheaper
    _, exponent = math.frexp(max(high - about, about - low))
    scale = math.ldexp(1.0, min(-exponent, 126)) if abs(exponent) > 24 else 1.0  # fourth powers must stay in range
    if kind is np.float32:
        buffer, squares = _scratch.deviations[:count], _scratch.squares[:count]
    else:
        buffer, squares = np.empty_like(chunk), np.empty_like(chunk)
    deviations = np.subtract(chunk, kind(about), out=buffer) if about else chunk
    if scale != 1.0:
        deviations = np.multiply(deviations, kind(scale), out=buffer)
    np.multiply(deviations, deviations, out=squares)
    first = _dot(deviations, np.ones(min(count, ROW), chunk.dtype)) / count
    second, third, fourth = _dot(deviations, deviations), _dot(squares, deviations), _dot(squares, squares)
    fourth += first * (-4 * third + first * (6 * second - 3 * count * first * first))
    third += first * (-3 * second + 2 * count * first * first)
    second -= count * first * first
    unit = 1 / scale
    return (
        about + first * unit,
        max(second, 0.0) * unit * unit,
        third * unit * unit * unit,
        max(fourth, 0.0) * unit * unit * unit * unit,
    )
