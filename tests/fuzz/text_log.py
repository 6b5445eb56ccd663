"""Bytes as a log or a table. The first byte chooses the name."""

from __future__ import annotations

from pathlib import Path

NAMES = ("train.log", "metrics.csv", "log.jsonl", "metrics.tsv")
WORDS = (
    b"step",
    b"epoch",
    b"loss: ",
    b"{'loss': '",
    b"Train Epoch: 0 [ 128/12800 (1%)]",
    b"50/1000 [00:05<01:35, 9.95it/s, loss=5.0]",
    b"Epoch(train)  [1][  50/1000]",
    b"Epoch: [0][ 10/5004]",
    b"[Memory Bank] enabled",
    b"Namespace(",
    b"num_updates=",
    b"nan",
    b"-inf",
    b"1e-4",
    b"0.000",
    b"rank 0",
    b"eval_",
    b"\r",
    b"\x1b[32m",
    b"Total train batch size (w. parallel, distributed & accumulation) = 16",
    b"99999999999999999999",
)


def write(data: bytes, folder: Path) -> Path:
    """Write what `data` stands for into `folder`, which is empty. Returns what is to be audited."""
    path = folder / NAMES[data[0] % len(NAMES)]
    path.write_bytes(data[1:])
    return path
