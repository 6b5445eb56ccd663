"""Bytes as the pickle of every file that may be one. The first byte chooses which."""

from __future__ import annotations

from pathlib import Path

NAMES = ("scheduler.pt", "training_args.bin", "optimizer.pt", "weights.pt", "all.ckpt", ".metadata")
WORDS = (
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._tensor\n_rebuild_from_type_v2\n",
    b"cnumpy.core.multiarray\n_reconstruct\n",
    b"cnumpy.core.multiarray\nscalar\n",
    b"cnumpy\ndtype\n",
    b"ccollections\nOrderedDict\n",
    b"ccopyreg\n_reconstructor\n",
    b"X\x05\x00\x00\x00state",
    b"X\x0c\x00\x00\x00param_groups",
    b"X\x06\x00\x00\x00params",
    b"X\x07\x00\x00\x00exp_avg",
    b"X\x04\x00\x00\x00step",
    b"X\x0a\x00\x00\x00state_dict",
    b"X\x0a\x00\x00\x00last_epoch",
)


def write(data: bytes, folder: Path) -> Path:
    """Write what `data` stands for into `folder`, which is empty. Returns what is to be audited."""
    name = NAMES[data[0] % len(NAMES)]
    (folder / name).write_bytes(data[1:])
    return folder if name == ".metadata" else folder / name
