"""Statistics agree with numpy's in float64, in any dtype, layout and size, and memory stays bounded."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fgclip_doctor.run import Missing, Source, Statistics, Tensor
from fgclip_doctor.sources.files import Unreadable
from fgclip_doctor.sources.measure import CHUNK_ELEMENTS, SIZES, WORTH_HALVING, Stored

FLOATS = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")


def stored(path: Path, tensor: torch.Tensor, name: str = "w") -> Tensor:
    """`tensor` written as it is (with its strides) behind seven bytes of something else."""
    storage = tensor.untyped_storage()
    content = torch.tensor([], dtype=torch.uint8).set_(storage, 0, (storage.nbytes(),), (1,)).numpy().tobytes()
    path.write_bytes(b"header:" + content)
    dtype = str(tensor.dtype).removeprefix("torch.")
    offset = 7 + tensor.storage_offset() * SIZES[dtype]
    place = Stored(path, 7 + len(content), offset, dtype, tuple(tensor.shape), tuple(tensor.stride()))
    return place.tensor(name, Source(str(path), name))


def expected(tensor: torch.Tensor) -> Statistics:
    """The definitions, in the plainest way."""
    everything = tensor.double().numpy().ravel()
    values = everything[np.isfinite(everything)]
    centred = values - values.mean() if values.size else values
    variance = float(np.mean(centred**2)) if values.size else 0.0
    wide = torch.from_numpy(values)

    def exact(dtype: torch.dtype) -> float:
        return float((wide.to(dtype).double() == wide).double().mean()) if values.size else 1.0

    return Statistics(
        count=everything.size,
        mean=float(values.mean()) if values.size else 0.0,
        std=math.sqrt(variance),
        norm=float(np.linalg.norm(values)),
        minimum=float(values.min()) if values.size else 0.0,
        maximum=float(values.max()) if values.size else 0.0,
        nans=int(np.isnan(everything).sum()),
        infs=int(np.isinf(everything).sum()),
        zeros=int((everything == 0).sum()),
        bf16_exact=exact(torch.bfloat16),
        fp16_exact=exact(torch.float16),
    )


def agree(found: Statistics, wanted: Statistics) -> None:
    for name in ("count", "minimum", "maximum", "nans", "infs", "zeros", "bf16_exact", "fp16_exact"):
        assert getattr(found, name) == pytest.approx(getattr(wanted, name), rel=1e-12), name
    spread = max(wanted.std, abs(wanted.mean) * 1e-7)  # float32 holds seven digits of what is far from zero
    assert found.mean == pytest.approx(wanted.mean, rel=1e-6, abs=1e-6 * spread)
    assert found.std == pytest.approx(wanted.std, rel=1e-6, abs=1e-6 * spread)
    assert found.norm == pytest.approx(wanted.norm, rel=1e-6)


def agree_exactly(found: Statistics, wanted: Statistics) -> None:
    """For numbers of 16 bits and fewer, which are counted and then computed with in float64."""
    agree(found, wanted)
    for name in ("mean", "std", "norm"):
        assert getattr(found, name) == pytest.approx(getattr(wanted, name), rel=1e-12, abs=1e-14 * wanted.std), name


def random(dtype: str, *shape: int, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(math.prod(shape))
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale + shift).to(getattr(torch, dtype))


@pytest.mark.parametrize("size", [1, 2, 7, CHUNK_ELEMENTS - 1, CHUNK_ELEMENTS, 3 * CHUNK_ELEMENTS + 5])
@pytest.mark.parametrize("dtype", FLOATS)
def test_floats(tmp_path: Path, dtype: str, size: int) -> None:
    tensor = random(dtype, size)
    found = stored(tmp_path / "x", tensor)
    agree(found.statistics, expected(tensor))
    wide = torch.float64 if dtype == "float64" else torch.float32
    np.testing.assert_array_equal(found.values(), tensor.to(wide).numpy())
    assert found.values().dtype == ("float64" if dtype == "float64" else "float32")


@pytest.mark.parametrize("dtype", ["int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"])
def test_integers(tmp_path: Path, dtype: str) -> None:
    tensor = (torch.arange(300_000) % 3 if dtype == "bool" else torch.arange(300_000) % 127).to(getattr(torch, dtype))
    found = stored(tmp_path / "x", tensor)
    agree(found.statistics, expected(tensor))
    np.testing.assert_array_equal(found.values(), tensor.numpy())
    assert found.values().dtype == dtype


@pytest.mark.parametrize("size", [CHUNK_ELEMENTS, 2 * CHUNK_ELEMENTS + 1, 20 * CHUNK_ELEMENTS + 3])
@pytest.mark.parametrize("shift", [0.0, 1.0])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int16", "uint16", "int8"])
def test_up_to_sixteen_bits_are_exact(tmp_path: Path, dtype: str, shift: float, size: int) -> None:
    scale = 0.02 if dtype.startswith(("float", "bfloat")) else 30.0
    tensor = random("float64", size, scale=scale, shift=shift).abs().to(getattr(torch, dtype))
    agree_exactly(stored(tmp_path / "x", tensor).statistics, expected(tensor))


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "int32", "uint64"])
def test_halves_measured_by_two_threads(tmp_path: Path, dtype: str) -> None:
    tensor = (random("float64", 9 * CHUNK_ELEMENTS + 3, scale=9).abs() + 1).to(getattr(torch, dtype))
    assert tensor.nbytes > WORTH_HALVING
    found = stored(tmp_path / "x", tensor)
    agree(found.statistics, expected(tensor))
    assert stored(tmp_path / "x", tensor).statistics == found.statistics  # whichever is done first


def test_what_fails_in_the_other_thread_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x"
    found = stored(path, torch.zeros(WORTH_HALVING))
    path.unlink()
    with pytest.raises(Unreadable, match="does not exist"):
        _ = found.statistics


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16", "float8_e4m3fn", "int64", "bool"])
@pytest.mark.parametrize("value", [0.0, 1.0, -0.0])
def test_one_value_throughout(tmp_path: Path, dtype: str, value: float) -> None:
    tensor = torch.full((CHUNK_ELEMENTS + 9,), value, dtype=getattr(torch, dtype))
    agree_exactly(stored(tmp_path / "x", tensor).statistics, expected(tensor))


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_complex_numbers_are_measured_by_their_parts(tmp_path: Path, dtype: str) -> None:
    tensor = torch.view_as_complex(random("float64", 50, 3, 2)).to(getattr(torch, dtype))
    found = stored(tmp_path / "x", tensor.t())
    assert found.statistics.count == 150
    assert found.statistics.norm == pytest.approx(float(tensor.abs().double().norm()))
    np.testing.assert_array_equal(found.values(), tensor.t().numpy())


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_every_pattern_of_eight_bits(tmp_path: Path, dtype: str) -> None:
    tensor = torch.arange(256, dtype=torch.uint8).view(getattr(torch, dtype))
    found = stored(tmp_path / "x", tensor)
    np.testing.assert_array_equal(found.values(), tensor.float().numpy())
    agree_exactly(found.statistics, expected(tensor))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_pattern_of_sixteen_bits(tmp_path: Path, dtype: str) -> None:
    tensor = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(getattr(torch, dtype))
    found = stored(tmp_path / "x", tensor)
    np.testing.assert_array_equal(found.values(), tensor.float().numpy())
    agree_exactly(found.statistics, expected(tensor))
    agree(stored(tmp_path / "x", tensor.float()).statistics, expected(tensor))


@pytest.mark.parametrize("scale", [1e-42, 1e-38, 1e-30, 1e-20, 1e-12, 1e-5, 1.0, 1e5, 1e9, 1e20, 1e37])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_any_magnitude(tmp_path: Path, dtype: str, scale: float) -> None:
    tensor = random(dtype, CHUNK_ELEMENTS + 100, scale=scale)
    agree(stored(tmp_path / "x", tensor).statistics, expected(tensor))


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e150, 1e300])
def test_beyond_the_range_of_squares_nothing_breaks(tmp_path: Path, scale: float) -> None:
    tensor = random("float64", 1000, scale=scale)
    found = stored(tmp_path / "x", tensor).statistics
    assert found.mean == pytest.approx(float(tensor.mean()), rel=1e-6)
    assert (found.minimum, found.maximum) == (float(tensor.min()), float(tensor.max()))


@pytest.mark.parametrize("shift", [1e-3, 1.0, 1e3, 1e6])
def test_spread_far_from_zero(tmp_path: Path, shift: float) -> None:
    tensor = random("float32", 2 * CHUNK_ELEMENTS, scale=0.1, shift=shift)
    agree(stored(tmp_path / "x", tensor).statistics, expected(tensor))


def test_chunks_of_unlike_values_are_merged(tmp_path: Path) -> None:
    parts = [random("float32", CHUNK_ELEMENTS, scale=scale, shift=shift) for scale, shift in ((1, 9), (5, -3), (0, 2))]
    tensor = torch.cat([*parts, random("float32", 77).exp()])
    agree(stored(tmp_path / "x", tensor).statistics, expected(tensor))


def test_constant_values_have_no_spread(tmp_path: Path) -> None:
    found = stored(tmp_path / "x", torch.full((3 * CHUNK_ELEMENTS,), 0.1)).statistics
    assert (found.mean, found.std) == (float(np.float32(0.1)), 0.0)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "float8_e5m2"])
def test_what_is_not_finite_is_counted_and_left_out(tmp_path: Path, dtype: str) -> None:
    tensor = random("float64", 3 * CHUNK_ELEMENTS)
    tensor[5] = math.nan
    tensor[CHUNK_ELEMENTS : CHUNK_ELEMENTS + 3] = math.inf
    tensor[-1] = -math.inf
    tensor = tensor.to(getattr(torch, dtype))
    found = stored(tmp_path / "x", tensor).statistics
    agree(found, expected(tensor))
    assert (found.nans, found.infs, found.finite) == (1, 4, False)


def test_nothing_finite_at_all(tmp_path: Path) -> None:
    found = stored(tmp_path / "x", torch.full((9,), math.nan)).statistics
    assert (found.count, found.nans, found.mean, found.norm) == (9, 9, 0.0, 0.0)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1, 1)])
def test_scalars_and_empty_tensors(tmp_path: Path, shape: tuple[int, ...]) -> None:
    tensor = torch.full(shape, 2.5)
    found = stored(tmp_path / "x", tensor)
    agree(found.statistics, expected(tensor))
    assert found.values().shape == shape
    assert found.digest


VIEWS = {
    "transposed": lambda t: t.t(),
    "permuted": lambda t: t.view(60, 10, 70).permute(2, 0, 1),
    "rows": lambda t: t[5:90:7],
    "columns": lambda t: t[:, 3:60:4],
    "one column": lambda t: t[:, 9],
    "block": lambda t: t[100:300, 10:20].t(),
    "expanded": lambda t: t[3].expand(50, 70),
    "expanded within": lambda t: t[:, 4].unsqueeze(1).expand(600, 30),
    "overlapping": lambda t: t.view(-1).unfold(0, 5, 2),
    "overlapping, as long as without": lambda t: t.view(-1).as_strided((4, 4), (2, 3)),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int64", "float8_e5m2"])
def test_views(tmp_path: Path, dtype: str, view: str) -> None:
    whole = (random("float64", 600, 70) * 9).to(getattr(torch, dtype))
    tensor = VIEWS[view](whole)
    found = stored(tmp_path / "x", tensor)
    agree(found.statistics, expected(tensor))
    np.testing.assert_array_equal(found.values(), tensor.to(torch.int64 if dtype == "int64" else torch.float32).numpy())


@given(data=st.data())
def test_any_view(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    shape = data.draw(st.lists(st.integers(1, 4), max_size=4))
    strides = data.draw(st.lists(st.integers(0, 9), min_size=len(shape), max_size=len(shape)))
    tensor = torch.arange(130.0).as_strided(shape, strides, data.draw(st.integers(0, 9)))
    found = stored(tmp_path_factory.getbasetemp() / "any", tensor)
    agree(found.statistics, expected(tensor))
    np.testing.assert_array_equal(found.values(), tensor.numpy())


def test_view_that_does_not_fit_a_chunk(tmp_path: Path) -> None:
    whole = random("float32", 1200, 700)
    for tensor in (whole[::3, ::2], whole.t()[5:], whole[:, 600:], whole[:, 1]):
        agree(stored(tmp_path / "x", tensor).statistics, expected(tensor))


def test_digest_tells_bits_dtype_and_shape_apart(tmp_path: Path) -> None:
    tensor = random("float32", 300, 700)
    digest = stored(tmp_path / "a", tensor).digest
    assert stored(tmp_path / "b", tensor.clone(), "other name").digest == digest
    near = tensor.clone()
    near[299, 699] = torch.nextafter(near[299, 699], torch.tensor(9.0))
    others = [near, tensor.t(), tensor.t().contiguous(), tensor.view(700, 300), tensor.view(torch.int32), -tensor]
    digests = {stored(tmp_path / "b", other).digest for other in others}
    assert len(digests) == len(others)
    assert digest not in digests


def test_other_byte_order(tmp_path: Path) -> None:
    array = np.arange(20, dtype=">f4").reshape(4, 5)
    (tmp_path / "x").write_bytes(array.tobytes())
    big = Stored(tmp_path / "x", 80, 0, "float32", (4, 5), byteorder=">").tensor("w", Source("x"))
    np.testing.assert_array_equal(big.values(), array)
    assert big.values().dtype == np.float32
    assert big.statistics.maximum == 19
    assert big.digest == stored(tmp_path / "y", torch.arange(20.0).view(4, 5)).digest


def test_file_that_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    found = stored(path, torch.zeros(100))
    os.truncate(path, 300)
    for touch in (found.values, lambda: found.statistics, lambda: found.digest):
        with pytest.raises(Unreadable, match=f"^{path}: has changed"):
            touch()
    path.unlink()
    with pytest.raises(Unreadable, match="does not exist"):
        found.values()


def test_values_too_far_apart_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, 8 << 30)
    found = Stored(path, 8 << 30, 0, "float32", (2,), (1 << 30,)).tensor("w", Source(str(path)))
    with pytest.raises(Missing, match="too widely"):
        found.values()
    assert found.statistics.zeros == 2


PEAK = """
import sys
from pathlib import Path
from fgclip_doctor.run import Source
from fgclip_doctor.sources.measure import Stored
path, size = Path(sys.argv[1]), 1 << 30
def peak():  # getrusage's maximum would count what the parent held when it forked
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
before = peak()
tensor = Stored(path, size, 0, "float32", (size // 4,)).tensor("w", Source(str(path)))
assert tensor.statistics.zeros == size // 4
print(peak() - before)
print(*sorted({"torch", "pandas", "matplotlib"} & sys.modules.keys()))
"""


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, 1 << 30)
    done = subprocess.run([sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True)
    grown, imported = done.stdout.splitlines()
    assert int(grown) < 32 << 10  # KiB
    assert imported == ""
