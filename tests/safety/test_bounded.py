"""What a stranger may ask for is bounded: each of these is refused or read in part, in a process that stays small.

``FGCLIP_DOCTOR_LARGE=1`` takes the weights and the log at their full size: minutes instead of seconds.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.events import frame, record
from tests.sources.hostile import exhausting, zipped

ROOT = Path(__file__).parents[2]
LARGE = bool(os.environ.get("FGCLIP_DOCTOR_LARGE"))
WEIGHTS = 50_000_000_000 if LARGE else 1_000_000_000  # bytes
KINDS = 60_000 if LARGE else 8_000  # of lines
PEAK = 500  # MiB, of the whole process
SECONDS = (
    300 if LARGE else 60
)  # of processor time: far more than any of them takes, but the end of what would never end
MEASURE = f"""
import json, resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_CPU, ({SECONDS}, {SECONDS}))
from fgclip_doctor.run import Missing
from tests.safety.audited import audited
said = []
for path in sys.argv[1:]:
    try:
        run, report = audited(Path(path))
        for checkpoint in run.checkpoints:
            [tensor.statistics for tensor in checkpoint.tensors.values()]
        said += [*report.problems, *report.notes, f"{{len(run.series)}} series"]
    except Missing as error:
        said.append(str(error))
# getrusage's maximum would count what the parent held when it forked
peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024
print(json.dumps([peak, said]))
"""


def measured(*paths: Path) -> list[str]:
    """What the audits of `paths` say, in a process that may not grow."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, paths)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=300,
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    peak, said = json.loads(done.stdout)
    assert peak < PEAK
    assert all("\n" not in line and len(line) < 1000 for line in said)
    lines: list[str] = said
    return lines


def sparse(path: Path, size: int, head: bytes = b"", tail: bytes = b"") -> Path:
    """A file of `size` bytes that takes hardly any space."""
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)
        file.seek(size - len(tail))
        file.write(tail)
    return path


def header(entries: dict[str, Any]) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


def bomb(size: int, name: str = "archive/data.pkl") -> bytes:
    """A compressed entry that would become `size` bytes."""
    content = io.BytesIO()
    with (
        zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open(name, "w", force_zip64=True) as to,
    ):
        for _ in range(size >> 20):
            to.write(bytes(1 << 20))
    return content.getvalue()


def overlapping(count: int) -> bytes:
    """A zip archive whose directory names one megabyte `count` times."""
    content = zipped(pickle.dumps({}), **{"data/00000": bytes(1 << 20)})
    first, last, end = content.find(b"PK\x01\x02"), content.rfind(b"PK\x01\x02"), content.find(b"PK\x05\x06")
    entries = b"".join(content[last:end].replace(b"00000", f"{number:05}".encode()) for number in range(count))
    directory = content[first:last] + entries
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count + 3, count + 3, len(directory), first, 0)
    return content[:first] + directory + tail


def nested(depth: int, opening: str = "[", closing: str = "]") -> str:
    return opening * depth + closing * depth


def _file(name: str, content: Callable[[], bytes | str]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        made = content()
        (folder / name).write_bytes(made.encode() if isinstance(made, str) else made)
        return folder / name

    return write


def _beside(name: str, content: Callable[[], bytes | str]) -> Callable[[Path], Path]:
    """The same, in a checkpoint that is read as a directory."""

    def write(folder: Path) -> Path:
        _file(name, content)(folder)
        (folder / "config.json").write_text('{"projection_dim": 2}')
        return folder

    return write


def _sparse(name: str, size: int, head: bytes = b"", tail: bytes = b"") -> Callable[[Path], Path]:
    return lambda folder: sparse(folder / name, size, head, tail)


def _links_in_a_circle(folder: Path) -> Path:
    for name, target in (("model.safetensors", "optimizer.pt"), ("optimizer.pt", "model.safetensors")):
        (folder / name).symlink_to(target)
    (folder / "checkpoint-1").symlink_to(folder, target_is_directory=True)
    (folder / "checkpoints").symlink_to(folder, target_is_directory=True)
    (folder / "logs").symlink_to("..", target_is_directory=True)
    (folder / "train.log").symlink_to("train.log")
    (folder / "config.json").write_text('{"projection_dim": 2}')
    return folder


def _deep_folders(folder: Path) -> Path:
    here = folder
    for _ in range(300):
        here = here / "checkpoints"
    here.mkdir(parents=True)
    (folder / "config.json").write_text('{"projection_dim": 2}')
    return folder


def _many_files(folder: Path) -> Path:
    for number in range(3_000):
        (folder / f"step_{number}.pt").touch()
        (folder / f"{number}.log").write_text("step=1 loss=1.5\n")
    return folder


def _tags(count: int) -> bytes:
    return b"".join(
        record(b"\x09" + bytes(8) + b"\x10\x01\x2a" + bytes([len(value) + 2]) + b"\x0a" + bytes([len(value)]) + value)
        for number in range(count)
        for value in [b"\x0a\x08" + f"{number:08}".encode() + b"\x15\x00\x00\x80\x3f"]
    )


GIB = 1 << 30
ENTRY = {"dtype": "F32", "shape": [WEIGHTS // 4], "data_offsets": [0, WEIGHTS]}
CASES: dict[str, tuple[Callable[[Path], Path], str]] = {  # each with what is said of it
    "a header as long as the file": (
        _sparse("x.safetensors", 8 * GIB, (8 * GIB - 8).to_bytes(8, "little")),
        "limit is",
    ),
    "a header longer than the file": (_sparse("x.safetensors", 64, b"\xff" * 8), "claims a safetensors header"),
    "large weights": (
        _sparse("x.safetensors", WEIGHTS + len(header({"w": ENTRY})), header({"w": ENTRY})),
        "",
    ),
    "a header of 16 MiB of brackets": (
        _file("x.safetensors", lambda: (2**24 - 8).to_bytes(8, "little") + b"[" * (2**24 - 8)),
        "holds more than",
    ),
    "nested JSON": (_beside("trainer_state.json", lambda: nested(100_000)), "nested too deeply"),
    "nested JSON objects": (_beside("adapter_config.json", lambda: nested(100_000, '{"a":', "}")), "nested too deeply"),
    "nested JSON lines": (_file("log.jsonl", lambda: f'{{"step": 1, "loss": {nested(20_000)}}}\n' * 3), "not"),
    "JSON of a gigabyte": (_sparse("trainer_state.json", GIB, b"{"), "too large for JSON"),
    "a million shards": (
        _beside(
            "model.safetensors.index.json",
            lambda: json.dumps({"weight_map": {str(n): f"{n}.safetensors" for n in range(1_000_000)}}),
        ),
        "shards; the limit is",
    ),
    "a number of a million digits": (
        _beside("trainer_state.json", lambda: f'{{"global_step": {"9" * 1_000_000}}}'),
        "",
    ),
    "a zip bomb": (_file("pytorch_model.bin", lambda: bomb(GIB >> 4)), "has a compressed entry"),
    "a zip bomb as a storage": (
        _file("pytorch_model.bin", lambda: bomb(GIB >> 4, "archive/data/0")),
        "has a compressed entry",
    ),
    "a zip whose entries lie upon each other": (_file("x.pt", lambda: overlapping(60_000)), "overlap"),
    "a zip directory of 4 GiB": (
        _sparse("x.pt", 5 * GIB, b"PK\x03\x04", struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 9, 9, 2**32 - 9, 0, 0)),
        "its directory is larger",
    ),
    "a pickle of a gigabyte of zeros": (_sparse("x.pt", 3 * GIB, b"\x80\x02"), "is not a sound pickle"),
    "a legacy storage of 2^60 values": (
        _file(
            "x.pt",
            lambda: (
                b"\x80\x02"
                + b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
                + b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpu\x8a\x08"
                + (2**59).to_bytes(8, "little")
                + b"tQK\x00\x8a\x08"
                + (2**59).to_bytes(8, "little")
                + b"\x85K\x01\x85\x89)tR."
            ),
        ),
        "",
    ),
    "an event of 2 GiB": (
        _sparse("events.out.tfevents.1", 2 * GIB + 16, frame(2 * GIB)),
        "",
    ),
    "an event file of zeros": (_sparse("events.out.tfevents.1", 3 * GIB), "no records after"),
    "70,000 tags": (_file("events.out.tfevents.1", lambda: _tags(70_000)), "tags over the limit"),
    "a line of 2 GiB": (_sparse("train.log", 2 * GIB, b"step=1 loss=1.5\n" * 100 + b"x" * 100_000), ""),
    "a line of 2 GiB of text": (_sparse("train.log", 64 << 20, b"step=1 loss=" * 5_000_000), ""),
    "many kinds of lines": (
        _file(
            "train.log",
            lambda: "".join(f"step={n} {'abcdefghij'[n % 10] * (n // 10 % 997)} loss{n}=1.5\n" for n in range(KINDS)),
        ),
        "",
    ),
    "a table of 100,000 columns": (
        _file("m.csv", lambda: ",".join(["step", *map(str, range(100_000))]) + "\n" + "1," * 100_000 + "1\n"),
        "",
    ),
    "links in a circle": (_links_in_a_circle, ""),
    "folders 300 deep": (_deep_folders, ""),
    "6,000 files": (_many_files, ""),
}


@pytest.mark.parametrize("name", CASES)
def test_bounded(tmp_path: Path, name: str) -> None:
    write, expected = CASES[name]
    folder = tmp_path / "run"
    folder.mkdir()
    said = measured(write(folder))
    assert any(expected in line for line in said), said


def test_exhausting_pickles_stay_small(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.pt" for number in range(len(exhausting()))]
    for path, content in zip(paths, exhausting().values(), strict=True):
        path.write_bytes(content)
    assert len(measured(*paths)) >= len(paths)


def test_what_is_wrong_with_each_shard_is_kept_without_its_content(tmp_path: Path) -> None:
    names = {str(number): f"shard-{number}.bin" for number in range(3)}
    for name in names.values():
        (tmp_path / name).write_bytes(exhausting()["a million sets"])
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    (tmp_path / "config.json").write_text('{"projection_dim": 2}')
    assert sum("is not a sound pickle" in line for line in measured(tmp_path)) == len(names)
