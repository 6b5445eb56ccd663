"""What `torch.save` writes is read as `torch.load` reads it, and what only pretends to be such a file is refused."""

from __future__ import annotations

import collections
import io
import os
import pickle
import random
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fgclip_doctor.run import Missing, Tensor
from fgclip_doctor.sources import pickles, torch_file
from fgclip_doctor.sources.files import Unreadable
from fgclip_doctor.sources.measure import SIZES
from fgclip_doctor.sources.pickles import Stub

formats = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])


def read_back(path: Path, content: Any, zipped: bool = True) -> Any:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return torch_file.read(path)


def same(found: Any, tensor: torch.Tensor) -> None:
    assert isinstance(found, Tensor)
    assert (found.shape, f"torch.{found.dtype}") == (tuple(tensor.shape), str(tensor.dtype))
    narrow = tensor.is_floating_point() and tensor.dtype != torch.float64
    wanted = (tensor.float() if narrow else tensor).detach().numpy()
    np.testing.assert_array_equal(found.values(), wanted)
    assert found.values().dtype == wanted.dtype


def refused(path: Path) -> str:
    with pytest.raises(Unreadable) as caught:
        torch_file.read(path)
    line = str(caught.value)
    assert line.isprintable()
    return line.removeprefix(f"{path}: ")


@formats
@pytest.mark.parametrize("dtype", list(SIZES))
def test_every_dtype(tmp_path: Path, dtype: str, zipped: bool) -> None:
    tensor = torch.arange(24).view(2, 3, 4).to(getattr(torch, dtype))
    found = read_back(tmp_path / "x.pt", {"w": tensor, "view": tensor[1, 1:, ::2]}, zipped)
    same(found["w"], tensor)
    same(found["view"], tensor[1, 1:, ::2])
    assert found["w"].statistics.count == 24
    assert found["view"].statistics.count == 4


@formats
def test_every_layout(tmp_path: Path, zipped: bool) -> None:
    whole = torch.arange(60.0).view(6, 10)
    content = {
        "parameter": torch.nn.Parameter(torch.ones(3)),
        "buffer": torch.nn.Buffer(torch.ones(3)),
        "scalar": torch.tensor(4.6052),
        "empty": torch.zeros(0, 3),
        "transposed": whole.t(),
        "slice": whole[1:5:2, 3:],
        "expanded": whole[2].expand(4, 10),
        "permuted": torch.arange(24.0).view(2, 3, 4).permute(2, 0, 1),
        "frozen": torch.ones(2, requires_grad=False),
    }
    found = read_back(tmp_path / "x.pt", content, zipped)
    for name, tensor in content.items():
        same(found[name], tensor)
        assert found[name].name == name
        assert str(found[name].source) == f"{tmp_path / 'x.pt'}: {name}"
        assert found[name].statistics.mean == pytest.approx(tensor.mean().item() if tensor.numel() else 0.0)


@formats
def test_tensors_that_share_their_storage(tmp_path: Path, zipped: bool) -> None:
    tied = torch.randn(5, 4)
    found = read_back(tmp_path / "x.pt", {"a": tied, "b": tied[2:], "again": tied}, zipped)
    same(found["a"], tied)
    same(found["b"], tied[2:])
    assert found["again"] is found["a"]
    assert found["a"].name == "a"


@formats
def test_optimizer_state(tmp_path: Path, zipped: bool) -> None:
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    schedule.step()
    state = optimizer.state_dict()
    found = read_back(tmp_path / "optimizer.pt", {"optimizer": state, "scheduler": schedule.state_dict()}, zipped)
    assert found["optimizer"]["param_groups"] == state["param_groups"]
    assert found["scheduler"]["last_epoch"] == 1
    for index, kept in state["state"].items():
        for key, tensor in kept.items():
            same(found["optimizer"]["state"][index][key], tensor)
            assert found["optimizer"]["state"][index][key].name == f"optimizer.state.{index}.{key}"


@formats
def test_whole_modules_become_stubs_with_their_tensors(tmp_path: Path, zipped: bool) -> None:
    model = torch.nn.Linear(4, 3)
    found = read_back(tmp_path / "model.pt", model, zipped)
    assert isinstance(found, Stub)
    assert found.path == "torch.nn.modules.linear.Linear"
    same(found.state["_parameters"]["weight"], model.weight)


@formats
def test_plain_values(tmp_path: Path, zipped: bool) -> None:
    content = {
        "size": torch.Size([2, 3]),
        "ordered": collections.OrderedDict(a=1),
        "half": np.float16(0.5),
        "large": np.int64(1 << 40),
        "array": np.arange(6.0).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
        "twice": (array := np.arange(3), array),
    }
    found = read_back(tmp_path / "x.pt", content, zipped)
    assert (found["size"], found["ordered"], found["half"], found["large"]) == ((2, 3), {"a": 1}, 0.5, 1 << 40)
    assert type(found["half"]) is float
    for name in ("array", "fortran"):
        np.testing.assert_array_equal(found[name], content[name])
    assert found["twice"][0] is found["twice"][1]
    np.testing.assert_array_equal(found["twice"][0], array)


@pytest.mark.parametrize("protocol", range(6))
def test_numpy_in_every_protocol(tmp_path: Path, protocol: int) -> None:
    content = [np.arange(4, dtype="<f4"), np.arange(4, dtype=">i8"), np.float32(1.5), np.array(7), np.ones((2, 3), "F")]
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol))
    for found, wanted in zip(torch_file.read(tmp_path / "x.pkl"), content, strict=True):
        np.testing.assert_array_equal(found, wanted)


@formats
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.ones(3, 3).to_sparse(),
        lambda: torch.ones(2, dtype=torch.complex64).conj(),
        lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        lambda: torch.ones(3, device="meta"),
        lambda: torch.float32,
        lambda: torch.device("cpu"),
        lambda: np.array(["text"]),
        lambda: np.array([object()]),
        lambda: np.dtype("datetime64[s]"),
    ],
    ids=["sparse", "conjugated", "quantised", "meta", "dtype", "device", "text array", "object array", "numpy dtype"],
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # torch's own, about quantisation
def test_what_has_no_plain_values_becomes_a_stub(tmp_path: Path, make: Callable[[], Any], zipped: bool) -> None:
    found = read_back(tmp_path / "x.pt", [make(), torch.ones(2)], zipped)
    assert isinstance(found[0], Stub)
    same(found[1], torch.ones(2))


def test_file_of_a_machine_of_the_other_byte_order(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"w": torch.arange(6.0)}, path)
    rewrite(path, {"byteorder": b"big", "data/0": np.arange(6, dtype=">f4").tobytes()})
    same(torch_file.read(path)["w"], torch.arange(6.0))


# Not sound ------------------------------------------------------------------------------------------------------------


def rewrite(path: Path, changes: dict[str, bytes | None], compression: int = zipfile.ZIP_STORED) -> None:
    """Write the archive anew with other entries; None leaves one out."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    prefix = next(name for name in entries if name.endswith("data.pkl")).removesuffix("data.pkl")
    entries |= {f"{prefix}{name}": content for name, content in changes.items() if content is not None}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            if changes.get(name.removeprefix(prefix), b"") is not None:
                archive.writestr(name, content)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "x.pt"
    torch.save({"w": torch.arange(6.0), "b": torch.ones(2)}, path)
    return path


def test_compressed_entries(archive: Path) -> None:
    rewrite(archive, {"data/0": bytes(1 << 20)}, zipfile.ZIP_DEFLATED)
    assert refused(archive).startswith("has a compressed entry")


def test_storage_that_is_missing_or_short(archive: Path) -> None:
    rewrite(archive, {"data/0": bytes(20)})
    assert "the storage '0' is shorter than its tensors" in refused(archive)
    rewrite(archive, {"data/0": None})
    assert "the storage '0' is not in the archive" in refused(archive)


def test_archive_without_structure_or_with_two(archive: Path) -> None:
    rewrite(archive, {"data.pkl": None})
    assert refused(archive) == "is a zip archive with no data.pkl, so not torch's"
    torch.save({}, archive)
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("other/data.pkl", b"N.")
    assert refused(archive) == "is a zip archive with 2 data.pkl, so not torch's"


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_entry_that_is_there_twice(archive: Path) -> None:
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(file.namelist()[0], b"N.")
    assert "twice" in refused(archive)


def test_structure_that_is_too_long_is_not_read(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_file, "PICKLE_LIMIT", 100)
    assert "the limit is 100" in refused(archive)


def directory_field(path: Path, entry: str, offset: int, value: int, form: str = "<I") -> None:
    """Overwrite a field of the central directory's record of `entry`."""
    content = bytearray(path.read_bytes())
    name = content.rfind(entry.encode())
    struct.pack_into(form, content, name - 46 + offset, value)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("offset", "value", "form", "why"),
    [
        (8, 1, "<H", "encrypted"),
        (10, 8, "<H", "compressed"),
        (20, 1 << 31, "<I", "compressed"),  # another length compressed than not
        (42, 1 << 31, "<I", "outside the file"),
        (42, 0, "<I", "overlap"),
        (42, 70, "<I", "overlap"),
    ],
)
def test_directory_that_lies(archive: Path, offset: int, value: int, form: str, why: str) -> None:
    directory_field(archive, "x/data/1", offset, value, form)
    assert why in refused(archive)


def test_entry_larger_than_the_file(archive: Path) -> None:
    directory_field(archive, "x/data/1", 20, 1 << 30)
    directory_field(archive, "x/data/1", 24, 1 << 30)
    assert "larger than the file" in refused(archive)


def test_directory_of_eight_gigabytes(tmp_path: Path) -> None:
    """A sparse file whose end record claims that nearly all of it is the directory."""
    path, size = tmp_path / "x.pt", 8 << 30
    with path.open("wb") as file:
        file.write(b"PK\x03\x04")
        file.seek(size)
        record = struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 45, 45, 0, 0, 1, 1, size, 0)
        locator = struct.pack("<IIQI", 0x07064B50, 0, size, 1)
        file.write(record + locator + struct.pack("<IHHHHIIH", 0x06054B50, 0xFFFF, 0xFFFF, 1, 1, 0xFFFFFFFF, 0, 0))
    assert "directory is larger" in refused(path)


def rebuild(offset: Any, shape: Any, stride: Any) -> bytes:
    """The structure of a file with one tensor over a storage of six floats."""

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, one: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", 6) if isinstance(one, Storage) else None

        def reducer_override(self, one: Any) -> Any:
            if isinstance(one, Call):
                return torch._utils._rebuild_tensor_v2, one.args
            return NotImplemented

    class Call:
        args = (Storage(), offset, shape, stride, False, {})

    written = io.BytesIO()
    Pickler(written, 2).dump(Call())
    return written.getvalue()


@pytest.mark.parametrize(
    ("offset", "shape", "stride"),
    [
        (0, (7,), (1,)),
        (1, (6,), (1,)),
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
        (0, (-2,), (1,)),
        (0, (2, 2), (5, 1)),
        (0, (2,), (1, 1)),
        (0, (1 << 62,), (0,)),
        (0, (1 << 40, 1 << 40), (0, 0)),
        (0, (1 << 40, 1 << 40, 0), (0, 0, 1)),
        (0, (1 << 40, 1 << 40), (1, 1)),
        (0, (3, 3), (1, 1)),  # more elements than the storage has, all within it
        (1 << 62, (1,), (1,)),
        (0.0, (1,), (1,)),
        (0, (1.0,), (1,)),
        (0, (True,), (1,)),
        (0, [2], [1]),
        (0, "ab", "ab"),
        (0, (1,) * 65, (1,) * 65),
        (None, None, None),
    ],
)
def test_tensors_that_cannot_be(archive: Path, offset: Any, shape: Any, stride: Any) -> None:
    rewrite(archive, {"data.pkl": rebuild(offset, shape, stride)})
    why = refused(archive)
    assert "impossible offset, shape or stride" in why or "larger than its storage" in why


def test_expanded_tensor_of_a_tebibyte_is_cheap(archive: Path) -> None:
    rewrite(archive, {"data.pkl": rebuild(0, (1 << 38, 6), (0, 1))})
    found = torch_file.read(archive)
    assert found.statistics.count == 6 << 38
    assert found.statistics.mean == 2.5
    with pytest.raises(Missing, match="too large"):
        found.values()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n", "is a Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>", "is a web page"),
        (b'{"error": "not found"}', "is JSON"),
        (b"\x1f\x8b\x08\x00", "is compressed"),
        (b"PK\x03\x04", "is a damaged or truncated zip archive"),
        (b"Entry not found", "is not a sound pickle"),
        (b"\x00" * 100, "is not a sound pickle"),
    ],
)
def test_what_is_something_else(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    assert refused(path).startswith(why)


def test_tar(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as file:
        file.addfile(tarfile.TarInfo("storages"))
    assert refused(tmp_path / "x.tar").startswith("is a tar archive")


def test_directory_and_missing_file(tmp_path: Path) -> None:
    assert refused(tmp_path) == "is a directory, not a file"
    assert refused(tmp_path / "absent") == "does not exist"


def use(read: Callable[[Path], Any], path: Path) -> Any:
    """Read everything that can be reached; None where that is refused."""
    try:
        content = read(path)
        waiting = [content]
        while waiting:
            one = waiting.pop()
            if isinstance(one, Tensor):
                _ = one.statistics, one.digest, one.values() if one.nbytes < 1 << 20 else None
            elif isinstance(one, (dict, list, tuple)):
                waiting.extend(one.values() if isinstance(one, dict) else one)
        return pickles.plain(content)
    except (Unreadable, Missing):
        return None


@formats
def test_torn_and_flipped_files(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "x.pt"
    tensors = {"w": torch.arange(6.0), "t": torch.ones(3, 2).t(), "f": torch.ones(2).to(torch.float8_e5m2)}
    torch.save({**tensors, "n": np.arange(3), "s": np.float32(1)}, path, _use_new_zipfile_serialization=zipped)
    sound = path.read_bytes()
    assert use(torch_file.read, path)
    for length in range(len(sound)):
        path.write_bytes(sound[:length])
        assert use(torch_file.read, path) is None
    generator = random.Random(0)
    for _ in range(400):
        damaged = bytearray(sound)
        for _ in range(generator.choice((1, 1, 2, 8))):
            damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        use(torch_file.read, path)


def test_reading_imports_no_torch(archive: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from fgclip_doctor.sources import torch_file;"
        "torch_file.read(Path(sys.argv[1]))['w'].statistics;"
        "sys.exit(bool({'torch', 'pandas'} & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-c", code, str(archive)], check=True, env=os.environ)
