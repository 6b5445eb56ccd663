"""Bytes as a safetensors file, or as the header of a sound one. The first byte chooses which."""

from __future__ import annotations

from pathlib import Path

DATA = bytes(range(256))
WORDS = (
    b'"dtype":"F32"',
    b'"dtype":"BF16"',
    b'"dtype":"F8_E4M3"',
    b'"dtype":"C64"',
    b'"dtype":"I64"',
    b'"dtype":"BOOL"',
    b'"shape":[2,5]',
    b'"shape":[]',
    b'"shape":[0]',
    b'"data_offsets":[0,4]',
    b'"data_offsets":[4,44]',
    b'"logit_scale":',
    b'"region_image_queue":',
    b'"region_text_queue":',
    b'"queue_ptr":',
    b'"queue_is_full":',
    b'"text_projection.weight":',
    b'"__metadata__":{',
)


def write(data: bytes, folder: Path) -> Path:
    """Write what `data` stands for into `folder`, which is empty. Returns what is to be audited."""
    content = data[1:]
    path = folder / "model.safetensors"
    path.write_bytes(content if data[0] < 64 else len(content).to_bytes(8, "little") + content + DATA)
    return path
