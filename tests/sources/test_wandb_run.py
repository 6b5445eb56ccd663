"""What Weights & Biases leaves on disk: files that it wrote, cut and damaged, and records made by hand."""

from __future__ import annotations

import errno
import json
import random
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fgclip_doctor.run import Run
from fgclip_doctor.sources import load, wandb_run
from fgclip_doctor.sources.files import Unreadable
from tests.sources.trackers import FACTS, TRACKERS, facts, logged, told

WANDB = TRACKERS / "wandb" / "wandb"
OLD = TRACKERS / "wandb_0_16"
FIRST, SECOND, RESUMED = sorted(WANDB.iterdir())


def nested(step: int) -> tuple[int, str]:
    return step, repr(float(step))


@pytest.mark.parametrize("path", [FIRST, next(FIRST.glob("*.wandb"))], ids=["directory", "file"])
def test_a_run(path: Path) -> None:
    run = load([path])
    assert told(run) == logged(1) | {"parts/text/norm": [nested(step) for step in range(10, 210, 10)]}
    assert facts(run) == FACTS
    assert run.problems == []
    assert run.roles == {"loss.total": "train/loss", "loss.region": "train/region_loss"}
    assert str(run.fact("micro_batch").source) == f"{path}: per_device_train_batch_size"


def test_the_records_of_an_older_version(tmp_path: Path) -> None:
    run = load([OLD])
    assert told(run) == logged(1) | {"parts/text/norm": [nested(step) for step in range(10, 210, 10)]}
    assert facts(run) == {name: FACTS[name] for name in ("micro_batch", "accumulation", "learning_rate", "max_steps")}


@pytest.mark.parametrize("path", [WANDB, WANDB.parent], ids=["wandb", "what holds it"])
def test_of_several_runs_the_newest_with_what_it_went_on_from(path: Path) -> None:
    run = load([path])
    assert told(run) == logged(2) | {"parts/text/norm": [nested(step) for step in range(10, 210, 10)]}
    assert run.series["train/loss"].steps.tolist() == [*range(10, 150, 10), *range(110, 210, 10)]
    assert run.notes == [
        f"{WANDB}: holds 2 runs; read was the newest, {RESUMED.name}, and not {FIRST.name}",
    ]


def test_what_the_website_offers() -> None:
    run = load([OLD / "files"])
    assert facts(run) == FACTS
    assert told(run) == {"train/loss": [(200, "1.005")]}


def test_what_was_printed_is_read_too_and_the_tool_s_own_logs_are_not(tmp_path: Path) -> None:
    folder = tmp_path / "wandb" / FIRST.name
    shutil.copytree(FIRST, folder)
    (folder / "files" / "output.log").write_text("Namespace(label_smoothing=0.1)\nstep 10 | hard loss: 1.5\n")
    (folder / "debug.log").write_text("step 10 | region loss: 1.5\n" * 3)
    (tmp_path / "wandb" / "debug.log").symlink_to(folder / "debug.log")
    for path in (folder, tmp_path / "wandb", tmp_path):
        run = load([path])
        assert run.fact("label_smoothing").value == 0.1
        assert run.series["hard_loss"].values.tolist() == [1.5]
        assert "region_loss" not in run.series


# --- files that are not as they should be


def test_cut_anywhere(tmp_path: Path) -> None:
    data = next(SECOND.glob("*.wandb")).read_bytes()
    whole = read(tmp_path, data).series["train/loss"].values.tolist()
    longest = 0
    for end in [*range(1500), *range(1500, len(data), 37)]:
        try:
            run = read(tmp_path, data[:end])
        except Unreadable as error:
            assert str(error) == f"{tmp_path / 'run.wandb'}: holds no history and no configuration of a run"  # noqa: PT017
            assert longest == 0
            continue
        loss = run.series.get("train/loss")
        got = [] if loss is None else loss.values.tolist()
        assert got == whole[: len(got)]
        assert len(got) >= longest
        longest = len(got)
        assert not run.problems
        assert run.notes in ([], [f"{tmp_path / 'run.wandb'}: ends in the middle of a record"])
    assert longest >= len(whole) - 1


def test_flipped_bits_are_found(tmp_path: Path) -> None:
    data = next(SECOND.glob("*.wandb")).read_bytes()
    whole = told(read(tmp_path, data))["train/loss"]
    random.seed(0)
    for _ in range(200):
        place, bit = random.randrange(7, len(data)), random.randrange(8)
        damaged = bytearray(data)
        damaged[place] ^= 1 << bit
        try:
            run = read(tmp_path, bytes(damaged))
        except Unreadable:
            continue
        assert run.problems, place
        assert set(told(run).get("train/loss", [])) <= set(whole)


def test_damage_costs_a_block_and_no_more(tmp_path: Path) -> None:
    rows = [{"_step": step, "loss": step + 0.5, "pad": "x" * 500} for step in range(300)]
    data = bytearray(file_of(rows))
    assert len(data) > 4 * wandb_run.BLOCK
    data[wandb_run.BLOCK + 100] ^= 1
    run = read(tmp_path, bytes(data))
    steps = run.series["loss"].steps.tolist()
    assert steps[0] == 0
    assert steps[-1] == 299
    assert 200 < len(steps) < 300
    assert (run.series["loss"].values == run.series["loss"].steps + 0.5).all()
    assert run.problems == [
        f"{tmp_path / 'run.wandb'}: 1 blocks are damaged, and the rest of each was passed over",
    ]


def test_typed_values_and_odd_ones(tmp_path: Path) -> None:
    def item(key: str, number: int, wire: int, payload: bytes) -> bytes:
        return field(1, key.encode()) + bytes([number << 3 | wire]) + payload

    typed = [
        item("a", 6, 1, struct.pack("<d", 0.1)),
        item("b", 5, 0, b"\x03"),  # zigzag of -2
        item("loss", 8, 2, b"\x041e-3"),
        item("switch", 4, 0, b"\x01"),
        item("text", 7, 2, b"\x031.5"),
    ]
    odd = {"huge": 10**400, "quoted": "NaN", "bool": True, "list": [1, 2], "media": {"_type": "image", "size": 5}}
    history = field(2, b"".join(field(1, one) for one in typed) + field(2, b"\x08\x05"))
    run = read(tmp_path, framed([history, row_of({"_step": 6, "loss": 0.5, "_timestamp": 1.5, **odd})]))
    assert told(run) == {
        "a": [(5, "0.1")],
        "b": [(5, "-2.0")],
        "loss": [(5, "0.001"), (6, "0.5")],
        "huge": [(6, "inf")],
        "quoted": [(6, "nan")],
    }


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b":W&B", "holds no history"),
        (b":W&B\xe1\xbe\x00" + b"\x00" * 100_000, "holds no history"),
        (b":W&B\xe1\xbe\x00" + b"\xff" * 100_000, "holds no history"),
        (b":W&B\xe1\xbe\x00" + b"PK\x03\x04" * 9_000, "holds no history"),
    ],
)
def test_what_is_no_run(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "run.wandb").write_bytes(data)
    for path in (tmp_path / "run.wandb", tmp_path):
        with pytest.raises(Unreadable) as caught:
            load([path])
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith(str(tmp_path))
    assert reason in str(wandb_error(tmp_path / "run.wandb"))


def test_hostile_records_cost_little(tmp_path: Path) -> None:
    nest = b'{"a":' * 20_000
    many = {"_step": 7} | {f"name {number}": number for number in range(5_000)}
    long = field(2, field(1, b"x" * (9 << 20)))
    bad = b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"
    settings = field(17, field(4, b"".join(field(1, item_of(f"key {n}", n)) for n in range(20_000))))
    records = [field(2, field(1, field(1, b"deep") + b"\x82\x01" + varint(len(nest)) + nest)), row_of(many), long, bad]
    run = read(tmp_path, framed([*records, settings, row_of({"_step": 8, "loss": 0.5})]))
    assert len(run.series) <= 2_000
    assert told(run)["name 1"] == [(7, "1.0")]
    assert any("over 8,388,608 bytes" in problem for problem in run.problems)
    assert any("records are not what was written" in problem for problem in run.problems)
    assert any("values over the limit were left out" in problem for problem in run.notes)


def test_links_out_of_the_run_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.yaml").write_text("per_device_train_batch_size: {value: 8}")
    files = tmp_path / "run" / "files"
    files.mkdir(parents=True)
    (files / "config.yaml").symlink_to(tmp_path / "secret.yaml")
    (files / "wandb-summary.json").write_text('{"loss": 1.5, "_step": 3}')
    run = load([files])
    assert facts(run) == {}
    assert "points outside the directory" in run.problems[0]


def test_a_history_outside_of_the_run_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.wandb").symlink_to(next(FIRST.glob("*.wandb")).resolve())
    with pytest.raises(Unreadable, match="points outside the directory"):
        load([tmp_path / "run"])


def test_a_folder_that_may_not_be_entered_costs_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb").mkdir()
    (tmp_path / "log.csv").write_text("step,loss\n1,2.0\n2,1.5\n")
    listed = Path.iterdir

    def guarded(folder: Path) -> Iterator[Path]:  # the superuser, who may run this, is refused nothing
        if folder.name == "wandb":
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", guarded)
    run = load([tmp_path])
    assert sorted(run.series) == ["loss"]
    assert run.problems == [f"{tmp_path / 'wandb'}: may not be read (permission denied)"]


# --- records by hand


def varint(value: int) -> bytes:
    encoded = b""
    while value > 0x7F:
        encoded += bytes([value & 0x7F | 0x80])
        value >>= 7
    return encoded + bytes([value])


def field(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def item_of(key: str, value: Any) -> bytes:
    return field(1, key.encode()) + field(16, json.dumps(value).encode())


def row_of(row: dict[str, Any]) -> bytes:
    """A `Record` with one row of history."""
    return field(2, b"".join(field(1, item_of(key, value)) for key, value in row.items()))


def framed(records: list[bytes]) -> bytes:
    """A file of records, cut into pieces where a block ends."""
    data = bytearray(b":W&B\xe1\xbe\x00")
    for record in records:
        first = True
        while record or first:
            room = wandb_run.BLOCK - len(data) % wandb_run.BLOCK
            if room < 7:
                data += bytes(room)
                continue
            piece, record = record[: room - 7], record[room - 7 :]
            kind = (1 if first else 4) if not record else (2 if first else 3)
            data += struct.pack("<IHB", zlib.crc32(bytes([kind]) + piece), len(piece), kind) + piece
            first = False
    return bytes(data)


def file_of(rows: list[dict[str, Any]]) -> bytes:
    return framed([row_of(row) for row in rows])


def read(folder: Path, data: bytes) -> Run:
    path = folder / "run.wandb"
    path.write_bytes(data)
    return wandb_run.read(path)


def wandb_error(path: Path) -> Unreadable:
    with pytest.raises(Unreadable) as caught:
        wandb_run.read(path)
    return caught.value
