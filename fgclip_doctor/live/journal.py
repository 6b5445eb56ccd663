"""The recording of one rank: an append-only file of JSON lines, readable while it grows."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

VERSION = 1
ENCODE = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
MAX_BYTES = 64 << 20  # of one file; a longer recording goes on in the next


class Journal:
    """Writes each record as one line, which is in the hands of the system when `write` returns: `kill -9` loses none.

    Files are ``rank-0.000.jsonl``, ``rank-0.001.jsonl`` and so on. Nothing is written by a forked child.
    """

    def __init__(self, directory: Path, rank: int, *, max_bytes: int = MAX_BYTES) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.rank = rank
        self.max_bytes = max_bytes
        self.pid = os.getpid()
        self.number = len(list(directory.glob(f"rank-{rank}.*.jsonl")))  # a restarted run goes on in a file of its own
        self.started = time.time()
        self._open()

    def _open(self) -> None:
        self.path = self.directory / f"rank-{self.rank}.{self.number:03d}.jsonl"
        self.file = self.path.open("a", encoding="utf-8")
        self.size = 0

    def write(self, kind: str, **fields: Any) -> None:
        """Raises `OSError` if the disk is full or the file can't be written."""
        if self.foreign:
            return
        try:
            line = ENCODE({"kind": kind, **fields}) + "\n"
        except ValueError:  # a number that is not finite
            line = ENCODE({"kind": kind, **_finite(fields)}) + "\n"
        if self.size and self.size + len(line) > self.max_bytes:
            self.file.close()
            self.number += 1
            self._open()
        self.file.write(line)
        self.file.flush()
        self.size += len(line)

    @property
    def foreign(self) -> bool:
        """Whether this is a forked child of the process that records, as a worker of a DataLoader is."""
        return os.getpid() != self.pid

    def close(self) -> None:
        self.file.close()


def _finite(value: Any) -> Any:
    """NaN and infinities as strings, which every reader of JSON can read."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return value
