"""Bytes as an event file, or as the messages of one with sound frames and checksums. The first byte chooses which."""

from __future__ import annotations

import struct
from pathlib import Path

REPEATS = (1, 20)  # so many records of a shape are decoded one by one, and by columns
WORDS = (
    b"\x0a\x04loss",
    b"\x0a\x04lr/x",
    b"\x0a\x06scalar",
    b"\x0a\x07hparams",
    b"\x0a\x04text",
    b"\x15\x00\x00\x80\x3f",
    b"\x42\x06\x08\x01\x12\x00\x2d\x00\x00\x80\x3f",
    b"\x4a\x0b\x0a\x09\x0a\x07scalars",
    b'{"batch_size": 4}',
)


def _entry(crc: int) -> int:
    for _ in range(8):
        crc = crc >> 1 ^ (crc & 1) * 0x82F63B78
    return crc


TABLE = tuple(map(_entry, range(256)))


def write(data: bytes, folder: Path) -> Path:
    """Write what `data` stands for into `folder`, which is empty. Returns what is to be audited."""
    content = data[1:] if data[0] < 64 else b"".join(map(record, _messages(data)))
    path = folder / "events.out.tfevents.1"
    path.write_bytes(content)
    return path


def _messages(data: bytes) -> list[bytes]:
    """Messages behind their length in a byte, each several times, with another step where it has one."""
    found, at = [], 1
    while at < len(data):
        message = data[at + 1 : at + 1 + data[at]]
        at += 1 + len(message)
        for step in range(REPEATS[data[0] % 2]):
            start = message[:9] + bytes([message[9], step + 1]) if message[9:10] == b"\x10" else message[:11]
            found.append(start + message[11:])
    return found


def record(message: bytes) -> bytes:
    """A message in its frame."""
    return frame(len(message)) + message + _checksum(message)


def frame(length: int) -> bytes:
    """What stands before a message of this length."""
    header = struct.pack("<Q", length)
    return header + _checksum(header)


def _checksum(data: bytes) -> bytes:
    """The masked CRC-32C, as TFRecord has it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
