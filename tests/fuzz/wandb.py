"""Bytes as W&B's history, or as the messages of one with sound frames and checksums. The first byte chooses which."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

WORDS = (
    b"\x12\x10\x0a\x0e\x0a\x05_step\x82\x01\x01",
    b"\x0a\x04loss\x82\x01\x031.5",
    b"\x12\x0a\x12\x04loss\x82\x01\x011",
    b"\x2a",
    b"\x8a\x01",
    b'\x82\x01\x03"a"',
    b'\x82\x01\x0e{"value": 1e9}',
    b"NaN",
    b"_wandb",
)
FULL = 1


def write(data: bytes, folder: Path) -> Path:
    """Write what `data` stands for into `folder`, which is empty. Returns what is to be audited."""
    content = data[1:]
    if data[0] >= 64:
        content = b":W&B\xe1\xbf\x00" + b"".join(map(record, messages(content)))
    path = folder / "run-x.wandb"
    path.write_bytes(content)
    return path


def messages(data: bytes) -> list[bytes]:
    """Messages behind their length in a byte."""
    found, at = [], 0
    while at < len(data):
        found.append(data[at + 1 : at + 1 + data[at]])
        at += 1 + data[at]
    return found


def record(message: bytes) -> bytes:
    """A message in its frame."""
    return struct.pack("<IHB", zlib.crc32(bytes([FULL]) + message), len(message), FULL) + message
