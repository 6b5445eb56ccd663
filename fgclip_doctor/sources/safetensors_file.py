"""A safetensors file: its header read by hand, its tensors left on disk.

The format is 8 bytes of header length (little endian), a JSON header, and the data that the header's offsets point into
(https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fgclip_doctor.run import Source, Tensor
from fgclip_doctor.sources.files import Unreadable, open_regular, parse_json, read_at
from fgclip_doctor.sources.measure import SIZES, Stored, is_shape

HEADER_LIMIT = 16 << 20  # bytes: a hundred thousand tensors
DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
}


def read(path: Path) -> dict[str, Tensor]:
    """The tensors by name, in the order of the header."""
    with open_regular(path) as descriptor:
        size = os.fstat(descriptor).st_size
        if size < 8:
            raise Unreadable(path, f"is too short for a safetensors file ({size} bytes)")
        length = int.from_bytes(read_at(descriptor, path, 0, 8), "little")
        if length > size - 8:
            raise Unreadable(path, f"claims a safetensors header of {length:,} bytes in a file of {size:,}")
        if length > HEADER_LIMIT:
            raise Unreadable(path, f"has a safetensors header of {length:,} bytes; the limit is {HEADER_LIMIT:,}")
        header = parse_json(path, read_at(descriptor, path, 8, length))
    if not isinstance(header, dict):
        raise Unreadable(path, "has a safetensors header that is not a JSON object")
    stored = dict(_entries(path, header, 8 + length, size))
    _check_overlaps(path, stored)
    return {name: one.tensor(name, Source(str(path), name)) for name, one in stored.items()}


def _entries(path: Path, header: dict[str, Any], start: int, size: int) -> Iterator[tuple[str, Stored]]:
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        match entry:
            case {"dtype": str(code), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
                dtype = DTYPES.get(code)
            case _:
                raise Unreadable(path, f"tensor {name!r} has no dtype, shape and offsets in the header")
        if dtype is None:
            raise Unreadable(path, f"tensor {name!r} has the unknown dtype {code!r}")
        if not is_shape(shape):
            raise Unreadable(path, f"tensor {name!r} has an impossible shape")
        if not 0 <= begin <= end <= size - start:
            raise Unreadable(path, f"tensor {name!r} lies outside the file, which may be truncated")
        if math.prod(shape) * SIZES[dtype] != end - begin:
            raise Unreadable(path, f"tensor {name!r} is not as long as its shape and dtype say")
        yield name, Stored(path, size, start + begin, dtype, tuple(shape))


def _check_overlaps(path: Path, stored: dict[str, Stored]) -> None:
    end, before = 0, ""
    for name, one in sorted(stored.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if one.nbytes and one.offset < end:
            raise Unreadable(path, f"tensors {before!r} and {name!r} overlap")
        end, before = max(end, one.offset + one.nbytes), name
