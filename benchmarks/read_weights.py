"""Every statistic of a checkpoint's weights and of an optimizer's state: the doctor beside one raw read, and torch.

    python benchmarks/read_weights.py [--megabytes 600] [--sparse 50]

Each file is read in a process of its own, right after a raw read of the same file (the page cache is warm for both).
Prints seconds of wall time and of CPU, the ratio of each to the raw read's, the wall time of the whole process with its
imports, and its peak memory. torch reads the whole file, takes the same statistics by tensor, and has one thread.
With --sparse, bf16 weights of so many gigabytes follow that are all zero and take up no disk, audited from the command
line with every check.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

TENSORS = 200
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp8 (e4m3)": "float8_e4m3fn"}
MEASURE = """
import os, sys, time
from pathlib import Path
start = time.perf_counter()
path = Path(sys.argv[1])
{imports}
def work():
{work}
def raw():
    buffer, descriptor, offset = bytearray(512 << 10), os.open(path, os.O_RDONLY), 0
    while read := os.preadv(descriptor, [buffer], offset):
        offset += read
    os.close(descriptor)
def timed(run):
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu
first = timed(work)
whole = time.perf_counter() - start
# getrusage's maximum would count what the parent held when it forked
peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024 / 1e6
turns = [(timed(raw), timed(work)) for _ in range(int(sys.argv[2]))]
best = [min(times) for times in zip(*(raw + work for raw, work in turns))]
print(*best, whole, peak)
"""
SAFETENSORS = (
    "from fgclip_doctor.sources import safetensors_file",
    """
    for tensor in safetensors_file.read(path).values():
        tensor.statistics
""",
)
TORCH_FILE = (
    "from fgclip_doctor.sources import torch_file",
    """
    for tensor in torch_file.read(path).values():
        tensor.statistics
""",
)
STRUCTURE = ("from fgclip_doctor.sources import torch_file", "\n    torch_file.read(path)\n")
OPTIMIZER = (
    "from fgclip_doctor.run import Source; from fgclip_doctor.sources import optimizer, torch_file",
    """
    state = optimizer.read(torch_file.read(path), Source(str(path)))
    for one in state.states.values():
        one.step, one.exp_avg.statistics, one.exp_avg_sq.statistics
""",
)
TORCH = """
def summary(tensor):
    tensor.mean(), tensor.std(), tensor.norm(), tensor.min(), tensor.max()
    tensor.isnan().sum(), tensor.isinf().sum(), (tensor == 0).sum()
    (tensor.bfloat16().float() == tensor).sum(), (tensor.half().float() == tensor).sum()
"""
TORCH_SAFETENSORS = (
    f"import torch; torch.set_num_threads(1); from safetensors.torch import load_file\n{TORCH}",
    """
    for tensor in load_file(path).values():
        summary(tensor)
""",
)
TORCH_OPTIMIZER = (
    f"import torch; torch.set_num_threads(1)\n{TORCH}",
    """
    for one in torch.load(path)["state"].values():
        summary(one["exp_avg"]), summary(one["exp_avg_sq"])
""",
)
TORCH_LOAD = ("import torch; torch.set_num_threads(1)", "\n    torch.load(path)\n")
AUDIT = """
import sys
from pathlib import Path
from fgclip_doctor.cli import app
try:
    app(["audit", "--no-cache", sys.argv[1]])
except SystemExit as end:
    print(end.code, int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024 / 1e6)
"""


def write_weights(path: Path, megabytes: int, dtype: str) -> None:
    import torch
    from safetensors.torch import save_file

    kind = getattr(torch, dtype)
    generator = torch.Generator().manual_seed(0)
    size = megabytes * 1_000_000 // kind.itemsize // TENSORS
    names = [f"layer.{index}.weight" for index in range(TENSORS)]
    weights = {name: (torch.randn(size, generator=generator) * 0.02).to(kind) for name in names}
    save_file(weights, path) if path.suffix == ".safetensors" else torch.save(weights, path)


def write_optimizer(path: Path, megabytes: int) -> None:
    """AdamW's, after one step."""
    import torch

    generator = torch.Generator().manual_seed(0)
    size = megabytes * 1_000_000 // 8 // TENSORS
    parameters = [torch.nn.Parameter(torch.zeros(size)) for _ in range(TENSORS)]
    optimizer = torch.optim.AdamW(parameters)
    for parameter in parameters:
        parameter.grad = torch.randn(size, generator=generator)
    optimizer.step()
    torch.save(optimizer.state_dict(), path)


def write_sparse(path: Path, gigabytes: int) -> None:
    """Layers of 6,144 x 24,576 and smaller, in bf16."""
    width = 6144
    shapes: dict[str, list[int]] = {}
    while sum(width * 8 * shape[1] for shape in shapes.values() if len(shape) > 1) < gigabytes * 1_000_000_000 * 4:
        layer = f"vision_model.encoder.layers.{len(shapes)}"
        shapes |= {f"{layer}.{name}.weight": [width, width] for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
        shapes |= {f"{layer}.mlp.fc1.weight": [width, 4 * width], f"{layer}.norm.weight": [width]}
    entries, end = {}, 0
    for name, shape in {**shapes, "logit_scale": []}.items():
        start, size = end, 2
        for length in shape:
            size *= length
        end = start + size
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)


def elsewhere(write: Callable[..., None], *arguments: object) -> None:
    """In a process of its own, as a child's peak memory begins with that of its parent."""
    writing = multiprocessing.get_context("spawn").Process(target=write, args=arguments)
    writing.start()
    writing.join()
    if writing.exitcode:
        raise SystemExit("the file could not be written")


def measure(name: str, path: Path, reader: tuple[str, str], runs: int = 3) -> None:
    imports, work = reader
    command = [sys.executable, "-c", MEASURE.format(imports=imports, work=work), str(path), str(runs)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    raw, raw_cpu, wall, cpu, whole, peak = map(float, done.stdout.split())
    ratios = f"{wall:8.3f}{wall / raw:7.1f}{cpu:8.3f}{cpu / raw_cpu:7.1f}"
    print(f"{name:30}{raw:8.3f}{ratios}{whole:11.2f}{peak:9.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=600, help="of weights; the optimizer has twice as many")
    parser.add_argument("--sparse", type=int, default=0, metavar="GB")
    arguments = parser.parse_args()
    print(f"{'':30}{'raw s':>8}{'wall s':>8}{'x raw':>7}{'CPU s':>8}{'x raw':>7}{'process s':>11}{'peak MB':>9}")
    with tempfile.TemporaryDirectory() as directory:
        for name, dtype in DTYPES.items():
            path = Path(directory) / "weights.safetensors"
            elsewhere(write_weights, path, arguments.megabytes, dtype)
            measure(f"{name} weights", path, SAFETENSORS)
            if dtype == "float32":
                measure("  torch, by tensor", path, TORCH_SAFETENSORS, runs=1)
            path.unlink()
        path = Path(directory) / "weights.pt"
        elsewhere(write_weights, path, arguments.megabytes, "float32")
        measure("fp32 weights, torch.save", path, TORCH_FILE)
        path.unlink()
        path = Path(directory) / "optimizer.pt"
        elsewhere(write_optimizer, path, 2 * arguments.megabytes)
        measure("optimizer.pt", path, OPTIMIZER)
        measure("  its structure alone", path, STRUCTURE)
        measure("  torch.load alone", path, TORCH_LOAD, runs=1)
        measure("  torch.load and by tensor", path, TORCH_OPTIMIZER, runs=1)
        path.unlink()
        if arguments.sparse:
            path = Path(directory) / "sparse.safetensors"
            write_sparse(path, arguments.sparse)
            start = time.perf_counter()
            done = subprocess.run([sys.executable, "-c", AUDIT, str(path)], capture_output=True, text=True, check=True)
            code, peak = done.stdout.split()[-2:]
            size, seconds = path.stat().st_size / 1e9, time.perf_counter() - start
            print(f"audit of {size:.0f} GB, sparse: exit {code}, {seconds:.0f} s, peak {float(peak):.0f} MB")


if __name__ == "__main__":
    main()
