"""A long text log: the doctor's reader beside one raw read and a loop over the lines: a regular expression, or csv.

    python benchmarks/read_log.py [--megabytes 50] [--rounds 3] [--only csv]
    python benchmarks/read_log.py --bounds [--gigabytes 5]

Prints megabytes a second of CPU, so per core, for several writers' lines, the ratios of the times, and the peak memory:
the best of some rounds in which the readers take turns. With `--bounds`, what is read of files that no training writes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import string
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import islice, product
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
Draw = Callable[[], float]


def open_clip(step: int, draw: Draw) -> str:
    return (
        f"2024-05-01,12:{step // 60 % 60:02d}:{step % 60:02d} | INFO | Train Epoch: {step // 1000} "
        f"[{(step % 1000 + 1) * 128:>6}/128000 ({step % 1000 // 10}%)] Data (t): {draw():.3f} Batch (t): {draw():.3f}, "
        f"{draw() * 1000:.1f}/s LR: {draw() * 1e-3:.6f} Logit Scale: {14 + draw():.3f} "
        f"Contrastive_loss: {draw() * 5:.4f} ({draw() * 5:.4f}) Loss: {draw() * 5:.4f} ({draw() * 5:.4f})"
    )


def transformers(step: int, draw: Draw) -> str:
    rate = f"{draw() * 1e-4:.4g}"
    return (
        f"{{'loss': '{draw() * 5:.4g}', 'grad_norm': '{draw() * 9:.4g}', 'learning_rate': '{rate}', "
        f"'epoch': '{step / 9999:.4g}'}}"
    )


def transformers_4(step: int, draw: Draw) -> str:
    """As it was printed before version 5: every digit that there is."""
    return (
        f"{{'loss': {draw() * 5:.4f}, 'grad_norm': {draw() * 9!r}, 'learning_rate': {draw() * 1e-4!r}, "
        f"'epoch': {step / 9999:.2f}}}"
    )


def metric_logger(step: int, draw: Draw) -> str:
    return (
        f"Train Epoch: [{step // 1000}]  [{step % 1000:>4}/1000]  eta: 0:{step % 60:02d}:{step % 59:02d}  "
        f"lr: {draw() * 1e-4:.6f}  loss_ita: {draw() * 9:.4f} ({draw() * 9:.4f})  "
        f"loss_itm: {draw():.4f} ({draw():.4f})  time: {draw():.4f}  data: {draw() / 99:.4f}  max mem: 12345"
    )


def accumulated(step: int, draw: Draw) -> str:
    return f"Step {step} [ACCUMULATED] Total: {draw() * 9:.4f} | Global: {draw() * 4:.4f} | Region: {draw() * 5:.4f}"


def key_value(step: int, draw: Draw) -> str:
    return (
        f"step={step} loss={draw() * 5:.4f} loss_region={draw() * 5:.4f} lr={draw() * 1e-4:.3e} norm={draw() * 9:.3f}"
    )


def json_lines(step: int, draw: Draw) -> str:
    return f'{{"step": {step}, "loss": {draw() * 5!r}, "grad_norm": {draw() * 9!r}, "lr": {draw() * 1e-4!r}}}'


def csv(step: int, draw: Draw) -> str:
    return "step,loss,grad_norm,lr" if not step else f"{step},{draw() * 5:.6f},{draw() * 9:.6f},{draw() * 1e-2:.8f}"


WRITERS = (open_clip, transformers, transformers_4, metric_logger, accumulated, key_value, json_lines, csv)


def write(path: Path, line: Callable[[int, Draw], str], megabytes: int) -> None:
    draw, step, size = random.Random(0).random, 0, megabytes * 1_000_000
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < size if step % 1000 == 0 else True:
            file.write(line(step, draw) + "\n")
            step += 1


def measured(path: Path, reader: str) -> tuple[float, float]:
    """CPU seconds and peak megabytes of a process that does nothing else."""
    imports, work = READERS[reader]
    command = [sys.executable, "-c", MEASURE.format(imports=imports, work=work), str(path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    seconds, peak = map(float, done.stdout.split())
    return seconds, peak


def speeds(megabytes: int, rounds: int, only: str) -> None:
    heads = f"{'MB/s of one core':16}{'raw read':>10}{'loop':>8}{'doctor':>8}"
    print(f"{heads}{'loop/doctor':>13}{'doctor/raw':>12}{'peak MB':>9}")
    for line in WRITERS:
        if only not in line.__name__:
            continue
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "train.log"
            writing = multiprocessing.get_context("spawn").Process(target=write, args=(path, line, megabytes))
            writing.start()  # elsewhere, as a child's peak memory begins with that of its parent
            writing.join()
            loop = "csv module, row by row" if line is csv else "regex, line by line"
            turns = [[measured(path, reader) for reader in ("raw read", loop, "doctor")] for _ in range(rounds)]
            raw, slow, ours = (min(seconds for seconds, _ in turn) for turn in zip(*turns, strict=True))
            size, peak = path.stat().st_size / 1e6, max(turn[-1][1] for turn in turns)
            print(
                f"{line.__name__:16}{size / raw:10.0f}{size / slow:8.0f}{size / ours:8.0f}{slow / ours:13.1f}"
                f"{ours / raw:12.0f}{peak:9.0f}"
            )


# --- what no training writes -------------------------------------------------------------------------------------


def long_log(path: Path, gigabytes: float) -> None:
    write(path, open_clip, 20)
    block = path.read_bytes()
    with path.open("ab") as file:
        for _ in range(int(gigabytes * 1e9 / len(block)) - 1):
            file.write(block)


def long_line(path: Path, gigabytes: float) -> None:
    with path.open("wb") as file:
        file.write(b"step 1 loss 2.0\n" * 10_000)
        file.seek(2 << 30, os.SEEK_CUR)  # a hole: zero bytes, which are no line's end
        file.write(b"\nstep 2 loss 1.0\n")


def many_tags(path: Path, gigabytes: float) -> None:
    names = map("".join, islice(product(string.ascii_lowercase, repeat=5), 1_000_000))
    _write_lines(path, (f"step {step} {name}_loss: 1.5\n" for step, name in enumerate(names)))


def many_numbered_tags(path: Path, gigabytes: float) -> None:
    _write_lines(path, (f"step {step} layer{step}.loss: 1.5\n" for step in range(1_000_000)))


def _write_lines(path: Path, lines: Iterator[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(lines)


def bounds(gigabytes: float) -> None:
    print(f"{'':20}{'GB':>8}{'CPU s':>8}{'peak MB':>9}")
    for writer in (long_log, long_line, many_tags, many_numbered_tags):
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "train.log"
            writing = multiprocessing.get_context("spawn").Process(target=writer, args=(path, gigabytes))
            writing.start()
            writing.join()
            seconds, peak = measured(path, "doctor")
            print(f"{writer.__name__:20}{path.stat().st_size / 1e9:8.2f}{seconds:8.1f}{peak:9.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="the name of a writer")
    parser.add_argument("--bounds", action="store_true", help="memory and time for what no training writes")
    parser.add_argument("--gigabytes", type=float, default=5.0)
    arguments = parser.parse_args()
    if arguments.bounds:
        bounds(arguments.gigabytes)
    else:
        speeds(arguments.megabytes, arguments.rounds, arguments.only)


if __name__ == "__main__":
    main()
