"""Every statistic of a checkpoint's weights: the doctor's streaming pass beside one raw read and torch.

    python benchmarks/read_weights.py [--megabytes 600]

Prints seconds of CPU (the page cache is warm for all alike), their ratio to the raw read, the seconds of a whole
process with its imports, and its peak memory.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

TENSORS = 400
RUNS = 3
MEASURE = """
import resource, sys, time
from pathlib import Path
path = Path(sys.argv[1])
{imports}
def work():
{work}
times = []
for _ in range(int(sys.argv[2])):
    start = time.process_time()
    work()
    times.append(time.process_time() - start)
print(min(times), time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
READERS = {
    "raw read": (
        "import os",
        """
    buffer, descriptor, offset = bytearray(512 << 10), os.open(path, os.O_RDONLY), 0
    while read := os.preadv(descriptor, [buffer], offset):
        offset += read
    os.close(descriptor)
""",
    ),
    "doctor, safetensors": (
        "from fgclip_doctor.sources import safetensors_file",
        """
    for tensor in safetensors_file.read(path).values():
        tensor.statistics
""",
    ),
    "doctor, torch file": (
        "from fgclip_doctor.sources import torch_file",
        """
    for tensor in torch_file.read(path.with_suffix(".pt")).values():
        tensor.statistics
""",
    ),
    "doctor, structure only": (
        "from fgclip_doctor.sources import torch_file",
        """
    torch_file.read(path.with_suffix(".pt"))
""",
    ),
    "torch, by tensor": (
        "import torch; torch.set_num_threads(1); from safetensors.torch import load_file",
        """
    for tensor in load_file(path).values():
        deviations = tensor - tensor.mean()
        tensor.std(), tensor.norm(), tensor.min(), tensor.max()
        tensor.isnan().sum(), tensor.isinf().sum(), (tensor == 0).sum()
        (tensor.bfloat16().float() == tensor).sum(), (tensor.half().float() == tensor).sum()
        deviations.pow(4).mean() / deviations.pow(2).mean() ** 2
""",
    ),
}


def write(path: Path, megabytes: int) -> None:
    """The same fp32 weights as safetensors and as `torch.save` writes them."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    size = megabytes * 1_000_000 // 4 // TENSORS
    weights = {f"layer.{index}.weight": torch.randn(size, generator=generator) * 0.02 for index in range(TENSORS)}
    save_file(weights, path)
    torch.save(weights, path.with_suffix(".pt"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=600)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "weights.safetensors"
        writing = multiprocessing.get_context("spawn").Process(target=write, args=(path, arguments.megabytes))
        writing.start()  # elsewhere, as a child's peak memory begins with that of its parent
        writing.join()
        raw = 0.0
        print(f"{'':24}{'CPU s':>8}{'x raw':>8}{'whole process s':>17}{'peak MB':>9}")
        for name, (imports, work) in READERS.items():
            code = MEASURE.format(imports=imports, work=work)
            command = [sys.executable, "-c", code, str(path), str(RUNS)]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
            seconds, whole, peak = map(float, done.stdout.split())
            raw = raw or seconds
            print(f"{name:24}{seconds:8.3f}{seconds / raw:8.1f}{whole - (RUNS - 1) * seconds:17.2f}{peak:9.0f}")


if __name__ == "__main__":
    main()
