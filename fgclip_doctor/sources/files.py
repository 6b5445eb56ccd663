"""Opening what others left behind: regular files only, inside the directory they were found in, and one clear line."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fgclip_doctor.inert import inert
from fgclip_doctor.run import Missing

JSON_LIMIT = 64 << 20  # bytes; a trainer_state.json of a million log lines is about this long
JSON_VALUES = 4_000_000  # each takes up to a hundred bytes once it is read
REASON_LIMIT = 300  # characters of a reason that are shown


class Unreadable(Missing):
    """A file can't be read, or not as what it claims to be. The message is one line: the path, then why.

    A check that comes upon one, in a file that was cut or replaced since its structure was read, is skipped with it.
    """

    def __init__(self, path: str | os.PathLike[str], why: str) -> None:
        self.path = os.fspath(path)
        self.why = inert(why)[:REASON_LIMIT]
        super().__init__(f"{inert(self.path)}: {self.why}")

    def bare(self) -> Unreadable:
        """Itself without its traceback, whose frames hold all that was read: for whoever keeps it."""
        self.__cause__ = self.__context__ = None
        return self.with_traceback(None)


@contextmanager
def open_regular(path: str | os.PathLike[str]) -> Iterator[int]:
    """A descriptor open for reading, if `path` is a regular file.

    Never waits: a pipe is opened without blocking, and is then refused like a device, a socket or a directory.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise Unreadable(path, reason(error)) from error
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise Unreadable(path, f"is {_kind(mode)}, not a file")
        yield descriptor
    except OSError as error:
        raise Unreadable(path, reason(error)) from error
    finally:
        os.close(descriptor)


def read_at(descriptor: int, path: str | os.PathLike[str], offset: int, length: int) -> bytes:
    """Exactly `length` bytes from `offset`."""
    parts = []
    while length:
        part = os.pread(descriptor, length, offset)
        if not part:
            raise Unreadable(path, f"ends early, at byte {offset:,}")
        parts.append(part)
        offset += len(part)
        length -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def inside(directory: Path, name: str) -> Path:
    """The path of `name` in `directory`, which it may not leave, through a symbolic link neither.

    A snapshot in the cache of Hugging Face's hub consists of links into the ``blobs`` of the same repository.
    """
    path = directory / name
    try:
        root, target = directory.resolve(), path.resolve()
        blobs = root.parent.parent / "blobs"
        cached = root.parent.name == "snapshots" and target.parent == blobs and not blobs.is_symlink()
        escapes = not (target.is_relative_to(root) or cached)
    except (OSError, ValueError, RuntimeError) as error:  # a loop of links, a null byte
        raise Unreadable(directory, f"{name!r} can't be followed: {error}") from error
    if escapes:
        raise Unreadable(directory, f"{name!r} points outside the directory")
    return path


def read_json(path: str | os.PathLike[str], limit: int = JSON_LIMIT) -> Any:
    """The JSON in a file of at most `limit` bytes. NaN and Infinity are read, as Python's own writer leaves them."""
    with open_regular(path) as descriptor:
        size = os.fstat(descriptor).st_size
        if size > limit:
            raise Unreadable(path, f"is too large for JSON ({size:,} bytes; the limit is {limit:,})")
        return parse_json(path, read_at(descriptor, path, 0, size))


def parse_json(path: str | os.PathLike[str], data: bytes) -> Any:
    """The JSON in `data`, which was read from `path`."""
    if sum(data.count(mark) for mark in (b",", b"[", b"{")) > JSON_VALUES:
        raise Unreadable(path, f"holds more than {JSON_VALUES:,} JSON values")
    try:
        return json.loads(data.decode("utf-8-sig"), parse_int=_integer)
    except RecursionError as error:
        raise Unreadable(path, "is nested too deeply for JSON") from error
    except UnicodeDecodeError as error:
        raise Unreadable(path, f"is not UTF-8 (byte {error.start:,})") from error
    except ValueError as error:
        raise Unreadable(path, f"is not JSON: {error}") from error


def _integer(digits: str) -> int | float:
    """An integer that a float can hold, so that every number can be computed with; others are infinite."""
    return int(digits) if len(digits) < sys.float_info.max_10_exp else float(digits)


def reason(error: OSError | ValueError) -> str:
    """Why the system refused, in the words that every source uses."""
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    if isinstance(error, PermissionError):
        return "may not be read (permission denied)"
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a directory"
    if stat.S_ISFIFO(mode):
        return "a named pipe"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"
