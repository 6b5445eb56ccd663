"""The numbers of a text as columns: one number of many lines at a time, each exactly as Python's float() reads it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PAD = 24  # bytes that have to stand before the text: a number is looked at in three words that end where it ends
NUMBER = re.compile(r"([-+]?)(0(?:,0)*)?(?:\.(0)?)?(?:[eE]([-+]?)(0))?")
LONGEST = 400  # characters of a number that are looked at
EXACT_WHOLE = 1 << 53  # whole numbers up to this one are exact in float64
EXACT_POWER = 22  # and so are powers of ten up to this one
HIGHEST_POWER = 44  # up to here they are the sum of two of float64
POWERS = np.array([float(10**power) for power in range(HIGHEST_POWER + 1)])
POWERS_REST = np.array([float(10**power - int(float(10**power))) for power in range(HIGHEST_POWER + 1)])
WHOLE_DIGITS = 18  # of a number that fits 64 bits whatever its digits are
WHOLE_POWERS = 10 ** np.arange(WHOLE_DIGITS + 1)
WHOLE_LIMIT = 9e18
TOO_LARGE = -1  # in the place of what doesn't fit
PAIRS = ((10, 8, 0x00FF00FF00FF00FF), (100, 16, 0x0000FFFF0000FFFF), (10_000, 32, 0x00000000FFFFFFFF))
SPLITTER = float((1 << 27) + 1)  # parts a float64 into two of half the digits
DOUBT = 2.0**-98  # the share of a result by which the sum of two float64 may be off


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

    @property
    def digits(self) -> tuple[int, ...]:
        """The runs before the exponent."""
        return self.whole if self.fraction is None else (*self.whole, self.fraction)


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


class Columns:
    """Lines of one skeleton: where each starts in the text, and where in it its runs of digits start and end.

    `edges` is (lines, 2 * runs), or (1, 2 * runs) where they are the same in all lines. Before the text stand `PAD`
    bytes.
    """

    def __init__(self, text: bytes, starts: NDArray[np.int64], edges: NDArray[np.int64]) -> None:
        self._text = text
        self._starts = starts
        self._edges = edges

    def __len__(self) -> int:
        return len(self._starts)

    def of(self, lines: NDArray[np.bool_] | NDArray[np.int64]) -> Columns:
        """Some of the lines."""
        return Columns(self._text, self._starts[lines], self._edges if len(self._edges) == 1 else self._edges[lines])

    def parted(self, runs: tuple[int, ...]) -> Iterator[tuple[tuple[bytes, ...], NDArray[np.int64]]]:
        """The lines by how these runs of digits are written, in the order in which each way is met first."""
        groups = np.zeros(len(self), np.int64)
        for run in runs:
            whole, lengths = self._run(run)
            written = whole * (PAD + 1) + np.minimum(lengths, PAD)
            if (written != written[0]).any():
                _, ways = np.unique(written, return_inverse=True)
                _, groups = np.unique(groups * len(self) + ways, return_inverse=True)
        order = np.argsort(groups, kind="stable")
        parts = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
        for part in sorted(parts, key=lambda part: int(part[0])):
            yield tuple(self._written(part[0], run, run) for run in runs), part

    def values(self, number: Number) -> tuple[NDArray[np.float64], int | None]:
        """A number of each line, and the exponent of the last place that it is written to."""
        if number.constant is not None or not len(self):
            return np.full(len(self), number.constant or 0.0), None
        whole, power = self._decimal(number)
        lowest, highest = int(power.min()), int(power.max())
        if whole.min() >= 0 and whole.max() <= EXACT_WHOLE and lowest >= -EXACT_POWER and highest <= EXACT_POWER:
            values = whole.astype(np.float64)  # and one operation of exact numbers rounds once
            if lowest < 0:
                values /= POWERS[-np.minimum(power, 0)] if lowest < highest else POWERS[-lowest]
            if highest > 0:
                values *= POWERS[np.maximum(power, 0)]
        else:
            values = self._long(number, whole, power)
        return (-values if number.negative else values), lowest

    def _decimal(self, number: Number) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The digits of a number as a whole one, and the power of ten to it: a single one where all have the same."""
        whole, power = np.zeros(1, np.int64), np.zeros(1, np.int64)
        width = 0
        for run in number.digits:
            part, lengths = self._run(run)
            width += int(lengths.max())
            joined = part if run == number.digits[0] else whole * WHOLE_POWERS[np.minimum(lengths, WHOLE_DIGITS)] + part
            if width > WHOLE_DIGITS:
                size = whole * POWERS[np.minimum(lengths, HIGHEST_POWER)]
                joined[(size + part > WHOLE_LIMIT) | (whole < 0) | (part < 0)] = TOO_LARGE
            whole = joined
            if run == number.fraction:
                power = -lengths
        if number.exponent is not None:
            exponent, _ = self._run(number.exponent)
            exponent = np.where((exponent < 0) | (exponent > LONGEST), LONGEST, exponent)
            power = power - exponent if number.shrinks else power + exponent
        return whole, power

    def _run(self, run: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """A run of digits as whole numbers, and how many digits it has: one where it is the same number in all."""
        edges = self._edges
        ends, lengths = self._starts + edges[:, 2 * run + 1], edges[:, 2 * run + 1] - edges[:, 2 * run]
        longest = int(lengths.max())
        if longest == lengths.min():
            lengths = lengths[:1]
        width = next((width for width in (1, 2, 4) if longest <= width), 8)
        whole = self._word(ends, np.minimum(lengths, 8), width)
        for done in range(8, min(longest, PAD), 8):
            rows = slice(None) if len(lengths) == 1 else np.flatnonzero(lengths > done)
            higher = self._word(ends[rows] - done, np.minimum(lengths[rows] - done, 8), 8)
            whole[rows] += higher * 10**done
            if done > 8:
                whole[rows] = np.where(higher * POWERS[done] > WHOLE_LIMIT, TOO_LARGE, whole[rows])
        if longest > PAD:
            whole = np.where(lengths > PAD, TOO_LARGE, whole)
        return whole, lengths

    def _word(self, ends: NDArray[np.int64], lengths: NDArray[np.int64], width: int) -> NDArray[np.int64]:
        """The digits in `width` bytes before `ends`, read as one word: to pairs, then to fours, then to eights."""
        windows: NDArray[np.unsignedinteger] = np.ndarray(
            (len(self._text) - width + 1,), f"<u{width}", self._text, strides=(1,)
        )
        word = windows[ends - width]
        word ^= 0x3030303030303030 >> (64 - 8 * width)
        if lengths.min() < width:  # what lies before the digits is cleared
            blank = ((width - lengths) * 8).astype(word.dtype)
            word >>= blank
            word <<= blank
        for factor, bits, mask in PAIRS:
            if bits < 8 * width:
                lower = word >> bits
                word *= factor
                word += lower
                word &= mask & ((1 << 8 * width) - 1)
        return word.astype(np.int64)

    def _long(self, number: Number, whole: NDArray[np.int64], power: NDArray[np.int64]) -> NDArray[np.float64]:
        """``whole * 10 ** power`` where one operation isn't enough. Where two float64 aren't, Python reads it."""
        values, certain = rounded(np.maximum(whole, 0), np.clip(power, -HIGHEST_POWER, HIGHEST_POWER))
        certain &= (whole >= 0) & (np.abs(power) <= HIGHEST_POWER)
        for row in np.flatnonzero(~certain).tolist():
            values[row] = self._read_by_python(row, number)
        return values

    def _read_by_python(self, row: int, number: Number) -> float:
        runs = number.digits if number.exponent is None else (*number.digits, number.exponent)
        written = self._written(row, runs[0], runs[-1])
        return float((written if number.whole else b"." + written)[:LONGEST].replace(b",", b""))

    def _written(self, row: int, first: int, last: int) -> bytes:
        """What is written from one run of digits to another."""
        start, edges = int(self._starts[row]), self._edges[row if len(self._edges) > 1 else 0]
        return self._text[start + int(edges[2 * first]) : start + int(edges[2 * last + 1])]


def rounded(whole: NDArray[np.int64], power: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """``whole * 10 ** power`` rounded to float64, and where that is certain.

    Whole number, power of ten and result are sums of two float64 (Dekker 1971), so the result is known to about 2**-104
    of itself. That settles how it rounds unless it lies that near to the middle between two float64.
    """
    high = whole.astype(np.float64)
    low = (whole - high.astype(np.int64)).astype(np.float64)
    size = np.abs(power)
    ten, ten_rest = POWERS[size], POWERS_REST[size]
    values = high / ten
    product, error = _product(values, ten)
    rest = (high - product - error - values * ten_rest + low) / ten
    if (power > 0).any():
        product, error = _product(high, ten)
        values = np.where(power > 0, product, values)
        rest = np.where(power > 0, error + high * ten_rest + low * ten, rest)
    doubt = values * DOUBT
    return values + rest, values + (rest - doubt) == values + (rest + doubt)


def _product(one: NDArray[np.float64], other: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A product, and what its rounding left out."""
    product = one * other
    one_high, other_high = (SPLITTER * part - (SPLITTER * part - part) for part in (one, other))
    one_low, other_low = one - one_high, other - other_high
    return product, one_high * other_high - product + one_high * other_low + one_low * other_high + one_low * other_low
