"""A run directory of many checkpoints, audited twice: what the cache of measurements saves.

    python benchmarks/second_audit.py [--checkpoints 20] [--full-size]

Every checkpoint has weights of 52 MB and an optimizer of 104 MB, or those of CLIP ViT-B/32 (0.6 and 1.2 GB). Prints,
for each audit in a process of its own, seconds of wall time and of CPU, without those of the imports, the megabytes
read (`rchar` of /proc/self/io), the peak memory, how many times less CPU than the first audit, and whether the report
is another than without a cache. The page cache is warm for all alike.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

AUDIT = """
import resource, sys, time
import numpy, fgclip_doctor.diagnosis, fgclip_doctor.reports.json, fgclip_doctor.sources, fgclip_doctor_checks
from fgclip_doctor.cli import app
def read():
    return int(open("/proc/self/io").readline().split()[1])
before, start, busy = read(), time.perf_counter(), time.process_time()
try:
    app(sys.argv[1:])
except SystemExit:
    spent = time.perf_counter() - start, time.process_time() - busy, (read() - before) / 1e6
    print(*spent, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, file=sys.stderr)
"""


def write(directory: Path, checkpoints: int, full_size: bool) -> None:
    """A run from pretrained weights as this package's own training leaves it, with random gradients instead of data."""
    import torch

    from fgclip_doctor.core.config import FgclipConfig, TextConfig, VisionConfig
    from fgclip_doctor.core.model import FgclipModel
    from fgclip_doctor.training import checkpointing
    from fgclip_doctor.training.optim import build_optimizer, build_scheduler, parameter_groups
    from fgclip_doctor.training.settings import TrainConfig

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    small = FgclipConfig(
        vision_config=VisionConfig(hidden_size=256, intermediate_size=1024, num_attention_heads=4, num_hidden_layers=6),
        text_config=TextConfig(
            hidden_size=256, intermediate_size=1024, num_attention_heads=4, num_hidden_layers=6, vocab_size=9000
        ),
        projection_dim=256,
    )
    model = FgclipModel(FgclipConfig() if full_size else small)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and name.endswith("weight"):
                parameter.uniform_(0.5, 1.5, generator=generator)  # gains as pretraining leaves them
    config = TrainConfig(output_dir=directory, model=model.config, max_steps=1000)
    optimizer = build_optimizer(parameter_groups(model, config), config)
    scheduler = build_scheduler(optimizer, config)
    progress = checkpointing.Progress()
    for _ in range(checkpoints):
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter).normal_(std=1e-3, generator=generator)
        optimizer.step()
        scheduler.step()
        progress.step += 1
        checkpointing.save(config, model, optimizer, scheduler, progress)


def audit(run: Path, cache: Path, *options: str) -> tuple[list[float], str]:
    """Seconds, seconds of CPU, megabytes read and peak megabytes; and the report."""
    command = [sys.executable, "-c", AUDIT, "audit", str(run), "--format", "json", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "FGCLIP_DOCTOR_CACHE": str(cache)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return list(map(float, done.stderr.split()[-4:])), done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=int, default=20)
    parser.add_argument("--full-size", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        run, cache = Path(directory) / "run", Path(directory) / "cache"
        written = (run, arguments.checkpoints, arguments.full_size)
        writing = multiprocessing.get_context("spawn").Process(target=write, args=written)
        writing.start()
        writing.join()
        size = sum(file.stat().st_size for file in run.rglob("*") if file.is_file()) / 1e6
        time.sleep(5)  # what was written just now is not cached
        print(f"{arguments.checkpoints} checkpoints, {size:,.0f} MB")
        print(f"{'':16}{'wall s':>8}{'CPU s':>8}{'MB read':>9}{'peak MB':>9}{'faster':>9}")
        plain, first = "", 0.0
        for name, options in (("no cache", ["--no-cache"]), ("first audit", []), ("second audit", [])):
            (wall, cpu, megabytes, peak), report = audit(run, cache, *options)
            plain, first = plain or report, cpu if name == "first audit" else first
            same = "" if report == plain else "  ANOTHER REPORT"
            ratio = f"{first / cpu:9.1f}" if first else ""
            print(f"{name:16}{wall:8.2f}{cpu:8.2f}{megabytes:9.1f}{peak:9.0f}{ratio}{same}")
        kept = [file.stat().st_size for file in cache.rglob("*") if file.is_file()]
        print(f"cache: {len(kept)} files, {sum(kept) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
