"""A long text log: the doctor's reader beside one raw read and a loop over the lines: a regular expression, or csv.

    python benchmarks/read_log.py [--megabytes 100]

Prints megabytes a second of CPU for several writers' lines, the ratio to the loop, and the peak memory.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

MEASURE = """
import re, resource, sys, time
from pathlib import Path
path = Path(sys.argv[1])
{imports}
def work():
{work}
work_start = time.process_time()
work()
print(time.process_time() - work_start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
READERS = {
    "raw read": ("", "    [None for chunk in iter(lambda file=path.open('rb'): file.read(1 << 20), b'')]"),
    "regex, line by line": (
        r"PAIR = re.compile(r'([A-Za-z_][\w@/ ]*)\W{1,3}([-+]?\d+\.?\d*(?:[eE][-+]?\d+)?)')",
        """
    columns = {}
    for line in path.open():
        for name, value in PAIR.findall(line):
            columns.setdefault(name, []).append(float(value))
""",
    ),
    "csv module, row by row": (
        "import csv",
        """
    columns = {}
    for row in csv.DictReader(path.open()):
        for name, value in row.items():
            columns.setdefault(name, []).append(float(value))
""",
    ),
    "doctor": ("from fgclip_doctor.sources import text_log", "    text_log.read(path)"),
}


def open_clip(step: int, draw: Callable[[], float]) -> str:
    return (
        f"2024-05-01,12:{step // 60 % 60:02d}:{step % 60:02d} | INFO | Train Epoch: {step // 1000} "
        f"[{(step % 1000 + 1) * 128:>6}/128000 ({step % 1000 // 10}%)] Data (t): {draw():.3f} Batch (t): {draw():.3f}, "
        f"{draw() * 1000:.1f}/s LR: {draw() * 1e-3:.6f} Logit Scale: {14 + draw():.3f} "
        f"Contrastive_loss: {draw() * 5:.4f} ({draw() * 5:.4f}) Loss: {draw() * 5:.4f} ({draw() * 5:.4f})"
    )


def transformers(step: int, draw: Callable[[], float]) -> str:
    rate = f"{draw() * 1e-4:.4g}"
    return f"{{'loss': '{draw() * 5:.4g}', 'grad_norm': '{draw() * 9:.4g}', 'learning_rate': '{rate}', 'step': {step}}}"


def accumulated(step: int, draw: Callable[[], float]) -> str:
    return f"Step {step} [ACCUMULATED] Total: {draw() * 9:.4f} | Global: {draw() * 4:.4f} | Region: {draw() * 5:.4f}"


def json_lines(step: int, draw: Callable[[], float]) -> str:
    return f'{{"step": {step}, "loss": {draw() * 5!r}, "grad_norm": {draw() * 9!r}, "lr": {draw() * 1e-4!r}}}'


def csv(step: int, draw: Callable[[], float]) -> str:
    return "step,loss,grad_norm,lr" if not step else f"{step},{draw() * 5:.6f},{draw() * 9:.6f},{draw() * 1e-2:.8f}"


WRITERS = (open_clip, transformers, accumulated, json_lines, csv)


def write(path: Path, line: Callable[[int, Callable[[], float]], str], megabytes: int) -> None:
    draw, step, size = random.Random(0).random, 0, megabytes * 1_000_000
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < size if step % 1000 == 0 else True:
            file.write(line(step, draw) + "\n")
            step += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=100)
    arguments = parser.parse_args()
    print(f"{'':14}{'':24}{'MB/s':>8}{'x loop':>9}{'peak MB':>9}")
    for line in WRITERS:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "train.log"
            writing = multiprocessing.get_context("spawn").Process(target=write, args=(path, line, arguments.megabytes))
            writing.start()  # elsewhere, as a child's peak memory begins with that of its parent
            writing.join()
            seconds: dict[str, float] = {}
            peaks: dict[str, float] = {}
            loop = "csv module, row by row" if line is csv else "regex, line by line"
            for name in ("raw read", loop, "doctor"):
                imports, work = READERS[name]
                command = [sys.executable, "-c", MEASURE.format(imports=imports, work=work), str(path)]
                environment = os.environ | {"OMP_NUM_THREADS": "1"}
                done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
                seconds[name], peaks[name] = map(float, done.stdout.split())
            for name, spent in seconds.items():
                rate = path.stat().st_size / 1e6 / spent
                faster = seconds[loop] / spent
                print(f"{line.__name__:14}{name:24}{rate:8.0f}{faster:9.1f}{peaks[name]:9.0f}")


if __name__ == "__main__":
    main()
