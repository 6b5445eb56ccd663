"""Measurements of tensors, kept from one audit to the next: statistics and digests, so that no file is read twice.

A file is known again by its size, inode, mtime and ctime, and by a hash of `PAGES` pages spread over it from its first
byte to its last. Any change through the file system sets ctime, which no program can set back; pages tell what times
don't (a clock that was turned back, a network file system with times of its own). What was written within the last
seconds is measured and not kept, since another change might leave the same times.

An entry is a file of JSON for each measured file, named by that identity and by a hash of the code that measures, and
begins with a hash of itself: a torn, renamed or foreign one is as good as none. It holds numbers and no name or path.
Everything may be deleted at any time, by another audit as well.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass, field, fields, is_dataclass
from functools import cache, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

from fgclip_doctor.run import Statistics
from fgclip_doctor.sources.files import Unreadable, open_regular, parse_json, read_at

VARIABLE = "FGCLIP_DOCTOR_CACHE"
MEASURING = ("sources/cache.py", "sources/measure.py", "provenance.py")  # the modules whose results are kept
PLACE = ("offset", "dtype", "shape", "strides", "byteorder")  # in a file: all fields of a `Stored` besides the file's
PAGES = 32
PAGE_BYTES = 4096
SETTLED_NS = 3_000_000_000  # FAT's times have a resolution of 2 s, all others of at most 1 s
WORTH_BYTES = 1 << 20  # a smaller file is measured about as fast as it is looked up
ENTRY_LIMIT = 32 << 20  # bytes: more than 100,000 tensors
TOTAL_LIMIT = 256 << 20
BLOCK_BYTES = 4096  # what a small file takes
OURS = re.compile(r"[0-9a-f]{64}\.json|\.\w{1,32}\.partial")

P = ParamSpec("P")
R = TypeVar("R")


def place(configured: str | bool = True) -> Path | None:
    """The directory of the cache: that of the environment, else the configured one, else the user's; None for none."""
    stated = os.environ.get(VARIABLE, configured)
    try:
        if isinstance(stated, str):
            return Path(stated).expanduser() if stated else None
        home = os.environ.get("XDG_CACHE_HOME", "")  # to be passed over where it is relative, says its specification
        root = Path(home) if Path(home).is_absolute() else Path.home() / ".cache"
    except RuntimeError:  # no home
        return None
    return root / "fgclip-doctor" if stated else None


@contextmanager
def kept_in(directory: Path | None) -> Iterator[None]:
    """While this lasts, measurements are looked up in `directory`, and new ones are kept there at the end.

    One that can't be used, or in which others may write, is silently done without.
    """
    global _open
    before, _open = _open, _Cache(directory) if directory and _is_own(directory) else None
    try:
        yield
    finally:
        current, _open = _open, before
        if current:
            current.write()


def recalled(asked: Sequence[object], decode: Callable[[object], R], compute: Callable[[], R]) -> R:
    """The result of `compute`, which the cache may know.

    `asked` is all that it depends on: `Stored`s, alone or in lists, and plain values. `decode` makes the result of what
    was kept as JSON, and raises `ValueError` for anything else.
    """
    key = _open.key(asked) if _open else None
    if _open is None or key is None:
        return compute()
    with suppress(ValueError):
        return decode(_open.get(key))
    value = compute()
    _open.put(key, _encoded(value))
    return value


def kept(decode: Callable[[object], R]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """For a function whose arguments are all that it depends on: its result is `recalled`."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def known(*args: P.args, **kwargs: P.kwargs) -> R:
            asked = [function.__name__, *args, *kwargs.items()]
            return recalled(asked, decode, lambda: function(*args, **kwargs))

        return known

    return decorate


def _encoded(value: object) -> object:
    if value is None:
        return []
    return astuple(value) if is_dataclass(value) and not isinstance(value, type) else value


def as_record(kind: type[R], value: object) -> R:
    """An instance of a dataclass of numbers."""
    known = [str(one.type) for one in fields(kind)] if is_dataclass(kind) else []
    if not isinstance(value, list) or [type(one).__name__ for one in value] != known:
        raise ValueError
    return kind(*value)


def as_record_or_none(kind: type[R], value: object) -> R | None:
    return None if value == [] else as_record(kind, value)


def as_statistics(value: object) -> Statistics:
    return as_record(Statistics, value)


def as_digest(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
        raise ValueError
    return value


@dataclass(frozen=True, slots=True)
class _File:
    """A file as it was when its identity was told. `settled`: that was long enough after its last change."""

    path: Path
    stamp: tuple[int, ...]
    identity: str
    settled: bool


@dataclass(frozen=True, slots=True)
class _Key:
    """What was measured: the text says it in the entry of the first of the files."""

    files: tuple[_File, ...]
    text: str


@dataclass(slots=True)
class _Cache:
    directory: Path
    files: dict[Path, _File] = field(default_factory=dict)
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)  # by identity, as found
    added: dict[str, dict[str, Any]] = field(default_factory=dict)

    def key(self, asked: Sequence[object]) -> _Key | None:
        """None where a file isn't worth it, or isn't the one any more that was asked about."""
        from fgclip_doctor.sources.measure import Stored  # which has its results kept here

        files: dict[Path, _File] = {}

        def described(argument: object) -> object:
            if isinstance(argument, (list, tuple)):
                return [described(one) for one in argument]
            if not isinstance(argument, Stored):
                return argument
            file = files[argument.path] = self._file(argument.path, argument.file_size)
            return [file.identity, *(getattr(argument, name) for name in PLACE)]

        try:
            text = json.dumps(described(asked))
        except (_NotKept, Unreadable, OSError):
            return None
        return _Key(tuple(files.values()), hashlib.sha256(text.encode()).hexdigest()[:32]) if files else None

    def _file(self, path: Path, size: int) -> _File:
        stamp = _stamp(path)
        if size < WORTH_BYTES or stamp[0] != size:
            raise _NotKept
        known = self.files.get(path)
        if known is None or known.stamp != stamp:
            settled = time.time_ns() - max(stamp[2:]) > SETTLED_NS
            known = self.files[path] = _File(path, stamp, _identity(path, stamp), settled)
        return known

    def get(self, key: _Key) -> object:
        identity = key.files[0].identity
        if identity not in self.entries:
            self.entries[identity] = self._read(identity)
        return self.added.get(identity, {}).get(key.text, self.entries[identity].get(key.text))

    def put(self, key: _Key, value: object) -> None:
        """Keep what was measured just now, unless a file may have changed meanwhile."""
        with suppress(OSError):
            if all(file.settled and _stamp(file.path) == file.stamp for file in key.files):
                self.added.setdefault(key.files[0].identity, {})[key.text] = value

    def _read(self, identity: str) -> dict[str, Any]:
        path = self.directory / f"{identity}.json"
        try:
            with open_regular(path) as descriptor:
                size = os.fstat(descriptor).st_size
                content = read_at(descriptor, path, 0, size) if size <= ENTRY_LIMIT else b""
            seal, _, body = content.partition(b"\n")
            entry = parse_json(path, body) if seal == _seal(identity, body) else None
        except Unreadable:
            return {}
        with suppress(OSError):
            os.utime(path)  # what is in use goes last
        return entry if isinstance(entry, dict) else {}

    def write(self) -> None:
        """Each entry appears whole, with what another audit added meanwhile. Where that can't be, nothing is kept."""
        if not self.added:
            return
        with suppress(OSError):
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not _is_own(self.directory):
                return
            for identity, new in self.added.items():
                body = json.dumps(self._read(identity) | new, separators=(",", ":")).encode()
                if len(body) < ENTRY_LIMIT - 128:
                    _replace(self.directory / f"{identity}.json", _seal(identity, body) + b"\n" + body)
            _evict(self.directory)


_open: _Cache | None = None


class _NotKept(Exception):  # noqa: N818 - not an error
    pass


def _is_own(directory: Path) -> bool:
    """Whether only this user can write there, or nothing is there yet."""
    try:
        found = directory.stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022


def _stamp(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns


@cache
def _version() -> str:
    """What the results depend on, besides the file: the code, its numerical library and the processor's kind."""
    code = b"".join((Path(__file__).parents[1] / name).read_bytes() for name in MEASURING)
    where = f"{[one.name for one in fields(Statistics)]} {np.__version__} {os.uname().machine}"
    return hashlib.sha256(code + where.encode()).hexdigest()


def _identity(path: Path, stamp: tuple[int, ...]) -> str:
    """Raises `Unreadable` or `OSError`."""
    told = hashlib.sha256(f"{_version()} {stamp}".encode())
    last = max(stamp[0] - PAGE_BYTES, 0)
    with open_regular(path) as descriptor:
        for page in range(PAGES):
            told.update(read_at(descriptor, path, last * page // (PAGES - 1), min(PAGE_BYTES, stamp[0])))
    return told.hexdigest()


def _seal(identity: str, body: bytes) -> bytes:
    return hashlib.sha256(identity.encode() + body).hexdigest().encode()


def _replace(path: Path, content: bytes) -> None:
    descriptor, partial = tempfile.mkstemp(prefix=".", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(partial).replace(path)
    except OSError:
        Path(partial).unlink(missing_ok=True)
        raise


def _evict(directory: Path) -> None:
    """Delete the entries that weren't used for longest, as long as all together take too much room."""
    found: Mapping[Path, os.stat_result] = {
        Path(entry.path): entry.stat(follow_symlinks=False)
        for entry in os.scandir(directory)
        if OURS.fullmatch(entry.name)
    }
    total = sum(max(one.st_size, BLOCK_BYTES) for one in found.values())
    for path, one in sorted(found.items(), key=lambda item: item[1].st_mtime_ns):
        if total <= TOTAL_LIMIT:
            break
        path.unlink(missing_ok=True)
        total -= max(one.st_size, BLOCK_BYTES)
