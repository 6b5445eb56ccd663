"""TensorBoard event files: the doctor's reader beside TensorBoard's own EventAccumulator and one raw read.

    python benchmarks/read_events.py [--scalars 1000000] [--sample 100000]

EventAccumulator reads the first `--sample` scalars only, and its time is scaled up: it takes as long for each. Prints
seconds of CPU (the page cache is warm for all alike), the ratio to EventAccumulator, peak memory of the process, and
the time in which 100 appended records are picked up.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

TAGS = 10
APPENDED = 100
MEASURE = """
import resource, sys, time
from pathlib import Path
path, runs = Path(sys.argv[1]), int(sys.argv[2])
{imports}
times = []
for _ in range(runs):
    start = time.process_time()
    {work}
    times.append(time.process_time() - start)
print(min(times), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
POLL = """
import sys, time
from pathlib import Path
from fgclip_doctor.sources.tensorboard_events import EventLog
path, appended = Path(sys.argv[1]), Path(sys.argv[1]).with_name("appended").read_bytes()
log = EventLog(path)
log.poll()
best = 1.0
for _ in range(20):
    with path.open("ab") as file:
        file.write(appended)
    start = time.perf_counter()
    count = log.poll()
    log.run()
    best = min(best, time.perf_counter() - start)
    assert count == {appended}
print(best)
"""
DOCTOR = "from fgclip_doctor.sources.tensorboard_events import read"
ACCUMULATOR = (
    "from tensorboard.backend.event_processing.event_accumulator import EventAccumulator",
    "EventAccumulator(str(path), size_guidance=dict(scalars=0, tensors=0), purge_orphaned_data=False).Reload()",
)


def simple(value: Any, number: float) -> None:
    value.simple_value = number


def tensor(value: Any, number: float) -> None:
    value.tensor.dtype = 1
    value.tensor.tensor_shape.SetInParent()
    value.tensor.tensor_content = struct.pack("<f", number)
    value.metadata.plugin_data.plugin_name = "scalars"


def write(directory: Path, kind: str, sizes: dict[str, int]) -> None:
    """The beginning of one log, of several lengths, as files. Checksums are those of a table, which is much faster than
    the writer's own; that EventAccumulator reads every record shows that they are right."""
    import numpy as np
    from tensorboard.compat.proto.event_pb2 import Event

    fill: Callable[[Any, float], None] = {"simple": simple, "tensor": tensor}[kind]
    table = [0] * 256
    for index in range(256):
        crc = index
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
        table[index] = crc

    def checksum(data: bytes) -> bytes:
        crc = 0xFFFFFFFF
        for byte in data:
            crc = (crc >> 8) ^ table[(crc ^ byte) & 0xFF]
        crc ^= 0xFFFFFFFF
        return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)

    tags = [f"train/{name}_{index}" for index, name in enumerate(["loss", "global", "region", "hard", "lr"] * 2)]
    numbers = np.random.default_rng(0).normal(size=max(sizes.values())).tolist()
    files = {name: (directory / name).open("wb") for name in sizes}
    for index, number in enumerate(numbers):
        event = Event(wall_time=1.7e9 + index * 0.01, step=index // TAGS)
        value = event.summary.value.add(tag=tags[index % TAGS])
        fill(value, number)
        data = event.SerializeToString()
        header = struct.pack("<Q", len(data))
        record = header + checksum(header) + data + checksum(data)
        for name, size in sizes.items():
            if index < size:
                files[name].write(record)
    for file in files.values():
        file.close()


def measure(path: Path, runs: int, imports: str, work: str) -> tuple[float, float]:
    """CPU seconds and peak MB."""
    code = MEASURE.format(imports=imports, work=work)
    command = [sys.executable, "-c", code, str(path), str(runs)]
    seconds, peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return float(seconds), float(peak)


def audited(path: Path) -> float:
    """CPU seconds of an audit, user's and system's, from the start of its Python to its end."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "fgclip_doctor", "audit", str(path)], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scalars", type=int, default=1_000_000)
    parser.add_argument("--sample", type=int, default=100_000)
    arguments = parser.parse_args()
    for kind in ("simple", "tensor"):
        with tempfile.TemporaryDirectory() as temporary:
            directory = Path(temporary)
            whole, sample = directory / "events.out.tfevents.whole", directory / "sample" / "events.out.tfevents.sample"
            sample.parent.mkdir()
            sizes = {whole.name: arguments.scalars, "sample/" + sample.name: arguments.sample, "appended": APPENDED}
            writing = multiprocessing.get_context("spawn").Process(target=write, args=(directory, kind, sizes))
            writing.start()  # elsewhere, as a child's peak memory begins with that of its parent
            writing.join()
            scale = arguments.scalars / arguments.sample
            seconds, peak = measure(sample, 1, *ACCUMULATOR)
            base = seconds * scale
            megabytes = whole.stat().st_size / 1e6
            print(f"{arguments.scalars:,} scalars of {TAGS} tags, {kind}, {megabytes:.0f} MB")
            print(f"{'':32}{'CPU s':>8}{'x faster':>10}{'peak MB':>9}")
            print(f"{f'EventAccumulator (x {scale:g})':32}{base:8.2f}{1:10.1f}{peak:9.0f}")
            readers = {
                "doctor, every CRC": (DOCTOR, "read(path)"),
                "doctor, no CRC": (DOCTOR, "read(path, checksums=False)"),
                "raw read": ("", "path.read_bytes()"),
            }
            for name, (imports, work) in readers.items():
                seconds, peak = measure(whole, 3, imports, work)
                print(f"{name:32}{seconds:8.2f}{base / seconds:10.1f}{peak:9.0f}")
            command = [sys.executable, "-c", POLL.format(appended=APPENDED), str(whole)]
            polled = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            seconds = min(audited(whole) for _ in range(3))
            print(f"{'audit, the whole process':32}{seconds:8.2f}{base / seconds:10.1f}")
            print(f"{APPENDED} records appended: {polled * 1e3:.2f} ms\n")


if __name__ == "__main__":
    main()
