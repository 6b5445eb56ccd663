"""TensorBoard's record format, read by columns: frames, checksums, and the scalars in the events.

A file is a chain of records: length (8 bytes), masked CRC-32C of the length (4), an `Event` message, its CRC (4). Most
records of a file differ only in their wall time, step, tag and value, so those of one length are gathered as the
rows of a matrix. One of them is parsed; the rows that equal it everywhere else are decoded as columns, and the next
shape is learnt from what is left. Records of no common shape are parsed one by one. Nothing is taken on trust: a row
counts only if every byte of it is accounted for and its checksum holds.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
MARGIN = 256  # bytes that a buffer holds before and after the records, so that rows may be gathered across its ends
SMALL = 1 << 16  # lengths below it are framed by columns
WIDE = 1024  # records longer than this are parsed one by one
FEW = 8  # so are the records of a length that only so few have
MAX_TAG = 1000  # bytes
MAX_TEXT = 1 << 18  # bytes
LANE = 256  # columns of a checksum that are looked up directly; longer records are folded
POLYNOMIAL = 0x82F63B78  # CRC-32C (Castagnoli), reflected
MASK = 0xA282EAD8  # TFRecord rotates a checksum by 15 bits and adds this


class MalformedError(ValueError):
    """Bytes that are no protocol buffer message."""


# --- checksums -----------------------------------------------------------------------------------------------------


@cache
def _tables() -> NDArray[np.uint32]:
    """(LANE, 256): what a byte adds to the CRC (from 0) of a message if so many bytes follow it. XOR sums them up."""
    tables = np.empty((LANE, 256), np.uint32)
    tables[0] = np.arange(256)
    for _ in range(8):
        tables[0] = (tables[0] >> 1) ^ (tables[0] & 1) * np.uint32(POLYNOMIAL)
    for place in range(1, LANE):
        tables[place] = (tables[place - 1] >> 8) ^ tables[0][tables[place - 1] & 0xFF]
    return tables


@cache
def _shift(doublings: int) -> NDArray[np.uint32]:
    """(4, 256): what each byte of a CRC becomes once LANE * 2**doublings zero bytes have followed."""
    if doublings == 0:
        return np.stack([_tables()[LANE - 1 - byte] for byte in range(4)])
    half = _shift(doublings - 1)
    return np.stack([_shifted(table, half) for table in half])


def _shifted(crc: NDArray[np.uint32], shift: NDArray[np.uint32]) -> NDArray[np.uint32]:
    result = np.zeros_like(crc)
    for byte in range(4):
        result ^= shift[byte][crc >> np.uint32(8 * byte) & np.uint32(0xFF)]
    return result


def _linear(rows: Bytes) -> NDArray[np.uint32]:
    """(n, width) -> (n,): the CRC from 0, which is linear over GF(2). Wide rows: halves are joined, lane by lane."""
    count, width = rows.shape
    if width > LANE:  # a power of two
        lanes: NDArray[np.uint32] = _linear(rows.reshape(-1, LANE)).reshape(count, -1)
        for doublings in range((width // LANE).bit_length() - 1):
            lanes = _shifted(lanes[:, ::2], _shift(doublings)) ^ lanes[:, 1::2]
        return lanes[:, 0]
    columns = np.ascontiguousarray(rows.T)
    crc = np.zeros(count, np.uint32)
    for column, table in zip(columns, _tables()[width - 1 :: -1], strict=False):
        crc ^= table.take(column)
    return crc


def _masked(crc: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """From the linear CRC of a message with its first four bytes inverted, to what a record stores."""
    crc = ~crc
    return (crc >> np.uint32(15) | crc << np.uint32(17)) + np.uint32(MASK)


@cache
def _header_checksums() -> NDArray[np.uint32]:
    """(SMALL,): the masked CRC of each small length."""
    headers = np.arange(SMALL, dtype="<u8").view(np.uint8).reshape(SMALL, 8).copy()
    headers[:, :4] ^= 0xFF
    return _masked(_linear(headers))


def _intact(data: Bytes, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of the messages in `data` have the checksum that follows them."""
    stored = _gather(data, starts + lengths, 4).view("<u4")[:, 0]
    result = np.zeros(len(starts), np.bool_)
    for width, chosen in _by_width(lengths):
        ends = starts[chosen] + lengths[chosen]
        rows = _gather(data, ends - width, width) if width <= LANE else _right_aligned(data, ends, width)
        front = width - lengths[chosen]
        if front.any():  # zeros in front leave a linear CRC as it is
            rows[np.arange(width) < front[:, None]] = 0
            rows[np.arange(len(rows))[:, None], front[:, None] + np.arange(4)] ^= 0xFF
        else:
            rows[:, :4] ^= 0xFF
        result[chosen] = _masked(_linear(rows)) == stored[chosen]
    return result


def _by_width(lengths: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """The records that are checked together: those of one length if they are many, else of one power of two."""
    order = ordered(lengths)
    values, counts = np.unique(lengths, return_counts=True)
    widths = np.where((counts >= 64) & (values <= LANE), values, 1 << np.ceil(np.log2(values)).astype(np.int64))
    of_records = np.repeat(widths, counts)
    for width in np.unique(widths).tolist():
        yield width, order[of_records == width]


def _right_aligned(data: Bytes, ends: NDArray[np.int64], width: int) -> Bytes:
    """Long rows that may begin before the buffer does."""
    rows = np.zeros((len(ends), width), np.uint8)
    for row, end in zip(rows, ends.tolist(), strict=True):
        have = min(end, width)
        row[width - have :] = data[end - have : end]
    return rows


def _gather(data: Bytes, places: NDArray[np.int64], width: int) -> Bytes:
    """(n, width): the bytes of `data` from each place on."""
    windows = np.ndarray((len(data) - width + 1,), f"V{width}", buffer=data, strides=(1,))
    rows: Bytes = windows[places].view(np.uint8).reshape(len(places), width)
    return rows


def ordered(values: NDArray[np.int64]) -> NDArray[np.intp]:
    """What sorts values of 0 and above, equal ones in their order. Numpy has a radix sort for 16 bits: much faster."""
    small = len(values) and values.max() < 1 << 16
    return np.argsort(values.astype(np.uint16) if small else values, kind="stable")


# --- frames --------------------------------------------------------------------------------------------------------


@dataclass
class Frames:
    """The records found in a stretch of bytes. `starts` and `lengths` are those of the messages."""

    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    end: int  # where the next record begins that is not whole
    needed: int | None  # how long that one is, header included, if its header is whole and intact
    damaged: list[tuple[int, int]]  # stretches that are no record


def frame(data: Bytes, begin: int, end: int) -> Frames:
    """The chain of records in data[begin:end], which has MARGIN more bytes on each side.

    Every place whose header's checksum fits and whose message begins with a wall time may be a record. If they follow
    on each other, that is the chain; where they don't, it is followed record by record, and a stretch without a header
    is hopped over, to the next place that has one.
    """
    places = np.flatnonzero(data[begin + 12 : end] == 0x09) + begin  # 0x09: Event.wall_time
    lengths = _gather(data, places, 8).view("<u8")[:, 0]
    places, lengths = places[lengths < SMALL], lengths[lengths < SMALL].astype(np.int64)
    valid = _gather(data, places + 8, 4).view("<u4")[:, 0] == _header_checksums()[lengths]
    places, lengths = places[valid], lengths[valid]
    after = places + lengths + 16
    breaks = np.append(np.flatnonzero(places[1:] != after[:-1]), len(places) - 1)
    pieces, damaged, position, needed = [], [], begin, None
    while end - position >= 12:
        index = int(np.searchsorted(places, position))
        if index < len(places) and places[index] == position:
            last = int(breaks[np.searchsorted(breaks, index)])
            if after[last] > end:
                needed = int(lengths[last]) + 16
                last -= 1
            pieces.append((places[index : last + 1], lengths[index : last + 1]))
            position = int(after[last]) if last >= index else position
            if needed:
                break
            continue
        length = _length(data[position : position + 12])
        if length is None:
            following = int(places[index]) if index < len(places) else end - 11  # a header may go on after the end
            damaged.append((position, following))
            position = following
        elif length + 16 > end - position:
            needed = length + 16
            break
        else:
            pieces.append((np.array([position]), np.array([length])))
            position += length + 16
    starts = np.concatenate([np.empty(0, np.int64), *(starts for starts, _ in pieces)]) + 12
    return Frames(
        starts, np.concatenate([np.empty(0, np.int64), *(ones for _, ones in pieces)]), position, needed, damaged
    )


def _length(header: Bytes) -> int | None:
    """The length that a header states, or None if its checksum does not fit."""
    length, stored = struct.unpack("<QI", header.tobytes())
    if length < SMALL:
        return int(length) if _header_checksums()[length] == stored else None
    row = header[None, :8].copy()
    row[:, :4] ^= 0xFF
    return int(length) if _masked(_linear(row))[0] == stored else None


def is_record(header: bytes) -> bool:
    """True if a file that begins so is one of records."""
    return len(header) >= 12 and _length(np.frombuffer(header[:12], np.uint8)) is not None


# --- messages ------------------------------------------------------------------------------------------------------


class Scalar(NamedTuple):
    """One value of an event. `tag` and `value` say where in the message they stand; `format` is that of struct."""

    name: str
    number: float
    tag: tuple[int, int]
    value: tuple[int, str] | None  # None: encoded in a variable number of bytes


@dataclass
class Message:
    """What one `Event` message says."""

    wall: float = 0.0
    step: int = 0
    wall_at: int | None = None
    step_at: tuple[int, int] | None = None
    scalars: list[Scalar] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)  # tag, text
    settings: list[dict[str, Any]] = field(default_factory=list)  # of the HParams plugin


# TensorProto.dtype -> struct's format of an element of tensor_content
FORMATS = {1: "<f", 2: "<d", 3: "<i", 4: "<B", 5: "<h", 6: "<b", 9: "<q", 17: "<H", 19: "<e", 22: "<I", 23: "<Q"}
STRING = 7


def fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(number, wire type, start, end) of each field of the message in data[start:end]. Raises `MalformedError`."""
    while start < end:
        key, start = varint(data, start, end)
        wire = key & 7
        if wire == 2:
            length, start = varint(data, start, end)
            stop = start + length
        elif wire == 0:
            stop = varint(data, start, end)[1]
        elif wire in (1, 5):
            stop = start + (8 if wire == 1 else 4)
        else:
            raise MalformedError(f"wire type {wire}")
        if stop > end:
            raise MalformedError("a field is longer than its message")
        yield key >> 3, wire, start, stop
        start = stop


def varint(data: bytes, start: int, end: int) -> tuple[int, int]:
    if start < end and data[start] < 0x80:  # nearly all are of one byte
        return data[start], start + 1
    value = 0
    for place in range(start, min(end, start + 10)):
        value |= (data[place] & 0x7F) << 7 * (place - start)
        if data[place] < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, place + 1
    raise MalformedError("a varint has no end")


def signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def parse(data: bytes) -> Message:
    """The message of one record, unknown fields passed over. Raises `MalformedError`."""
    message = Message()
    for number, wire, start, end in fields(data, 0, len(data)):
        if (number, wire) == (1, 1):
            message.wall, message.wall_at = struct.unpack_from("<d", data, start)[0], start
        elif (number, wire) == (2, 0):
            message.step, message.step_at = signed(varint(data, start, end)[0]), (start, end)
        elif (number, wire) == (5, 2):
            for inner, kind, begin, stop in fields(data, start, end):
                if (inner, kind) == (1, 2):
                    _value(message, data, begin, stop)
    return message


def _value(message: Message, data: bytes, start: int, end: int) -> None:
    """One `Summary.Value`: of its kinds of values, the last one counts."""
    tag, content, simple, plugin = (start, start), (0, 0), False, (b"", b"")
    for number, wire, begin, stop in fields(data, start, end):
        if (number, wire) == (1, 2):
            tag = (begin, stop)
        elif (number, wire) == (2, 5) or (number, wire) == (8, 2):
            content, simple = (begin, stop), number == 2
        elif number in (3, 4, 5, 6) and wire == 2:  # image, histogram, audio
            content = (0, 0)
        elif (number, wire) == (9, 2):
            plugin = _plugin(data, begin, stop)
    if plugin[0] == b"hparams":
        message.settings += _settings(plugin[1])
    if tag[1] - tag[0] > MAX_TAG or not content[1]:
        return
    name = data[slice(*tag)].decode("utf-8", "backslashreplace")
    if simple:
        message.scalars.append(Scalar(name, struct.unpack_from("<f", data, content[0])[0], tag, (content[0], "<f")))
    elif plugin[0] in (b"", b"scalars"):  # later records of a tag may leave the plugin out
        message.scalars += _tensor_scalar(name, tag, data, *content)
    elif plugin[0] == b"text":
        message.texts += [(name, text) for text in _strings(data, *content)]


def _plugin(data: bytes, start: int, end: int) -> tuple[bytes, bytes]:
    """The name of the plugin in a `SummaryMetadata`, and what it keeps there."""
    found = {
        inner: data[begin:stop]
        for number, wire, outer, outer_end in fields(data, start, end)
        if (number, wire) == (1, 2)
        for inner, kind, begin, stop in fields(data, outer, outer_end)
        if kind == 2
    }
    return found.get(1, b""), found.get(2, b"")


def _tensor_scalar(name: str, tag: tuple[int, int], data: bytes, start: int, end: int) -> Iterator[Scalar]:
    """The value of a `TensorProto` without dimensions, in any of the fields that may hold it."""
    dtype, found = 0, None
    for number, wire, begin, stop in fields(data, start, end):
        if (number, wire) == (1, 0):
            dtype = varint(data, begin, stop)[0]
        elif (number, wire) == (2, 2) and any(inner == 2 for inner, *_ in fields(data, begin, stop)):
            return  # it has dimensions
        elif number in (4, 5, 6, 7, 10) and stop > begin:
            found = number, wire, begin, stop
    if found is None:
        return
    number, wire, begin, stop = found
    if number in (7, 10):
        integer, after = varint(data, begin, stop)
        if dtype in FORMATS and after == stop:
            yield Scalar(name, float(signed(integer)), tag, None)
        return
    code = {4: FORMATS.get(dtype), 5: "<f" if dtype == 1 else None, 6: "<d" if dtype == 2 else None}[number]
    if code is not None and struct.calcsize(code) == stop - begin and (number != 4 or wire == 2):
        yield Scalar(name, float(struct.unpack_from(code, data, begin)[0]), tag, (begin, code))


def _strings(data: bytes, start: int, end: int) -> Iterator[str]:
    for number, wire, begin, stop in fields(data, start, end):
        if (number, wire) == (8, 2) and stop - begin <= MAX_TEXT:
            yield data[begin:stop].decode("utf-8", "replace")


def _settings(data: bytes) -> Iterator[dict[str, Any]]:
    """What `HParamsPluginData.session_start_info` maps names to; whole numbers are kept there as floats too."""
    for number, wire, start, end in fields(data, 0, len(data)):
        if (number, wire) != (3, 2):
            continue
        found: dict[str, Any] = {}
        for inner, kind, begin, stop in fields(data, start, end):
            if (inner, kind) == (1, 2):  # an entry of the map: 1 is the key, 2 a google.protobuf.Value
                entry = {one: (first, last) for one, two, first, last in fields(data, begin, stop) if two == 2}
                name = data[slice(*entry.get(1, (0, 0)))].decode("utf-8", "replace")
                for one, two, first, last in fields(data, *entry.get(2, (0, 0))):
                    if (one, two) == (2, 1):
                        value = struct.unpack_from("<d", data, first)[0]
                        found[name] = int(value) if value.is_integer() else value
                    elif (one, two) == (3, 2):
                        found[name] = data[first:last].decode("utf-8", "replace")
                    elif (one, two) == (4, 0):
                        found[name] = bool(varint(data, first, last)[0])
        yield found


# --- columns -------------------------------------------------------------------------------------------------------


@dataclass
class Columns:
    """Scalars in the order of their records. `names` holds a name for each tag that `tags` refers to."""

    names: list[str]
    tags: NDArray[np.int64]
    steps: NDArray[np.int64]
    walls: NDArray[np.float64]
    values: NDArray[np.float64]
    messages: list[Message]  # that hold texts or settings
    broken: int  # records whose checksum failed, or that are no message


@dataclass
class _Gathered:
    """Columns in the making."""

    ids: dict[str, int] = field(default_factory=dict)
    parts: list[tuple[NDArray[Any], ...]] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    broken: int = 0

    def tag(self, name: str) -> int:
        return self.ids.setdefault(name, len(self.ids))


def decode(data: Bytes, frames: Frames, *, checksums: bool = True) -> Columns:
    """The scalars, texts and settings in the records of `frames`."""
    gathered = _Gathered()
    starts, lengths = frames.starts, frames.lengths
    usable = lengths >= 9  # nothing shorter holds a wall time
    if checksums:
        usable[usable] = _intact(data, starts[usable], lengths[usable])
        gathered.broken = int((~usable & (lengths >= 9)).sum())
    order = np.flatnonzero(usable)
    order = order[ordered(lengths[order])]
    sizes = lengths[order]
    bounds = [0, *(np.flatnonzero(np.diff(sizes)) + 1).tolist(), len(order)]
    for low, high in pairwise(bounds):
        rest = order[low:high]
        if high - low > FEW and sizes[low] <= WIDE:
            rest = _decode_alike(data, starts, rest, int(sizes[low]), gathered)
        for record in rest.tolist():
            _decode_one(data[starts[record] :][: lengths[record]].tobytes(), record, gathered)
    if not gathered.parts:
        gathered.parts.append((np.empty(0, np.int64),) * 3 + (np.empty(0),) * 2)
    records, tags, steps, walls, values = (np.concatenate(column) for column in zip(*gathered.parts, strict=True))
    order = ordered(records)
    return Columns(
        list(gathered.ids), tags[order], steps[order], walls[order], values[order], gathered.messages, gathered.broken
    )


def _decode_one(data: bytes, record: int, gathered: _Gathered) -> None:
    try:
        message = parse(data)
    except MalformedError:
        gathered.broken += 1
        return
    if message.texts or message.settings:
        gathered.messages.append(message)
    if message.scalars:
        count = len(message.scalars)
        gathered.parts.append(
            (
                np.full(count, record),
                np.array([gathered.tag(one.name) for one in message.scalars]),
                np.full(count, message.step),
                np.full(count, message.wall),
                np.array([one.number for one in message.scalars], np.float64),
            )
        )


def _decode_alike(
    data: Bytes, starts: NDArray[np.int64], records: NDArray[np.intp], length: int, gathered: _Gathered
) -> NDArray[np.intp]:
    """Decode records of one length, shape by shape. Returns those that no shape was learnt from."""
    width = -(-length // 8) * 8
    rows = _gather(data, starts[records], width)
    others = []
    for _ in range(16 + len(records) // 64):  # shapes that are tried; more are rare, and cost more than they save
        if not len(records):
            break
        try:
            message = parse(rows[0, :length].tobytes())
        except MalformedError:
            message = Message()
        shape = _shape(rows[0], length, message)
        if shape is None:
            others.append(records[:1])
            records, rows = records[1:], rows[1:]
            continue
        matching = shape.matches(rows)
        chosen, alike = records[matching], rows[matching]
        names, of_row, exact = shape.tags(alike)
        if not exact.all():
            others.append(chosen[~exact])
            chosen, alike, of_row = chosen[exact], alike[exact], of_row[exact]
        tags = np.array([gathered.tag(name) for name in names])
        gathered.parts.append((chosen, tags[of_row], *shape.columns(alike)))
        records, rows = records[~matching], rows[~matching]
    return np.concatenate([*others, records])


@dataclass
class _Shape:
    """A record of one scalar: where its wall time, step, tag and value stand. All other bytes are the shape's own."""

    pattern: NDArray[np.uint64]  # (words,) of the row
    fixed: NDArray[np.uint64]  # the bits of them that every record of the shape shares
    dtype: np.dtype[Any]
    step: tuple[int, int]
    tag: tuple[int, int]

    def matches(self, rows: Bytes) -> NDArray[np.bool_]:
        differs = np.zeros(len(rows), np.uint64)
        for word, pattern, fixed in zip(rows.view("<u8").T, self.pattern, self.fixed, strict=True):
            differs |= (word ^ pattern) & fixed
        same: NDArray[np.bool_] = differs == 0
        return same

    def tags(self, rows: Bytes) -> tuple[list[str], NDArray[np.intp], NDArray[np.bool_]]:
        """The distinct tags, which of them each row has, and if it really has: rows are grouped by a hash."""
        length = self.tag[1] - self.tag[0]
        padded = np.zeros((len(rows), -(-length // 8) * 8), np.uint8)
        padded[:, :length] = rows[:, slice(*self.tag)]
        words = padded.view("<u8")
        keys = words[:, 0].copy()
        for word in words.T[1:]:
            keys = (keys ^ keys >> np.uint64(29)) * np.uint64(0x9E37_79B9_7F4A_7C15) + word
        distinct, inverse = np.unique(keys, return_inverse=True)
        first = np.empty(len(distinct), np.int64)
        first[inverse] = np.arange(len(rows))  # any row of each will do
        names = [padded[row, :length].tobytes().decode("utf-8", "backslashreplace") for row in first.tolist()]
        return names, inverse, (words == words[first][inverse]).all(axis=1)

    def columns(self, rows: Bytes) -> tuple[NDArray[Any], ...]:
        """Steps, wall times and values."""
        step = np.zeros(len(rows), np.uint64)
        for place in range(*self.step):
            step |= (rows[:, place] & np.uint8(0x7F)).astype(np.uint64) << np.uint64(7 * (place - self.step[0]))
        records = rows.view(self.dtype)[:, 0]
        with np.errstate(invalid="ignore"):  # a signalling NaN is a NaN
            return step.view(np.int64), records["wall"].astype(np.float64), records["value"].astype(np.float64)


def _shape(row: Bytes, length: int, message: Message) -> _Shape | None:
    """What the records have in common that say the same as this one, in the same places, but for the numbers."""
    scalar = message.scalars[0] if len(message.scalars) == 1 else None
    if message.texts or message.settings or message.wall_at is None or scalar is None or scalar.value is None:
        return None
    if scalar.tag[0] == scalar.tag[1]:
        return None
    place, code = scalar.value
    fixed = np.zeros(len(row), np.uint8)
    fixed[:length] = 0xFF
    for start, end in ((message.wall_at, message.wall_at + 8), (place, place + struct.calcsize(code)), scalar.tag):
        fixed[start:end] = 0
    step = message.step_at or (0, 0)
    fixed[slice(*step)] = 0x80  # the bits that say how long the step is
    layout = {"names": ["wall", "value"], "formats": ["<f8", code], "offsets": [message.wall_at, place]}
    dtype = np.dtype({**layout, "itemsize": len(row)})  # type: ignore[call-overload]
    return _Shape(row.view("<u8").copy(), fixed.view("<u8"), dtype, step, scalar.tag)
