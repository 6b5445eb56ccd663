"""Safetensors files are read as their own library reads them; headers that lie are refused."""

from __future__ import annotations

import json
import math
import os
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from fgclip_doctor.sources import safetensors_file
from fgclip_doctor.sources.files import Unreadable


def written(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded) if length is None else length) + encoded + data)
    return path


def refused(path: Path) -> str:
    with pytest.raises(Unreadable) as caught:
        safetensors_file.read(path)
    assert str(caught.value).isprintable()
    return str(caught.value).removeprefix(f"{path}: ")


def entry(begin: Any, end: Any, shape: Any = (2,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize("dtype", safetensors_file.DTYPES.values())
def test_every_dtype(tmp_path: Path, dtype: str) -> None:
    tensors = {
        name: torch.arange(math.prod(shape)).reshape(shape).to(getattr(torch, dtype))
        for name, shape in {"w": (2, 3, 4), "scalar": (), "empty": (0, 3)}.items()
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    found = safetensors_file.read(tmp_path / "x.safetensors")
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        narrow = tensor.is_floating_point() and tensor.dtype != torch.float64
        np.testing.assert_array_equal(found[name].values(), (tensor.float() if narrow else tensor).numpy())
        assert (found[name].dtype, found[name].shape) == (dtype, tuple(tensor.shape))
        assert found[name].statistics.count == tensor.numel()
        assert str(found[name].source) == f"{tmp_path / 'x.safetensors'}: {name}"


def test_order_is_that_of_the_header(tmp_path: Path) -> None:
    path = written(tmp_path / "x", {"b": entry(8, 16), "__metadata__": {"a": "b"}, "a": entry(0, 8)}, bytes(16))
    assert list(safetensors_file.read(path)) == ["b", "a"]


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ([], "not a JSON object"),
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        ({"a": 1}, "no dtype, shape and offsets"),
        ({"a": {"dtype": "F32", "shape": [2]}}, "no dtype, shape and offsets"),
        ({"a": entry(0, 8, dtype=["F32"])}, "no dtype, shape and offsets"),
        ({"a": entry(0, "8")}, "no dtype, shape and offsets"),
        ({"a": entry(0, 8, dtype="F4\x1b[31m")}, "unknown dtype"),
        ({"a": entry(0, 8, [-2])}, "impossible shape"),
        ({"a": entry(0, 8, [2.0])}, "impossible shape"),
        ({"a": entry(0, 8, [True, 2])}, "impossible shape"),
        ({"a": entry(0, 8, [1 << 63])}, "impossible shape"),
        ({"a": entry(0, 8, [1] * 65)}, "impossible shape"),
        ({"a": entry(0, 8, [1 << 62, 1 << 62])}, "impossible shape"),
        ({"a": entry(0, 0, [1 << 40, 1 << 40, 0])}, "impossible shape"),
        ({"a": entry(0, 8, [3])}, "not as long as"),
        ({"a": entry(0, 8, [0])}, "not as long as"),
        ({"a": entry(-8, 0)}, "outside the file"),
        ({"a": entry(8, 0)}, "outside the file"),
        ({"a": entry(16, 24)}, "outside the file, which may be truncated"),
        ({"a": entry(1 << 62, (1 << 62) + 8)}, "outside the file"),
        ({"a": entry(0, 8), "b": entry(4, 12)}, "overlap"),
        ({"a": entry(0, 8), "b": entry(0, 8)}, "overlap"),
        ({"a": entry(0, 16, [4]), "b": entry(4, 4, [0]), "c": entry(8, 16)}, "overlap"),
    ],
)
def test_headers_that_lie(tmp_path: Path, header: Any, why: str) -> None:
    assert why in refused(written(tmp_path / "x", header, bytes(16)))


@pytest.mark.parametrize("length", [17, 100, 1 << 62, (1 << 64) - 1])
def test_header_longer_than_the_file(tmp_path: Path, length: int) -> None:
    assert f"claims a safetensors header of {length:,} bytes" in refused(
        written(tmp_path / "x", b"{}", bytes(8), length)
    )


def test_header_over_the_limit_is_not_read(tmp_path: Path) -> None:
    path = written(tmp_path / "x", b"{}", length=1 << 30)
    os.truncate(path, 2 << 30)
    assert "the limit is" in refused(path)


def test_cut_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(3), "b": torch.ones(2, dtype=torch.bfloat16)}, path)
    sound = path.read_bytes()
    for length in range(len(sound)):
        path.write_bytes(sound[:length])
        assert refused(path)


def test_flipped_bits(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(3), "b": torch.ones(2, dtype=torch.bfloat16)}, path)
    sound = path.read_bytes()
    generator = random.Random(0)
    for place in range(len(sound)):
        damaged = bytearray(sound)
        damaged[place] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        try:
            found = safetensors_file.read(path)
        except Unreadable:
            continue
        assert all(tensor.statistics.count == tensor.size for tensor in found.values())


@given(
    header=st.recursive(
        st.none() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["dtype", "shape", "data_offsets"]), inner)
        ),
    )
)
def test_any_header(header: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = written(tmp_path_factory.getbasetemp() / "any", {"w": header})
    assert refused(path)
