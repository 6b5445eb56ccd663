"""The values of a stored tensor: its statistics in one streaming pass of bounded memory, and its values on request.

A file is opened for each pass and never kept open. Of numbers of 8 and 16 bits each pattern is counted, and the counts
tell everything. Of wider ones, chunks of half a mebibyte stay in the processor's cache while every statistic is taken
from them, and are merged with the formulas of Chan, Golub and LeVeque (1979). Two threads share a large tensor.
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
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from fgclip_doctor.run import MAX_VALUES_BYTES, Missing, Source, Statistics, Tensor
from fgclip_doctor.sources.cache import as_digest, as_record_or_none, as_statistics, kept, recalled
from fgclip_doctor.sources.files import Unreadable, open_regular

R = TypeVar("R")
G = TypeVar("G", "_Counts", "_Moments")
if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

CHUNK_BYTES = 512 << 10
CHUNK_ELEMENTS = 128 << 10
WORTH_HALVING = 8 * CHUNK_BYTES
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
    """Of parts that have one dtype."""
    pieces = [half for part in parts for half in _halves(part)]
    if pieces and SIZES[pieces[0].dtype] <= 2:
        return _shared(_Counts, pieces).moments(pieces[0].dtype)
    return _shared(_Moments, pieces)


def _shared(kind: type[G], pieces: Sequence[Stored]) -> G:
    """By two threads, as numpy lets go of the interpreter. The halves don't depend on the machine, nor does the sum."""
    if sum(piece.nbytes for piece in pieces) < WORTH_HALVING:
        return _gathered(kind, pieces)
    second = _helper().submit(_gathered, kind, pieces[1::2])
    both = _gathered(kind, pieces[::2])
    both.merge(second.result())
    return both


def _gathered(kind: type[G], pieces: Sequence[Stored]) -> G:
    found = kind()
    with np.errstate(all="ignore"):
        for piece in pieces:
            for chunk in _chunks(piece):
                found.add(chunk)
    return found


def _halves(stored: Stored) -> list[Stored]:
    if stored.nbytes < WORTH_HALVING or not stored.contiguous:
        return [stored]
    count = math.prod(stored.shape)
    return [stored.cut(0, count // 2), stored.cut(count // 2, count - count // 2)]


@cache
def _helper() -> ThreadPoolExecutor:
    """One thread, which stays and so keeps its buffers."""
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(1)


def values(stored: Stored) -> NDArray[Any]:
    """The values with the tensor's shape: floats as float32 (float64 stays), the rest as they are."""
    dtype = _raw_dtype(stored.dtype).newbyteorder(stored.byteorder)
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
    return np.asarray(_decoded(shaped, stored.dtype), order="C")


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
        self.codes = np.empty(CHUNK_ELEMENTS, np.intp)
        self.deviations = np.empty(CHUNK_ELEMENTS, np.float32)
        self.bits, self.rest = self.deviations.view(np.uint32), self.codes.view(np.uint32)  # not needed while those are
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


def _raw_dtype(dtype: str) -> np.dtype[Any]:
    """The numpy type of one stored number: bit patterns where numpy has no such type, the parts of complex numbers."""
    raw = {"bfloat16": "uint16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8", "bool": "uint8"}
    parts = {"complex64": "float32", "complex128": "float64"}
    return np.dtype({**raw, **parts}.get(dtype, dtype))


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
    dtype = _raw_dtype(stored.dtype).newbyteorder(stored.byteorder)
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


# Moments --------------------------------------------------------------------------------------------------------------

HALF_NORMAL = 113 << 23  # bits of 2^-14, float16's smallest normal number, in float32
HALF_RANGE = 30 << 23  # 30 binades from there to 65504
HALF_TINIEST = 103 << 23  # bits of 2^-24


@dataclass(slots=True)
class _Moments:
    """Counts, and of the finite values the range, the mean and the sum of the squares of the deviations from it."""

    finite: int = 0
    nans: int = 0
    infs: int = 0
    zeros: int = 0
    bf16: int = 0
    fp16: int = 0
    low: float = math.inf
    high: float = -math.inf
    mean: float = 0.0
    squares: float = 0.0

    def add(self, chunk: NDArray[Any]) -> None:
        self.merge(_moments(chunk))

    def merge(self, other: _Moments) -> None:
        before, total = self.finite, self.finite + other.finite
        for name in ("finite", "nans", "infs", "zeros", "bf16", "fp16"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        if not before:
            self.mean, self.squares = other.mean, other.squares
        elif other.finite:
            shift, share = other.mean - self.mean, other.finite / total
            self.mean += shift * share
            self.squares += other.squares + shift * shift * before * share

    def statistics(self, count: int, repeats: int) -> Statistics:
        """`count` as the shape has it; every number was met once and stands `repeats` times."""
        finite = self.finite
        return Statistics(
            count=count,
            mean=self.mean,
            std=math.sqrt(self.squares / finite) if finite else 0.0,
            norm=math.sqrt((self.squares + finite * self.mean * self.mean) * repeats),
            minimum=self.low if finite else 0.0,
            maximum=self.high if finite else 0.0,
            nans=self.nans * repeats,
            infs=self.infs * repeats,
            zeros=self.zeros * repeats,
            bf16_exact=self.bf16 / finite if finite else 1.0,
            fp16_exact=self.fp16 / finite if finite else 1.0,
        )


class _Counts:
    """How often each pattern of at most 16 bits was met, those of 8 bits in pairs: all statistics, exactly."""

    def __init__(self) -> None:
        self.pairs, self.single = np.zeros(1 << 16, np.intp), np.zeros(1 << 8, np.intp)

    def add(self, chunk: NDArray[Any]) -> None:
        octets = np.ascontiguousarray(chunk).view(np.uint8)
        if octets.size % 2:
            self.single[octets[-1]] += 1
            octets = octets[:-1]
        patterns = octets.view(np.uint16)
        if patterns.size and patterns[0] == patterns[-1] and (patterns == patterns[0]).all():
            self.pairs[patterns[0]] += patterns.size  # adding again and again to one place is slow
        else:
            codes = _scratch.codes[: patterns.size]
            codes[:] = patterns  # which numpy would do itself, in new memory
            np.add.at(self.pairs, codes, 1)

    def merge(self, other: _Counts) -> None:
        self.pairs += other.pairs
        self.single += other.single

    def moments(self, dtype: str) -> _Moments:
        counts, patterns = self.pairs, _patterns(dtype)
        if SIZES[dtype] == 1:
            counts = counts.reshape(256, 256).sum(0) + counts.reshape(256, 256).sum(1) + self.single
        often, seen = counts.astype(np.float64), np.flatnonzero(counts)
        found = _Moments()
        found.zeros, found.bf16, found.fp16 = map(int, patterns.held @ often)
        values, often = patterns.values[seen], often[seen]
        finite = np.isfinite(values)
        if not finite.all():
            found.nans, found.infs = int(often[np.isnan(values)].sum()), int(often[np.isinf(values)].sum())
            values, often = values[finite], often[finite]
        found.finite = int(often.sum())
        if values.size:
            found.low, found.high = float(values.min()), float(values.max())
            found.mean = float(values @ often) / found.finite
            found.squares = float((values - found.mean) ** 2 @ often)
        return found


@dataclass(frozen=True, slots=True)
class _Patterns:
    """Of every pattern of 8 or 16 bits the value, and whether that is zero, a bfloat16 and a float16 number."""

    values: NDArray[np.float64]
    held: NDArray[np.float64]  # 1 for yes, (3, patterns)


@cache
def _patterns(dtype: str) -> _Patterns:
    raw = np.arange(256 ** SIZES[dtype]).astype(f"u{SIZES[dtype]}").view(_raw_dtype(dtype))
    with np.errstate(all="ignore"):  # NaN, and beyond float16 infinity, which is not the value
        single = _decoded(raw, dtype).astype(np.float32)
        held = [single == 0, single.view(np.uint32) & np.uint32(0xFFFF) == 0, single.astype(np.float16) == single]
        return _Patterns(single.astype(np.float64), np.stack(held).astype(np.float64) * np.isfinite(single))


def _moments(chunk: NDArray[Any]) -> _Moments:
    """Of a native flat chunk of wider numbers."""
    chunk = chunk if chunk.dtype == np.float32 else chunk.astype(np.float64, copy=False)
    found = _Moments(low=float(chunk.min()), high=float(chunk.max()))
    if not (math.isfinite(found.low) and math.isfinite(found.high)):
        finite = np.isfinite(chunk)
        found.nans = int(np.count_nonzero(np.isnan(chunk)))
        found.infs = int(np.count_nonzero(~finite)) - found.nans
        chunk = chunk[finite]
        found.low, found.high = float(chunk.min(initial=math.inf)), float(chunk.max(initial=-math.inf))
    if not chunk.size:
        return found
    found.finite = repeats = chunk.size
    if found.low < found.high:
        repeats = 1
        found.mean, found.squares = _mean_and_squares(chunk, found.low, found.high)
    else:  # what is true of one is true of all
        chunk, found.mean = chunk[:1], found.low
    found.zeros, found.bf16, found.fp16 = (repeats * count for count in _zeros_and_exact(chunk))
    return found


def _zeros_and_exact(chunk: NDArray[Any]) -> tuple[int, int, int]:
    """How many finite numbers are zero, are bfloat16 numbers, and are float16 numbers: all end with 13 zero bits."""
    if chunk.dtype == np.float64:
        narrow = chunk.astype(np.float32)
        chunk = narrow[narrow == chunk]
    patterns = chunk.view(np.uint32)
    bits, rest, flags = (buffer[: chunk.size] for buffer in (_scratch.bits, _scratch.rest, _scratch.flags))
    np.bitwise_and(patterns, np.uint32(0x1FFF), out=rest)
    if not np.equal(rest, np.uint32(0), out=flags).all():
        patterns = patterns[flags]
        bits, rest, flags = (buffer[: patterns.size] for buffer in (bits, rest, flags))
    magnitudes = np.bitwise_and(patterns, np.uint32(0x7FFFFFFF), out=bits)
    bf16 = patterns.size - np.count_nonzero(np.bitwise_and(magnitudes, np.uint32(0xFFFF), out=rest))
    np.subtract(magnitudes, np.uint32(HALF_NORMAL), out=rest)
    normal = np.count_nonzero(np.less(rest, np.uint32(HALF_RANGE), out=flags))
    small = magnitudes[np.less(magnitudes, np.uint32(HALF_NORMAL), out=flags)]
    zeros = np.count_nonzero(small == 0)
    subnormal = small[small >= np.uint32(HALF_TINIEST)].view(np.float32)
    multiples = np.ldexp(subnormal, 24)  # of the smallest float16 number
    whole = np.count_nonzero(multiples == np.trunc(multiples))
    return int(zeros), int(bf16), int(normal + zeros + whole)


def _mean_and_squares(chunk: NDArray[Any], low: float, high: float) -> tuple[float, float]:
    """The mean of numbers between `low` and `high`, and the sum of the squares of the deviations from it."""
    if max(-low, high) > 1e30:  # float32 would overflow
        chunk = chunk.astype(np.float64)
    count, kind = chunk.size, chunk.dtype.type
    sample = chunk[::509]
    about = float(kind(sample.mean()))  # near the mean is near enough: it is corrected below
    around = sample - kind(about)
    if 16 * about * about * sample.size < float(around @ around):
        about = 0.0  # as near, and a pass cheaper
    _, exponent = math.frexp(max(high - about, about - low))
    scale = math.ldexp(1.0, min(-exponent, 126)) if abs(exponent) > 48 else 1.0  # squares must stay in range
    if about or scale != 1.0:
        buffer = _scratch.deviations[:count] if kind is np.float32 else np.empty_like(chunk)
        chunk = np.subtract(chunk, kind(about), out=buffer)
        chunk *= kind(scale)
    first, second = _dot(chunk, np.ones(min(count, ROW), chunk.dtype)) / count, _dot(chunk, chunk)
    unit = 1 / scale
    return about + first * unit, max(second - count * first * first, 0.0) * unit * unit


def _dot(left: NDArray[Any], right: NDArray[Any]) -> float:
    """The sum of products, added up row by row in float64. A `right` of one row is repeated."""
    whole = left.size // ROW * ROW
    rest = left.size - whole
    total = float(left[whole:] @ right[-rest:]) if rest else 0.0
    if whole:
        rows = left[:whole].reshape(-1, 1, ROW) @ right[:whole].reshape(-1, ROW, 1)
        total += float(rows.sum(dtype=np.float64))
    return total
