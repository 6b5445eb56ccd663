"""An audit of weights stays small whatever their size. The files are sparse: gigabytes that take up no disk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

LIMIT = 500  # MB of a whole audit, its libraries included
AUDIT = """
import sys
from pathlib import Path
from fgclip_doctor.cli import app
try:
    app(["audit", "--no-cache", sys.argv[1]])
except SystemExit as end:
    assert end.code == 0, end.code
# getrusage's maximum would count what the parent held when it forked
print(int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024)
"""


def peak(path: Path) -> float:
    """MB that the process of an audit held at most."""
    assert path.stat().st_blocks * 512 < 1 << 20
    done = subprocess.run([sys.executable, "-c", AUDIT, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return int(done.stdout.split()[-1]) / 1e6


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_safetensors_of_two_gigabytes(tmp_path: Path, dtype: str) -> None:
    """With a matrix as large as any that is read whole, and one that is larger."""
    shapes = {"head": [8192, 8192], "vision_model.layers.0.fc1": [32768, 8192], "logit_scale": []}
    entries, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + torch.Size(shape).numel() * (4 if dtype == "F32" else 2)
        entries[f"{name}.weight"] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(entries).encode()
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)
    assert peak(path) < LIMIT


def test_torch_archive_beyond_four_gibibytes(tmp_path: Path) -> None:
    """Its directory has the long form (ZIP64), and all but a part of its one large storage lies there unread."""
    storage = torch.UntypedStorage.from_file(str(tmp_path / "storage"), shared=True, nbytes=5 << 30)
    whole = torch.tensor([], dtype=torch.float32).set_(storage, 0, (5 << 28,))
    weights = {"vision_model.weight": whole[-(1 << 28) :].view(16384, 16384), "logit_scale": torch.tensor(4.6)}
    path = tmp_path / "model.pt"
    with torch.serialization.skip_data():
        torch.save(weights, path)
    assert path.stat().st_size > 5 << 30
    assert peak(path) < LIMIT
