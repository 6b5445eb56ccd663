"""The lines of a long text by their skeletons, so that each kind of line has to be understood only once.

The skeleton of a line is the line with every run of digits drawn together into one "0". A log of a gigabyte has
millions of lines and a few dozen skeletons. What the numbers of a line mean follows from its skeleton; their values are
then taken from all lines of that skeleton at once, as columns.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgclip_doctor.sources.files import Unreadable, open_regular

CHUNK = 1 << 20  # bytes read at a time
MAX_LINE = 64 << 10  # bytes; a longer line is left out
SNIFF = 64 << 10  # bytes that decide whether a file is text
LINE_ENDS = bytes.maketrans(b"\r\b\f", b"\n\n\n")  # progress bars return to the start of their line
DIGITS = bytes(0x30 if 0x30 <= byte <= 0x39 else 0x0A if byte in b"\r\b\f" else byte for byte in range(256))
PAD = 24  # bytes before the text, so that the 24 that end with a digit can be looked at
EXACT_DIGITS = 15  # a whole number of so many digits is exact in float64
EXACT_POWER = 22  # and so is this power of ten
POWERS = 10.0 ** np.arange(EXACT_POWER + 1)
MOST_DIGITS = 19  # of a number below 2**64
WHOLE_POWERS = 10 ** np.arange(MOST_DIGITS + 1, dtype=np.uint64)
LONG_POWER = 27  # the largest power of ten that is exact in 64 bits of mantissa
LONG_POWERS = np.array([np.longdouble(10) ** power for power in range(LONG_POWER + 1)], np.longdouble)
HAS_LONG = np.finfo(np.longdouble).nmant == 63  # x86's; elsewhere Python reads the numbers of more than 15 digits
NUMBER = re.compile(r"([-+]?)(0(?:,0)*)?(?:\.(0)?)?(?:[eE]([-+]?)(0))?")
BLANKS = np.array([8 * (8 - length) for length in range(9)], np.uint64)  # bits before so many digits in eight bytes
PAIRS = tuple(  # two digits to a number of two, then two of those to one of four, and of eight
    (np.uint64(factor), np.uint64(width), np.uint64(mask))
    for factor, width, mask in ((10, 8, 0x00FF00FF00FF00FF), (100, 16, 0x0000FFFF0000FFFF), (10_000, 32, 0xFFFFFFFF))
)
LONGEST = 400  # characters of a number that are looked at


@dataclass(frozen=True, slots=True)
class Number:
    """Where a number stands in the lines of a skeleton: the indices of its runs of digits. Or a constant: nan, inf.

    `whole` has several where the thousands are parted by commas.
    """

    whole: tuple[int, ...] = ()
    fraction: int | None = None
    exponent: int | None = None
    negative: bool = False
    shrinks: bool = False  # the exponent is negative
    constant: float | None = None


def parsed_number(text: str, run: int) -> Number:
    """A number of a skeleton, whose first digits are those of `run`."""
    match = NUMBER.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no number")
    sign, whole, fraction, shrinks, exponent = match.groups()
    wholes = (whole or "").count("0")
    return Number(
        tuple(range(run, run + wholes)),
        run + wholes if fraction else None,
        run + wholes + bool(fraction) if exponent else None,
        sign == "-",
        shrinks == "-",
    )


class Block:
    """Some lines of a text. A line ends where a progress bar returns to its start, too."""

    def __init__(self, text: bytes) -> None:
        if b"\r\n" in text:
            text = text.replace(b"\r\n", b"\n")
        self._text = b"".join((b"\n" * PAD, text, b"" if text.endswith(b"\n") else b"\n"))
        marks = np.frombuffer(self._text.translate(DIGITS), np.uint8)
        digit = marks == 0x30
        edges = np.flatnonzero(digit[1:] != digit[:-1]) + 1  # starts and ends of runs of digits in turn
        self._starts, self._ends = edges[::2], edges[1::2]
        keep = ~digit
        keep[self._starts] = True
        self.skeletons: list[bytes] = marks[keep].tobytes().split(b"\n")[PAD:-1]

    @cached_property
    def _lengths(self) -> NDArray[np.int64]:
        return self._ends - self._starts

    @cached_property
    def lines(self) -> list[bytes]:
        return self._text.translate(LINE_ENDS).split(b"\n")[PAD:-1]

    @cached_property
    def line_numbers(self) -> NDArray[np.int64]:
        """The line of the text, from 0, that each of `lines` belongs to."""
        marks = np.frombuffer(self._text, np.uint8)[PAD:]
        ends = np.flatnonzero(np.isin(marks, list(b"\n\r\b\f")))
        return np.concatenate([[0], np.cumsum(marks[ends] == 0x0A)])[: len(self.skeletons)].astype(np.int64)

    @cached_property
    def _whole(self) -> NDArray[np.uint64]:
        """The runs of digits as whole numbers; those of more than 19 digits are wrong, and are not asked for."""
        value = self._eight(self._ends, np.minimum(self._lengths, 8))
        for done in (8, 16):
            long = np.flatnonzero(self._lengths > done)
            if len(long):
                rest = np.minimum(self._lengths[long] - done, 8)
                value[long] += self._eight(self._ends[long] - done, rest) * np.uint64(10**done)
        return value

    def _eight(self, ends: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.uint64]:
        """The value of up to eight digits before `ends`: all eight at once in one word, pairs first, then fours."""
        window: NDArray[np.uint64] = np.ndarray((len(self._text) - 7,), "<u8", self._text, strides=(1,))
        word = window[ends - 8]
        word ^= np.uint64(0x3030303030303030)  # digits; what lies before them is cleared
        shift = BLANKS[lengths]
        word >>= shift
        word <<= shift
        for factor, width, mask in PAIRS:
            lower = word >> width
            word *= factor
            word += lower
            word &= mask
        return word

    def run(self, runs: NDArray[np.int64]) -> list[bytes]:
        """Runs of digits as they are written."""
        return [self._text[self._starts[run] : self._ends[run]] for run in runs.tolist()]

    def values(self, first: NDArray[np.int64], number: Number) -> tuple[NDArray[np.float64], int | None]:
        """A number of some lines, `first` being the first run of digits of each, and the exponent of its last place.

        Exact: as Python's float() reads them.
        """
        if number.constant is not None:
            return np.full(len(first), number.constant), None
        if number.exponent is None and len(number.whole) == 1 and len(first):  # nearly all numbers are so
            run = first + number.whole[0]
            result, digits, decimals = self._whole[run].astype(np.float64), int(self._lengths[run].max()), 0
            if number.fraction is not None:
                run = first + number.fraction
                lengths = self._lengths[run]
                decimals = int(lengths.max())
                powers = POWERS[np.minimum(lengths, EXACT_POWER)]
                result = (result * powers + self._whole[run]) / powers
            if digits + decimals <= EXACT_DIGITS:
                return (-result if number.negative else result), -decimals
        return self._any_values(first, number)

    def _any_values(self, first: NDArray[np.int64], number: Number) -> tuple[NDArray[np.float64], int | None]:
        runs = [first + run for run in number.whole]
        value = self._whole[runs[0]] if runs else np.zeros(len(first), np.uint64)
        digits = self._lengths[runs[0]] if runs else np.zeros(len(first), np.int64)
        for run in runs[1:]:
            value = value * np.uint64(1000) + self._whole[run]
            digits = digits + 3
        power = np.zeros(len(first), np.int64)
        if number.fraction is not None:
            run = first + number.fraction
            length = self._lengths[run]
            value = value * WHOLE_POWERS[np.minimum(length, MOST_DIGITS)] + self._whole[run]
            digits, power = digits + length, -length
        if number.exponent is not None:
            run = first + number.exponent
            exponent = np.minimum(self._whole[run], np.uint64(9999)).astype(np.int64)
            digits = np.where(self._lengths[run] > 4, MOST_DIGITS + 1, digits)
            power = power - exponent if number.shrinks else power + exponent
        size = np.minimum(np.abs(power), EXACT_POWER)
        result = value.astype(np.float64)
        if number.exponent is None:
            result /= POWERS[size]
        else:
            result = np.where(power < 0, result / POWERS[size], result * POWERS[size])
        inexact = np.flatnonzero((digits > EXACT_DIGITS) | (np.abs(power) > EXACT_POWER))
        if HAS_LONG and len(inexact):
            fits = inexact[(digits[inexact] <= MOST_DIGITS) & (np.abs(power[inexact]) <= LONG_POWER)]
            result[fits], certain = _rounded(value[fits], power[fits])
            inexact = np.setdiff1d(inexact, fits[certain], assume_unique=True)
        for row in inexact.tolist():
            result[row] = abs(self._float(int(first[row]), number))
        return (-result if number.negative else result), int(power.min()) if len(power) else None

    def _float(self, first: int, number: Number) -> float:
        parts = [number.exponent, number.fraction, *reversed(number.whole)]
        known = [first + part for part in parts if part is not None]
        start = self._starts[known[-1]] - (not number.whole)  # ".5" begins before its digits
        return float(self._text[start : min(self._ends[known[0]], start + LONGEST)].replace(b",", b""))


def _rounded(value: NDArray[np.uint64], power: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """``value * 10 ** power`` rounded to float64, and where that is certain.

    One operation with 64 bits of mantissa is off by half of its last bit at most: enough to round from, unless the
    result lies that near to the middle between two of float64.
    """
    size = LONG_POWERS[np.abs(power)]
    exact = value.astype(np.longdouble)
    exact = np.where(power < 0, exact / size, exact * size)
    result = exact.astype(np.float64)
    beside_middle = np.abs(np.abs(exact - result) - np.spacing(result) / 2)
    return result, (beside_middle > np.ldexp(np.abs(exact), -62)) | (value == 0)


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
