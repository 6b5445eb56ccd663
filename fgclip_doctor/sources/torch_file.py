"""What `torch.save` wrote, read as data: the zip format, the older stream of pickles, and pickles without tensors.

Nothing in the file is executed: the structure comes from `pickles`, the tensors are left on disk.
"""

from __future__ import annotations

import io
import math
import os
import re
import struct
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fgclip_doctor.run import Source, Tensor
from fgclip_doctor.sources import pickles
from fgclip_doctor.sources.files import Unreadable, open_regular, read_at
from fgclip_doctor.sources.measure import SIZES, Stored, is_shape
from fgclip_doctor.sources.pickles import Malformed, Stub

PICKLE_LIMIT = 64 << 20  # bytes; the structure of a checkpoint is a hundredth of that
DIRECTORY_LIMIT = 16 << 20  # bytes of the zip directory: about 200,000 entries
MAX_TENSORS = 100_000
NAMING_DEPTH = 16  # keys in the name of a tensor
NAME_LIMIT = 200  # characters of one key
CODE = "/code/"  # of a TorchScript archive: compressed, and never looked at
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # torch/serialization.py, MAGIC_NUMBER
STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
    "QInt8Storage": "int8",  # of quantised tensors, which stay stubs
    "QUInt8Storage": "uint8",
    "QInt32Storage": "int32",
}
ByteOrder = Literal["<", ">"]


def read(path: Path) -> Any:
    """The saved structure: plain containers and scalars, `Tensor`s, and a `Stub` for everything else.

    Tensors are named by their place in it: "state.0.exp_avg".
    """
    with open_regular(path) as descriptor:
        start = read_at(descriptor, path, 0, min(512, os.fstat(descriptor).st_size))
        if start.startswith(b"PK"):
            content = _Zip(path, descriptor, 0, os.fstat(descriptor).st_size).content()
        elif other := _other_kind(start):
            raise Unreadable(path, other)
        else:
            content = _stream(path, descriptor)
    _name(content, str(path))
    return content


def read_part(path: Path, offset: int, length: int) -> Any:
    """What `read` gives for a zip archive that lies within a file: one piece of a sharded checkpoint."""
    with open_regular(path) as descriptor:
        size = os.fstat(descriptor).st_size
        if offset < 0 or length < 0 or offset + length > size:
            raise Unreadable(path, f"ends before byte {offset + length:,}, to which its index goes")
        content = _Zip(path, descriptor, offset, length).content()
    _name(content, str(path))
    return content


def _other_kind(start: bytes) -> str:
    """What a file that is not torch's seems to be, or nothing."""
    text = start.lstrip().lower()
    if not start:
        return "is empty"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself (git lfs pull fetches it)"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page, probably the answer to a failed download"
    if start[257:262] == b"ustar":
        return "is a tar archive (torch.save before 0.1.10, or packed checkpoints), which is not read"
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"\x28\xb5\x2f\xfd")):
        return "is compressed"
    if text.startswith((b"{", b"[")) and b'"' in text:
        return "is JSON, not a torch file"
    return ""


# Containers -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Storage:
    """The bytes behind one or several tensors. The offset is None in the first reading of the older format."""

    dtype: str
    nbytes: int
    offset: int | None


class _Window(io.RawIOBase):
    """The bytes of an archive, of which the zip module gets no more at once than a directory may hold.

    It would believe any size that is stated.
    """

    def __init__(self, descriptor: int, start: int, length: int) -> None:
        self.descriptor, self.start, self.length, self.at = descriptor, start, length, 0

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.length}[whence]
        if place < 0:
            raise ValueError("its directory lies before its beginning")
        self.at = place
        return place

    def tell(self) -> int:
        return self.at

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(self.length - self.at, 0)
        size = left if size is None or size < 0 else min(size, left)
        if size > DIRECTORY_LIMIT:
            raise zipfile.BadZipFile(f"its directory is larger than {DIRECTORY_LIMIT:,} bytes")
        content = os.pread(self.descriptor, size, self.start + self.at)
        self.at += len(content)
        return content


class _Zip:
    """A zip archive whose entries are stored as they are: `prefix/data.pkl`, `prefix/data/KEY`, `prefix/byteorder`."""

    def __init__(self, path: Path, descriptor: int, start: int, length: int) -> None:
        self.path, self.descriptor = path, descriptor
        self.start, self.size = start, os.fstat(descriptor).st_size
        self.entries: dict[str, tuple[int, int]] = {}  # name -> offset and length of its content
        try:
            with zipfile.ZipFile(_Window(descriptor, start, length)) as archive:
                entries, end = archive.infolist(), start + archive.start_dir
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, EOFError, struct.error) as error:
            raise Unreadable(path, f"is a damaged or truncated zip archive: {error}") from error
        free = start
        for entry in sorted(entries, key=lambda entry: entry.header_offset):
            if CODE in entry.filename:
                continue
            offset = self._check(entry, free, end)
            self.entries[entry.filename] = (offset, entry.file_size)
            free = offset + entry.file_size

    def _check(self, entry: zipfile.ZipInfo, free: int, end: int) -> int:
        """Where the content of a sound entry begins. The space before `free` is taken, `end` is the directory."""
        name = entry.filename
        if entry.flag_bits & 1:
            raise Unreadable(self.path, f"has an encrypted entry, {name!r}")
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise Unreadable(self.path, f"has a compressed entry, {name!r}, which torch never writes")
        if name in self.entries:
            raise Unreadable(self.path, f"has the entry {name!r} twice")
        place = self.start + entry.header_offset
        if not free <= place <= end - 30:
            raise Unreadable(self.path, f"has entries that overlap or lie outside the file: {name!r}")
        header = read_at(self.descriptor, self.path, place, 30)
        if not header.startswith(b"PK\x03\x04"):
            raise Unreadable(self.path, f"has no entry where its directory says {name!r} is")
        name_length, extra_length = struct.unpack_from("<HH", header, 26)
        offset: int = place + 30 + name_length + extra_length
        if offset + entry.file_size > end:
            raise Unreadable(self.path, f"has an entry that is larger than the file: {name!r}")
        return offset

    def _bytes(self, name: str, limit: int) -> bytes:
        offset, length = self.entries[name]
        if length > limit:
            raise Unreadable(self.path, f"has an entry {name!r} of {length:,} bytes; the limit is {limit:,}")
        return read_at(self.descriptor, self.path, offset, length)

    def content(self) -> Any:
        pickled = [name for name in self.entries if name.rpartition("/")[2] == "data.pkl"]
        if len(pickled) != 1:
            raise Unreadable(self.path, f"is a zip archive with {len(pickled) or 'no'} data.pkl, so not torch's")
        prefix = pickled[0].removesuffix("data.pkl")
        order = self._bytes(f"{prefix}byteorder", 16) if f"{prefix}byteorder" in self.entries else b"little"

        def storage(kind: str, key: str, count: int) -> _Storage:
            if f"{prefix}data/{key}" not in self.entries:
                raise Malformed(f"the storage {key!r} is not in the archive")
            offset, length = self.entries[f"{prefix}data/{key}"]
            if count * SIZES[kind] > length:
                raise Malformed(f"the storage {key!r} is shorter than its tensors")
            return _Storage(kind, count * SIZES[kind], offset)

        tensors = _Tensors(self.path, self.size, ">" if order == b"big" else "<", storage)
        return tensors.load(self._bytes(pickled[0], PICKLE_LIMIT))[0]


def _stream(path: Path, descriptor: int) -> Any:
    """A plain pickle, or torch's format before 1.6: five pickles, then the storages one after the other."""
    size = os.fstat(descriptor).st_size
    data = read_at(descriptor, path, 0, min(size, PICKLE_LIMIT))
    counts: dict[str, tuple[str, int]] = {}

    def unplaced(kind: str, key: str, count: int) -> _Storage:
        if counts.setdefault(key, (kind, count)) != (kind, count):
            raise Malformed(f"the storage {key!r} has two sizes")
        return _Storage(kind, count * SIZES[kind], None)

    def placed(kind: str, key: str, count: int) -> _Storage:
        return _Storage(kind, count * SIZES[kind], offsets[key])

    first, start = _Tensors(path, size, "<", unplaced).load(data)
    if type(first) is not int or first != LEGACY_MAGIC:
        return first
    _, start = pickles.load(data, str(path), start=start)  # the protocol's version
    system, start = pickles.load(data, str(path), start=start)
    order: ByteOrder = ">" if isinstance(system, dict) and system.get("little_endian") is False else "<"
    _, end = _Tensors(path, size, order, unplaced).load(data, start)
    keys, offset = pickles.load(data, str(path), start=end)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or set(counts) != set(keys):
        raise Unreadable(path, "lists other storages than its tensors have")
    offsets: dict[str, int] = {}
    for key in keys:
        kind, count = counts[key]
        if int.from_bytes(read_at(descriptor, path, offset, 8), "little" if order == "<" else "big") != count:
            raise Unreadable(path, f"has a storage {key!r} of another size than its tensors say")
        offsets[key] = offset + 8
        offset += 8 + count * SIZES[kind]
        if offset > size:
            raise Unreadable(path, f"ends early, in the storage {key!r}")
    return _Tensors(path, size, order, placed).load(data, start)[0]


# Structure ------------------------------------------------------------------------------------------------------------


class _Tensors:
    """Recognises tensors and numpy's values, by name, among the calls that a pickle asks for."""

    def __init__(self, path: Path, size: int, order: ByteOrder, storage: Callable[[str, str, int], _Storage]) -> None:
        self.path, self.size, self.order = path, size, order
        self.storage = storage  # by dtype, key and number of elements
        self.count = 0

    def load(self, data: bytes, start: int = 0) -> tuple[Any, int]:
        return pickles.load(data, str(self.path), start=start, finish=self.finish, persistent=self.persistent)

    def persistent(self, key: Any) -> Any:
        match key:
            case ("storage", Stub(module="torch" | "torch.storage") as kind, str(name), _, int(count), *_):
                if kind.name in STORAGES and 0 <= count < 1 << 60:
                    return self.storage(STORAGES[kind.name], name, count)
            case ("module", Stub() as kind, *_):  # a class with its source code, in the older format
                return kind
        return Stub("", "persistent", (key,), called=True)

    def finish(self, stub: Stub) -> Any:
        """The tensor or the value that `stub` stands for, else the stub."""
        match stub:
            case Stub(module="torch._utils", name="_rebuild_tensor", args=(_Storage() as storage, *view)):
                return self.tensor(storage, storage.dtype, view)
            case Stub(module="torch._utils", name="_rebuild_tensor_v2", args=(_Storage() as storage, *view)):
                return stub if any(view[5:]) else self.tensor(storage, storage.dtype, view)  # conjugated or negated
            case Stub(
                module="torch._utils",
                name="_rebuild_tensor_v3",
                args=(_Storage() as storage, offset, shape, strides, _, _, Stub(module="torch", name=dtype), *metadata),
            ):
                if dtype in SIZES and not any(metadata):
                    return self.tensor(storage, dtype, [offset, shape, strides])
            case Stub(
                module="torch._utils",
                name="_rebuild_parameter" | "_rebuild_parameter_with_state",
                args=(Tensor() as tensor, *_),
            ):
                return tensor
            case Stub(
                module="torch._tensor",
                name="_rebuild_from_type_v2",
                args=(Stub(module="torch._utils", called=False) as function, _, tuple(args), _),
            ):
                tensor = self.finish(Stub(function.module, function.name, args, called=True))
                return tensor if isinstance(tensor, Tensor) else stub
            case Stub(module="numpy.core.multiarray" | "numpy._core.multiarray" | "numpy._core.numeric", called=True):
                return _numpy_value(stub)
        return stub

    def tensor(self, storage: _Storage, dtype: str, view: list[Any]) -> Tensor:
        match view:
            case [int(offset), tuple(shape), tuple(strides), *_] if len(shape) == len(strides):
                sound = is_shape(shape) and is_shape([offset]) and all(is_shape([stride]) for stride in strides)
            case _:
                sound = False
        if not sound:
            raise Malformed("a tensor with an impossible offset, shape or stride")
        size = SIZES[dtype]
        if 0 not in shape:
            axes = [(length, stride) for length, stride in zip(shape, strides, strict=True) if length > 1]
            last = offset + sum((length - 1) * stride for length, stride in axes)
            distinct = math.prod(length for length, stride in axes if stride)
            if (last + 1) * size > storage.nbytes or distinct * size > storage.nbytes:
                raise Malformed("a tensor that is larger than its storage")
        self.count += 1
        if self.count > MAX_TENSORS:
            raise Malformed(f"it has more than {MAX_TENSORS:,} tensors")
        begin = (storage.offset or 0) + offset * size
        stored = Stored(self.path, self.size, begin, dtype, shape, strides, self.order)
        return stored.tensor("", Source(str(self.path)))


def _numpy_dtype(stub: Any) -> np.dtype[Any] | None:
    match stub:
        case Stub(module="numpy", name="dtype", args=(str(code), *_), state=state):
            if re.fullmatch(r"b1|[iu][1248]|f[248]|c8|c16", code):
                swapped = isinstance(state, tuple) and state[1:2] == (">",)
                return np.dtype(f"{'>' if swapped else '<'}{code}")
    return None


def _numpy_value(stub: Stub) -> Any:
    """A numeric scalar as Python's, a numeric array as numpy's; the stub if it is neither, or not whole yet."""
    match stub:
        case Stub(name="scalar", args=(dtype, bytes(content))):
            shape, fortran = (), False  # type: tuple[Any, ...], Any
        case Stub(name="_reconstruct", state=(_, tuple(shape), dtype, fortran, bytes(content))):
            pass
        case Stub(name="_frombuffer", args=(bytes(content) | bytearray(content), dtype, tuple(shape), str(order))):
            fortran = order == "F"
        case _:
            return stub
    kind = _numpy_dtype(dtype)
    if kind is None or not is_shape(shape):
        return stub
    if math.prod(shape) * kind.itemsize != len(content):
        raise Malformed("a numpy array of another size than its shape says")
    array = np.frombuffer(content, kind).reshape(shape, order="F" if fortran else "C")
    return array if stub.name != "scalar" else array.item()


def _name(content: Any, path: str) -> None:
    """Name every tensor by the first place where it stands."""
    seen: set[int] = set()
    waiting: list[tuple[Place, Any]] = [((), content)]
    while waiting:
        place, value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            value.name = ".".join(_keys(place))
            value.source = Source(path, value.name)
        elif isinstance(value, NAMED):
            waiting += [((place, key), item) for key, item in _parts(value) if isinstance(item, NAMED)][::-1]


Place = tuple[()] | tuple["Place", Any]  # linked, since hardly any of them is ever spelt out
NAMED = (dict, list, tuple, Stub, Tensor)


def _keys(place: Place) -> list[str]:
    keys: list[str] = []
    while place and len(keys) < NAMING_DEPTH:
        place, key = place
        keys.append(str(key)[:NAME_LIMIT])
    return keys[::-1]


def _parts(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, dict):
        return value.items()
    if isinstance(value, Stub):
        return (("state", value.state), ("items", value.items), ("args", value.args))
    return enumerate(value)
