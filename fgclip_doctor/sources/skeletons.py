"""The lines of a long text by their skeletons, so that each kind of line has to be understood only once.

The skeleton of a line is the line with every run of digits drawn together into one "0". A log of a gigabyte has
millions of lines and a few dozen skeletons. What the numbers of a line mean follows from its skeleton; their values are
then taken from all lines of that skeleton at once, as columns.

Most lines share more: their shape, which is the line with a "0" for every digit. Lines of one length are compared with
a shape as they stand, and the shape says where their numbers are. What is left is looked at digit by digit.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgclip_doctor.sources.decimals import PAD, Columns
from fgclip_doctor.sources.files import Unreadable, open_regular

CHUNK = 1 << 20  # bytes read at a time
MAX_LINE = 64 << 10  # bytes; a longer line is left out
SNIFF = 64 << 10  # bytes that decide whether a file is text
LINE_ENDS = bytes.maketrans(b"\r\b\f", b"\n\n\n")  # progress bars return to the start of their line
SHAPE = bytes(0x30 if 0x30 <= byte <= 0x39 else LINE_ENDS[byte] for byte in range(256))
DIGITS = re.compile(rb"0+")
MANY = 16  # lines of one shape that are worth looking at together
MOST = 1_000  # lines of one shape that are worth a column of their own
WORD = 8  # bytes; shorter lines have no shape
LENGTHS = 64  # of lines, in one block, that are looked at by shape
HASH = np.random.default_rng(0).integers(1, 1 << 63, MAX_LINE // 8 + 1, np.uint64) | 1


class Block:
    """Some lines of a text. A line ends where a progress bar returns to its start, too.

    `first` has every skeleton with the first of its lines, in the order of the lines.
    """

    def __init__(self, text: bytes) -> None:
        if b"\r" in text:
            text = text.replace(b"\r\n", b"\n")
        self._closed = not text.endswith(b"\n")
        self._text = b"".join((b"\n" * PAD, text, b"\n" * self._closed))
        shapes = np.frombuffer(self._text.translate(SHAPE), np.uint8)
        ends = np.flatnonzero(shapes == 0x0A)[PAD - 1 :]
        self._starts, self._lengths = ends[:-1] + 1, np.diff(ends) - 1
        self._shaped, rest = _by_shape(shapes, self._starts, self._lengths)
        self._rest = _Rest(shapes, self._starts, self._lengths, rest)
        firsts = [(int(parts[0][0][0]), skeleton) for skeleton, parts in self._shaped.items()]
        firsts += zip(self._rest.firsts, self._rest.skeletons, strict=True)
        self.first: dict[bytes, int] = {}
        for row, skeleton in sorted(firsts):
            self.first.setdefault(skeleton, row)

    def __len__(self) -> int:
        return len(self._starts)

    def line(self, row: int) -> bytes:
        start = int(self._starts[row])
        return self._text[start : start + int(self._lengths[row])]

    @cached_property
    def line_numbers(self) -> NDArray[np.int64]:
        """The line of the text, from 0, that each line belongs to."""
        return np.cumsum(np.frombuffer(self._text, np.uint8)[self._starts - 1] == 0x0A) - 1

    @property
    def newlines(self) -> int:
        return int(self.line_numbers[-1]) + (not self._closed)

    def count(self, skeleton: bytes) -> int:
        """How many lines are of a skeleton."""
        return sum(len(rows) for rows, _ in self._shaped.get(skeleton, ())) + self._rest.count(skeleton)

    def alike(self, skeleton: bytes) -> Iterator[tuple[NDArray[np.int64], Columns]]:
        """The lines of a skeleton, in one part or several, and their numbers."""
        parts = []
        for rows, edges in self._shaped.get(skeleton, ()):
            if len(rows) >= MOST:
                yield rows, Columns(self._text, self._starts[rows], edges[None])
            else:
                parts.append((rows, np.broadcast_to(edges, (len(rows), len(edges)))))
        if skeleton in self._rest.skeletons:
            parts.append(self._rest.alike(skeleton))
        if parts:
            rows, edges = (np.concatenate(column) for column in zip(*parts, strict=True))
            if len(parts) > 1:
                order = np.argsort(rows, kind="stable")
                rows, edges = rows[order], edges[order]
            yield rows, Columns(self._text, self._starts[rows], edges)


_Shaped = dict[bytes, list[tuple[NDArray[np.int64], NDArray[np.int64]]]]


def _by_shape(
    shapes: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> tuple[_Shaped, NDArray[np.int64]]:
    """The lines whose shape is that of many: by skeleton those of a shape, and where in a line its runs of digits start
    and end. And what lines are left.
    """
    found: _Shaped = {}
    left = np.ones(len(starts), np.bool_)
    counts = np.bincount(np.minimum(lengths, MAX_LINE + 1))
    common = np.argsort(counts)[: -LENGTHS - 1 : -1]
    for length in common[(counts[common] >= MANY) & (common >= WORD) & (common <= MAX_LINE)].tolist():
        rows = np.flatnonzero(lengths == length)
        for same in _equal(shapes, starts[rows], length):
            shape = shapes[starts[rows[same[0]]] :][:length].tobytes()
            edges = np.array([edge for run in DIGITS.finditer(shape) for edge in run.span()], np.int64)
            found.setdefault(DIGITS.sub(b"0", shape), []).append((rows[same], edges))
            left[rows[same]] = False
    for parts in found.values():
        parts.sort(key=lambda part: int(part[0][0]))
    return found, np.flatnonzero(left)


def _equal(shapes: NDArray[np.uint8], starts: NDArray[np.int64], length: int) -> Iterator[NDArray[np.int64]]:
    """Which lines of one length are of one shape, where `MANY` are. Equal hashes propose, a comparison decides."""
    words = _windows(shapes, f"V{length // WORD * WORD}")[starts].view(np.uint64).reshape(len(starts), -1)
    last = _windows(shapes, "u8")[starts + (length - WORD)]
    if (words == words[0]).all() and (last == last[0]).all():
        yield np.arange(len(starts))
        return
    hashes = words @ HASH[: words.shape[1]] + last * HASH[-1]
    order = np.argsort(hashes)
    ends = np.append(np.flatnonzero(np.diff(hashes[order])) + 1, len(order))
    sizes = np.diff(ends, prepend=0)
    for end, size in zip(ends[sizes >= MANY].tolist(), sizes[sizes >= MANY].tolist(), strict=True):
        part = np.sort(order[end - size : end])
        one = part[0]
        if (words[part] == words[one]).all() and (last[part] == last[one]).all():
            yield part


def _windows(letters: NDArray[np.uint8], dtype: str) -> NDArray[Any]:
    """What stands at each place of some letters, read as `dtype`."""
    size = np.dtype(dtype).itemsize
    return np.ndarray((len(letters) - size + 1,), dtype, letters, strides=(1,))


class _Numbers(dict[bytes, int]):
    """What is asked for gets a number, in the order in which it is first asked for."""

    def __missing__(self, key: bytes) -> int:
        return self.setdefault(key, len(self))


class _Rest:
    """Lines that are looked at digit by digit."""

    def __init__(
        self,
        shapes: NDArray[np.uint8],
        starts: NDArray[np.int64],
        lengths: NDArray[np.int64],
        rows: NDArray[np.int64],
    ) -> None:
        self._rows = rows
        self._starts = np.cumsum(lengths[rows] + 1) - lengths[rows]
        letters = shapes[PAD - 1 :]
        if len(rows) < len(starts):
            spans = zip(starts[rows].tolist(), (starts + lengths)[rows].tolist(), strict=True)
            lines = b"".join([b"\n", *(shapes[start : end + 1].tobytes() for start, end in spans)])
            letters = np.frombuffer(lines, np.uint8)
        digit = letters == 0x30
        self._edges = np.flatnonzero(digit[1:] != digit[:-1]) + 1  # starts and ends of runs of digits in turn
        keep = ~digit
        keep[self._edges[::2]] = True
        self.skeletons = _Numbers()
        skeletons = letters[keep].tobytes().split(b"\n")[1:-1]
        kinds = np.fromiter(map(self.skeletons.__getitem__, skeletons), np.int64, len(skeletons))
        runs = np.array([skeleton.count(b"0") for skeleton in self.skeletons], np.int64)
        self._first = np.cumsum(runs[kinds]) - runs[kinds]
        small = kinds.astype(np.min_scalar_type(len(runs)))  # small numbers are sorted by radix
        self._order = np.argsort(small, kind="stable")
        self._ends = np.cumsum(np.bincount(kinds, minlength=len(runs)))
        self.firsts: list[int] = rows[self._order[np.append(0, self._ends[:-1])[: len(runs)]]].tolist()

    def _where(self, skeleton: bytes) -> NDArray[np.int64]:
        kind = self.skeletons[skeleton]
        return self._order[self._ends[kind - 1] if kind else 0 : self._ends[kind]]

    def count(self, skeleton: bytes) -> int:
        return len(self._where(skeleton)) if skeleton in self.skeletons else 0

    def alike(self, skeleton: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The lines of a skeleton, and where their runs of digits start and end: (lines, 2 * runs)."""
        where, runs = self._where(skeleton), skeleton.count(b"0")
        if not runs:
            return self._rows[where], np.empty((len(where), 0), np.int64)
        windows: NDArray[np.int64] = np.ndarray(
            (len(self._edges) - 2 * runs + 1, 2 * runs), np.int64, self._edges, strides=2 * self._edges.strides
        )
        return self._rows[where], windows[2 * self._first[where]] - self._starts[where, None]


def chunks(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """The text of a file, some whole lines at a time, as long as it is when it is opened.

    UTF-16 with its mark becomes UTF-8; any other encoding stays. Of a line that fills a chunk only a part is given.
    Raises `Unreadable` for what is not text.
    """
    with open_regular(path) as descriptor:
        size, offset, rest = os.fstat(descriptor).st_size, 0, b""
        decode = _decoder(os.pread(descriptor, SNIFF, 0), path)
        while offset < size and (part := os.pread(descriptor, min(CHUNK, size - offset), offset)):
            offset += len(part)
            part = rest + (decode(part) if decode else part)
            cut = max(part.rfind(b"\n"), part.rfind(b"\r")) + 1
            if cut:
                yield part[:cut]
            rest = part[cut:][: 2 * MAX_LINE]  # too long a line stays too long
        if rest:
            yield rest


def _decoder(head: bytes, path: str | os.PathLike[str]) -> Any:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # as PowerShell redirects
        decoder = codecs.getincrementaldecoder("utf-16")("replace")
        return lambda part: decoder.decode(part).encode("utf-8", "replace")
    if not head:
        raise Unreadable(path, "is empty")
    if not is_text(head):
        raise Unreadable(path, "is neither text nor weights")
    return None


def is_text(head: bytes) -> bool:
    """True if a file that begins so is text in some encoding, a terminal's escapes and backspaces included."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return True
    controls = len(head) - len(head.translate(None, bytes(set(range(32)) - set(b"\t\n\r\b\f\x1b\a"))))
    return bool(head) and controls <= len(head) / 1000


def holds_text(path: str | os.PathLike[str]) -> bool:
    """True if `path` is a regular file that begins as text."""
    with open_regular(path) as descriptor:
        return is_text(os.pread(descriptor, SNIFF, 0))
