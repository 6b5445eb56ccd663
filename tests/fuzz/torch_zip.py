"""Bytes as a torch zip file, or as the pickle in a sound one beside some storages. The first byte chooses which."""

from __future__ import annotations

import zipfile
from pathlib import Path

NAMES = ("pytorch_model.bin", "optimizer.pt", "model.ckpt", "training_args.bin", "mp_rank_00_model_states.pt")
SHARD = "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"
STORAGES = 16
STORAGE = bytes(range(256))
WORDS = (
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x08tQ",
    b"((X\x07\x00\x00\x00storagectorch\nLongStorage\nX\x01\x00\x00\x001X\x03\x00\x00\x00cpuK\x04tQ",
    b"ctorch\nBFloat16Storage\n",
    b"K\x00K\x02K\x03\x86K\x03K\x01\x86\x89)tR",
    b"X\x0b\x00\x00\x00logit_scale",
    b"X\x12\x00\x00\x00region_image_queue",
    b"X\x09\x00\x00\x00queue_ptr",
    b"X\x05\x00\x00\x00state",
    b"X\x0c\x00\x00\x00param_groups",
    b"X\x06\x00\x00\x00params",
    b"X\x07\x00\x00\x00exp_avg",
    b"X\x0a\x00\x00\x00exp_avg_sq",
    b"X\x0c\x00\x00\x00param_shapes",
    b"X\x06\x00\x00\x00module",
    b"X\x14\x00\x00\x00optimizer_state_dict",
    b"PK\x03\x04",
    b"PK\x01\x02",
    b"PK\x05\x06",
)


def write(data: bytes, folder: Path) -> Path:
    """Write what `data` stands for into `folder`, which is empty. Returns what is to be audited."""
    name, content = NAMES[data[0] % len(NAMES)], data[1:]
    if data[0] < 128:
        (folder / name).write_bytes(content)
    else:
        _wrap(folder / name, content)
    if name.startswith("mp_rank"):  # DeepSpeed's: what follows the first pickle is the optimizer's
        _wrap(folder / SHARD, content[content.find(b".") + 1 :])
        return folder
    return folder / name


def _wrap(path: Path, pickled: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for key in range(STORAGES):
            archive.writestr(f"archive/data/{key}", STORAGE)
