"""Directories that `torch.distributed.checkpoint` wrote (FSDP and others): `.metadata` and the shards it points into.

Every tensor is cut into boxes, each saved as a torch file of its own somewhere in a `.distcp` file; every other value
is such a file too. They are put back into the structure that was saved, and the tensors stay on disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fgclip_doctor.run import Source, Tensor
from fgclip_doctor.sources import torch_file
from fgclip_doctor.sources.files import Unreadable, inside
from fgclip_doctor.sources.measure import SIZES, StoredTensor, is_shape
from fgclip_doctor.sources.pickles import Stub, plain
from fgclip_doctor.sources.pieces import Piece, joined

METADATA = ".metadata"
DEPTH = 16  # of the structure


@dataclass(frozen=True, slots=True)
class _Place:
    """Where one box of a tensor, or one value, is saved."""

    path: Path
    offset: int
    length: int
    corner: tuple[int, ...] | None


def is_one(directory: Path) -> bool:
    """True for a directory that was written so."""
    return (directory / METADATA).is_file()


def read(directory: Path) -> tuple[dict[str, Any], list[Unreadable]]:
    """What was saved, as nested dicts and lists with `Tensor`s in them, and what of it can't be read."""
    path = directory / METADATA
    metadata = _state(torch_file.read(path))
    entries, keys = metadata.get("state_dict_metadata"), metadata.get("planner_data")
    if not isinstance(entries, Mapping):
        raise Unreadable(path, "is not the index of a torch.distributed.checkpoint")
    problems: dict[str, Unreadable] = {}
    stored = _stored(directory, metadata.get("storage_data"), problems)
    root: dict[Any, Any] = {}
    for name, entry in entries.items():
        at = stored.get(str(name))
        if at is None:
            continue
        try:
            value = _tensor(str(name), entry, at, path) if "size" in _state(entry) else _value(at)
            where = keys.get(name) if isinstance(keys, Mapping) else None
            _put(root, where if isinstance(where, tuple) and where else (str(name),), value, path)
        except Unreadable as error:
            problems.setdefault(error.path, error.bare())
    return {str(key): _listed(value) for key, value in root.items()}, list(problems.values())


def _state(value: object) -> Mapping[Any, Any]:
    """The fields of an instance of a dataclass."""
    return value.state if isinstance(value, Stub) and isinstance(value.state, Mapping) else {}


def _stored(directory: Path, entries: object, problems: dict[str, Unreadable]) -> dict[str, list[_Place]]:
    """The places by name. What lies in a file that isn't there, or is too short, has none."""
    found: dict[str, list[_Place]] = {}
    lost: set[str] = set()
    sizes: dict[str, int] = {}
    for key, entry in entries.items() if isinstance(entries, Mapping) else ():
        index, info = _state(key), _state(entry)
        name, file = str(index.get("fqn")), info.get("relative_path")
        try:
            if not isinstance(file, str):
                raise Unreadable(directory / METADATA, "has an entry that names no file")
            path = inside(directory, file)
            if file not in sizes:
                sizes[file] = path.stat().st_size if path.is_file() else -1
            if sizes[file] < 0:
                raise Unreadable(path, "is missing, and with it a part of the checkpoint")
            if info.get("transform_descriptors"):
                raise Unreadable(path, "is compressed, which is not read")
            match info.get("offset"), info.get("length"), index.get("offset"):
                case (int(offset), int(length), tuple() | None as corner) if is_shape(corner or ()):
                    if not 0 <= offset <= offset + length <= sizes[file]:
                        raise Unreadable(path, f"ends early, at byte {sizes[file]:,}")
                case _:
                    raise Unreadable(directory / METADATA, "has an entry without a place")
            found.setdefault(name, []).append(_Place(path, offset, length, corner))
        except Unreadable as error:
            problems.setdefault(error.path, error.bare())
            lost.add(name)
    return {name: at for name, at in found.items() if name not in lost}


def _tensor(name: str, entry: object, at: list[_Place], path: Path) -> Tensor:
    fields = _state(entry)
    shape, properties = fields.get("size"), fields.get("properties")
    values = properties.state if isinstance(properties, Stub) else None
    kind = values.get("dtype") if isinstance(values, Mapping) else values[0] if isinstance(values, tuple) else None
    dtype = kind.name if isinstance(kind, Stub) and kind.module == "torch" else ""
    if not isinstance(shape, tuple) or not is_shape(shape) or dtype not in SIZES:
        raise Unreadable(path, f"gives {name} no shape or no known type")
    return joined(name, shape, dtype, Source(str(path.parent), name), partial(_pieces, at))


def _pieces(at: list[_Place]) -> list[Piece]:
    pieces = []
    for place in at:
        content = torch_file.read_part(place.path, place.offset, place.length)
        if not isinstance(content, StoredTensor):
            raise Unreadable(place.path, f"has no tensor at byte {place.offset:,}")
        pieces.append(Piece(content.stored, place.corner or (0,) * len(content.shape)))
    return pieces


def _value(at: list[_Place]) -> Any:
    return torch_file.read_part(at[0].path, at[0].offset, at[0].length)


def _put(root: dict[Any, Any], keys: tuple[Any, ...], value: Any, path: Path) -> None:
    if len(keys) > DEPTH or not all(isinstance(key, (str, int)) for key in keys):
        raise Unreadable(path, "has a value whose place can't be told")
    for key in keys[:-1]:
        root = root.setdefault(key, {})
        if not isinstance(root, dict):
            raise Unreadable(path, "puts one value inside another")
    root[keys[-1]] = value


def _listed(value: Any, depth: int = DEPTH) -> Any:
    """Dicts whose keys count from 0 as the lists that they were, and an optimizer by name in torch's usual form."""
    if not isinstance(value, dict) or not depth:
        return value
    inner = {key: _listed(one, depth - 1) for key, one in value.items()}
    if inner and list(inner) == list(range(len(inner))):
        return list(inner.values())
    return _grouped(inner) if any(str(key).startswith("param_groups.") for key in inner) else inner


def _grouped(flat: Mapping[Any, Any]) -> dict[str, Any]:
    """`state.NAME.exp_avg` and `param_groups.NAME.lr` as states and groups: parameters with the same options in one."""
    states: dict[str, dict[str, Any]] = {}
    options: dict[str, dict[str, Any]] = {}
    for kind, name, key, value in _parts(flat):
        (states if kind == "state" else options).setdefault(name, {})[key] = value
    groups: dict[str, dict[str, Any]] = {}
    for name, known in options.items():
        group = groups.setdefault(repr(plain(known)), {**known, "params": []})
        group["params"].append(name)
    return {"state": states, "param_groups": list(groups.values())}


def _parts(flat: Mapping[Any, Any]) -> Iterator[tuple[str, str, str, Any]]:
    for path, value in flat.items():
        kind, _, rest = str(path).partition(".")
        name, _, key = rest.rpartition(".")
        if kind in ("state", "param_groups") and name:
            yield kind, name, key, value
