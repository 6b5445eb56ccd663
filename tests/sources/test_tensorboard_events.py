"""Event files of real writers, against TensorBoard's own reader."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorboard.summary
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util import tensor_util
from torch.utils.tensorboard import SummaryWriter

from fgclip_doctor.run import Run
from fgclip_doctor.sources import load, tensorboard_events
from fgclip_doctor.sources.files import Unreadable
from fgclip_doctor.sources.tensorboard_events import EventFile, EventLog, read

Scalars = dict[str, list[tuple[int, float, float]]]  # tag: steps, wall times, values


def oracle(path: Path) -> Scalars:
    """What TensorBoard's own reader makes of a file, or of the files in one directory."""
    sizes = {"scalars": 0, "tensors": 0}
    reader = EventAccumulator(str(path), size_guidance=sizes, purge_orphaned_data=False).Reload()
    found = {
        tag: [(one.step, one.wall_time, one.value) for one in reader.Scalars(tag)] for tag in reader.scalars.Keys()
    }
    for tag in reader.PluginTagToContent("scalars") if "scalars" in reader._plugin_to_tag_to_content else ():
        rows = [(one.step, one.wall_time, tensor_util.make_ndarray(one.tensor_proto)) for one in reader.Tensors(tag)]
        found[tag] = [(step, wall, float(value)) for step, wall, value in rows]
    return found


def scalars(run: Run) -> Scalars:
    found: Scalars = {}
    for name, series in run.series.items():
        assert series.walls is not None
        assert series.steps.dtype == np.int64
        assert series.values.dtype == np.float64
        found[name] = list(zip(series.steps.tolist(), series.walls.tolist(), series.values.tolist(), strict=True))
    return found


def same(one: Scalars, other: Scalars) -> bool:
    """Bit for bit, NaN included."""
    return pickled(one) == pickled(other)


def pickled(found: Scalars) -> dict[str, bytes]:
    return {tag: b"".join(struct.pack("<qdd", *row) for row in rows) for tag, rows in found.items()}


def write(path: Path, events: list[Event], mode: str = "ab") -> Path:
    with path.open(mode) as file:
        writer = RecordWriter(file)
        for event in events:
            writer.write(event.SerializeToString())
        writer.flush()
        file.flush()
        return path


def event(step: int, wall: float | None = None, **values: float) -> Event:
    made = Event(step=step, wall_time=1.7e9 + step if wall is None else wall)
    for tag, value in values.items():
        made.summary.value.add(tag=tag, simple_value=value)
    return made


def test_scalars_of_the_torch_writer(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).normal(size=300).tolist()
    with SummaryWriter(str(tmp_path)) as writer:
        for step, number in enumerate(numbers):
            writer.add_scalar("train/loss", number, step)
            writer.add_scalar("train/loss_region_with_a_long_name", number, 100 * step)
            writer.add_scalar("new", number, step, new_style=True)
            writer.add_scalar("double", number, step, new_style=True, double_precision=True)
            writer.add_scalars("terms", {"global": number, "region": 2 * number}, step)
        for step, number in [(-1, math.nan), (1 << 40, math.inf), (2, -0.0), (3, 1e-45), (4, 3.4e38)]:
            writer.add_scalar("odd", number, step)
        writer.add_histogram("weights", np.arange(10.0), 5)
        writer.add_scalar("ünicode \x1b[31m", 1.0)
    run = read(tmp_path)
    expected = oracle(tmp_path)
    for term in ("global", "region"):  # as the two directories hold them, under one tag
        expected[f"terms/{term}"] = oracle(tmp_path / f"terms_{term}")["terms"]
    assert len(expected) == 8
    assert same(scalars(run), expected)
    assert run.problems == []
    assert run.events == []


def test_tensor_scalars_of_tensorboards_own_writer(tmp_path: Path) -> None:
    writer = tensorboard.summary.Writer(tensorboard.summary._output.DirectoryOutput(str(tmp_path)))
    for step in range(200):
        writer.add_scalar("loss", 1 / (step + 1), step=step, wall_time=1.7e9 + step)
        writer.add_scalar("scale", step, step=step, wall_time=1.7e9 + step)
    writer.close()
    assert same(scalars(read(tmp_path)), oracle(tmp_path))
    assert len(read(tmp_path).series["loss"].steps) == 200


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int32", "int64", "uint8"])
def test_tensor_scalars_of_any_type(tmp_path: Path, dtype: str) -> None:
    """As field, as TensorFlow and JAX write it (`tensor_content`), and without the plugin after the first."""
    events = []
    for step in range(40):
        made = Event(step=step, wall_time=1.7e9 + step)
        for tag in ("field", "content"):
            array = np.array(step + 1, dtype)
            value = made.summary.value.add(tag=tag, tensor=tensor_util.make_tensor_proto(array))
            if tag == "content":
                value.tensor.CopyFrom(type(value.tensor)(dtype=value.tensor.dtype, tensor_content=array.tobytes()))
                value.tensor.tensor_shape.SetInParent()
            if step == 0:
                value.metadata.plugin_data.plugin_name = "scalars"
        events += [Event(step=step, wall_time=1.7e9 + step, summary=Summary(value=[one])) for one in made.summary.value]
    found, expected = scalars(read(write(tmp_path / "tfevents", events))), oracle(tmp_path / "tfevents")
    if dtype == "float16":  # held in a field of its own, which no writer of scalars uses
        del expected["field"]
    assert same(found, expected)


def test_many_scalars_in_one_event(tmp_path: Path) -> None:
    """TensorFlow 1's merged summaries; and one kind of value after another, of which the last counts."""
    events = [event(step, loss=step, lr=2 * step, **{"": 3.0}) for step in range(30)]
    value = events[0].summary.value.add(tag="image", simple_value=1.0)
    value.image.height = 3
    path = write(tmp_path / "tfevents", events)
    assert same(scalars(read(path)), oracle(path))


def test_files_of_one_directory_are_one_log(tmp_path: Path) -> None:
    """A restart goes back, in a file of its own; it is kept, and told."""
    first = write(tmp_path / "events.out.tfevents.1", [event(step, loss=step) for step in range(0, 50, 5)])
    second = [event(step, 1.8e9 + step, loss=step) for step in range(30, 80, 5)]
    write(tmp_path / "events.out.tfevents.2", second)
    run = read(tmp_path)
    assert same(scalars(run), oracle(tmp_path))
    assert [run.series["loss"].steps[leg].tolist() for leg in run.series["loss"].legs] == [
        list(range(0, 50, 5)),
        list(range(30, 80, 5)),
    ]
    assert [(one.kind, one.step) for one in run.events] == [("resume", 30)]
    assert "after step 45" in run.events[0].detail
    assert len(read(first).series["loss"].legs) == 1


def test_writers_beside_each_other_are_no_restart(tmp_path: Path) -> None:
    for rank in range(2):
        events = [event(step, 1.7e9 + step + rank / 4, loss=step + rank) for step in range(20)]
        write(tmp_path / f"events.out.tfevents.{rank}", events)
    run = read(tmp_path)
    assert run.events == []
    assert run.series["loss"].values[:4].tolist() == [0, 1, 1, 2]
    assert len(run.series["loss"].legs) == 1


def test_directories_prefix_tags_that_collide(tmp_path: Path) -> None:
    for name in ("train", "validation"):
        (tmp_path / "logs" / name).mkdir(parents=True)
        events = [event(step, epoch_loss=step, **{f"only_{name}": 1.0}) for step in range(20)]
        write(tmp_path / "logs" / name / "tfevents.v2", events)
    assert set(read(tmp_path).series) == {"train/epoch_loss", "validation/epoch_loss", "only_train", "only_validation"}


def test_a_directory_that_goes_on_with_another_is_a_restart(tmp_path: Path) -> None:
    """As transformers' Trainer resumes: runs/<time>_<host>/ for each launch."""
    launches = {"Jan01": (range(10, 110, 10), 0), "Jan02": (range(60, 200, 10), 1e6)}
    for name, (steps, later) in launches.items():
        (tmp_path / "runs" / name).mkdir(parents=True)
        events = [event(step, 1.7e9 + later + step, **{"train/loss": step}) for step in steps]
        write(tmp_path / "runs" / name / "tfevents", events)
    run = read(tmp_path)
    assert run.series["train/loss"].steps.tolist() == [*range(10, 110, 10), *range(60, 200, 10)]
    assert [one.step for one in run.events] == [60]
    (tmp_path / "runs" / "Jan03").mkdir()
    events = [event(step, 1.9e9 + step, **{"train/loss": step}) for step in range(10, 50, 10)]  # another run
    write(tmp_path / "runs" / "Jan03" / "tfevents", events)
    assert set(read(tmp_path).series) == {"Jan01/train/loss", "Jan03/train/loss"}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"per_device_train_batch_size": 4, "warmup_steps": 10, "lr_scheduler_type": "cosine", "bf16": True}),
        "|param|value|\n|-|-|\n|batch_size|4|\n|warmup_steps|10|\n|lr_scheduler|cosine|\n|bf16|True|",
        "Namespace(batch_size=4, warmup_steps=10, lr_scheduler='cosine', bf16=True)",
        str({"batch_size": 4, "warmup_steps": 10, "lr_scheduler": "cosine", "bf16": True}),
        "batch_size: 4\nwarmup_steps: 10\nlr_scheduler: cosine\nbf16: true",
    ],
)
def test_texts_are_settings(tmp_path: Path, text: str) -> None:
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_text("args", text)
        writer.add_text("sample", "batch_size: 512")
        writer.add_scalar("loss", 1.0)
    facts = read(tmp_path).facts
    expected = {"micro_batch": 4, "warmup_steps": 10, "schedule": "cosine", "bf16": True}
    assert {name: fact.value for name, fact in facts.items()} == expected
    assert "tfevents" in facts["bf16"].source.path


def test_the_log_of_transformers_trainer(tmp_path: Path) -> None:
    from transformers import TrainerControl, TrainerState, TrainingArguments
    from transformers.integrations import TensorBoardCallback

    arguments = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=4, max_steps=90, report_to=[], use_cpu=True
    )
    callback, control = TensorBoardCallback(SummaryWriter(str(tmp_path / "runs" / "now"))), TrainerControl()
    state = TrainerState(is_world_process_zero=True)
    callback.on_train_begin(arguments, state, control)
    for step in range(10, 100, 10):
        state.global_step = step
        callback.on_log(arguments, state, control, {"loss": 1 / step, "learning_rate": 1e-5, "epoch": step / 10})
    callback.on_log(arguments, state, control, {"eval_loss": 2.0, "epoch": 9})
    callback.on_train_end(arguments, state, control)
    run = load([tmp_path])
    assert run.loss("total").name == "train/loss"
    assert run.loss("total").steps.tolist() == list(range(10, 100, 10))
    assert run.loss("total").values.tolist() == [float(np.float32(1 / step)) for step in range(10, 100, 10)]
    assert set(run.series) == {"train/loss", "train/learning_rate", "train/epoch", "eval/loss"}
    expected = {"micro_batch": 4, "max_steps": 90, "schedule": "linear", "learning_rate": 5e-5, "max_grad_norm": 1.0}
    assert {name: run.fact(name).value for name in expected} == expected
    assert "num_epochs" not in run.facts


def test_hyperparameters_are_settings(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_hparams({"lr": 0.1, "batch_size": 4, "scheduler_type": "cosine", "bf16": True}, {"accuracy": 0.5})
        writer.add_text("model_config", json.dumps({"model_type": "clip", "projection_dim": 512}))
    run = read(tmp_path)
    facts = {name: fact.value for name, fact in run.facts.items()}
    assert facts == {"learning_rate": 0.1, "micro_batch": 4, "schedule": "cosine", "dimension": 512}
    assert isinstance(facts["micro_batch"], int)
    assert set(run.series) == {"accuracy"}


def test_following_reads_what_was_appended(tmp_path: Path) -> None:
    path = write(tmp_path / "tfevents", [event(step, loss=step) for step in range(50)])
    log = EventLog(tmp_path)
    assert log.poll() == 50
    assert log.poll() == 0
    whole = path.read_bytes()
    write(path, [event(step, loss=step) for step in range(50, 60)])
    grown = path.read_bytes()
    path.write_bytes(grown[:-7])  # the last record is on its way
    with pytest.MonkeyPatch.context() as patch:
        offsets: list[int] = []
        preadv = os.preadv
        patch.setattr(os, "preadv", lambda *given: offsets.append(given[2]) or preadv(*given))
        assert log.poll() == 9
        assert offsets[0] == len(whole)
    assert len(log.run().notes) == 1
    path.write_bytes(grown)
    assert log.poll() == 1
    assert log.run().problems == []
    assert same(scalars(log.run()), oracle(path))
    write(tmp_path / "tfevents.2", [event(7, lr=1.0)])
    assert log.poll() == 1
    assert set(log.run().series) == {"loss", "lr"}


@pytest.mark.parametrize("how", ["cut", "replaced", "written over"])
def test_following_begins_again_when_the_file_is_another(tmp_path: Path, how: str) -> None:
    path = write(tmp_path / "tfevents", [event(step, loss=step) for step in range(50)])
    log = EventLog(path)
    log.poll()
    if how == "replaced":
        path.rename(tmp_path / "old")
    write(path, [event(step, loss=2 * step) for step in range(20 if how == "cut" else 90)], "wb")
    assert log.poll() == (20 if how == "cut" else 90)
    assert same(scalars(log.run()), oracle(path))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spliced")


def small(tmp_path: Path) -> tuple[Path, list[Event]]:
    events = [event(step, loss=step + 0.5, learning_rate=0.1) for step in range(4)]
    events += [event(step, loss=step + 0.5) for step in range(4, 40)]
    return write(tmp_path / "tfevents", events, "wb"), events


def test_every_cut_gives_what_was_before_it(tmp_path: Path) -> None:
    path, events = small(tmp_path)
    whole, expected = path.read_bytes(), scalars(read(path))["loss"]
    ends = np.cumsum([len(one.SerializeToString()) + 16 for one in events]).tolist()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        file = EventFile(path)
        readable = sum(end <= length for end in ends)
        file.poll()
        rows = file.rows.get("loss")
        assert (rows.steps.tolist() if rows else []) == [step for step, *_ in expected[:readable]]
        told = [*file.problems(), *file.notes()]
        assert len(told) == (0 if length in (0, *ends) else 1)
        assert not rows or not list(file.problems()), "a run that was killed, or is under way, is no fault of the file"


def test_flipped_bits_lose_their_record_only(tmp_path: Path) -> None:
    path, _ = small(tmp_path)
    whole, expected = path.read_bytes(), scalars(read(path))
    rows = {row for tag in expected.values() for row in tag}
    chance = random.Random(0)
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        run = read(path)
        found = {row for tag in scalars(run).values() for row in tag}
        assert set(run.series) <= set(expected)
        assert found < rows
        assert len(found) >= len(rows) - 2
        (told,) = (*run.problems, *run.notes)
        assert told.startswith(f"{path}: ")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_splices_and_flips_never_invent_a_scalar(scratch: Path, data: st.DataObject) -> None:
    path, _ = small(scratch)
    whole = bytearray(path.read_bytes())
    rows = {(tag, *row) for tag, found in scalars(read(path)).items() for row in found}
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(whole)))
        cut = data.draw(st.integers(0, 80))
        whole[place : place + cut] = data.draw(st.binary(max_size=80) | st.just(bytes(whole[place // 2 : place])))
    path.write_bytes(whole)
    file = EventFile(path)
    file.poll()
    found = {tag: (one.steps.tolist(), one.walls.tolist(), one.values.tolist()) for tag, one in file.rows.items()}
    assert {(tag, *row) for tag, columns in found.items() for row in zip(*columns, strict=True)} <= rows
    assert all(str(problem).startswith(f"{path}: ") for problem in file.problems())


def hostile() -> Iterator[tuple[str, bytes]]:
    chance = random.Random(1)

    def record(data: bytes) -> bytes:
        from io import BytesIO

        file = BytesIO()
        RecordWriter(file).write(data)
        return file.getvalue()

    good = record(event(1, loss=1.0).SerializeToString())
    head = record(b"x" * 70_000)[:12]
    yield "noise", chance.randbytes(100_000)
    yield "zeros", bytes(100_000)
    yield "marks", b"\x09" * 100_000
    yield "a length beyond the end", good + head
    yield "huge length", good + struct.pack("<Q", 1 << 63) + b"\x00" * 100
    yield "empty records", record(b"") * 1000
    yield "records of noise", b"".join(record(chance.randbytes(chance.randrange(60))) for _ in range(500))
    yield "alike and malformed", b"".join(record(b"\x09" + chance.randbytes(40)) for _ in range(500))
    yield "groups", record(b"\x0b" * 50) * 100
    yield "endless varint", record(b"\x09" + bytes(8) + b"\x10" + b"\xff" * 40) * 100
    nested = b""
    for _ in range(300):
        nested = b"\x2a" + bytes([min(len(nested), 127)]) + nested[:127]
    yield "nested", record(nested) * 20
    value = bytearray(event(1, loss=1.0).SerializeToString())
    for place in range(len(value)):
        yield (
            f"byte {place}",
            b"".join(record(bytes([*value[:place], byte, *value[place + 1 :]])) for byte in range(256)),
        )


def test_hostile_files_give_a_line(tmp_path: Path) -> None:
    path = tmp_path / "tfevents"
    for name, data in hostile():
        path.write_bytes(data)
        file = EventFile(path)
        file.poll()
        assert all(str(problem).startswith(f"{path}: ") for problem in file.problems()), name
        assert len(list(file.problems())) < 4
        assert all(rows.count == len(rows.values) for rows in file.rows.values())


def test_any_bytes_in_an_event_are_read_as_protobuf_reads_them(tmp_path: Path) -> None:
    """Every byte of a record replaced by every other: columns and parser agree with protobuf on what it says."""
    from google.protobuf.message import DecodeError

    path = tmp_path / "tfevents"
    original = bytearray(event(300, loss=1.5).SerializeToString())
    for place in range(len(original)):
        events, raw = [], []
        for byte in range(256):
            data = bytes([*original[:place], byte, *original[place + 1 :]])
            try:
                events.append(Event.FromString(data))
            except DecodeError:
                continue
            raw.append(data)
        with path.open("wb") as file:
            writer = RecordWriter(file)
            for data in raw:
                writer.write(data)
        expected: dict[str, list[tuple[int, float, float]]] = {}
        for one in events:
            for value in one.summary.value:
                if value.WhichOneof("value") == "simple_value":
                    expected.setdefault(value.tag, []).append((one.step, one.wall_time, value.simple_value))
        file_read = EventFile(path)
        file_read.poll()
        found = {
            tag: list(zip(rows.steps.tolist(), rows.walls.tolist(), rows.values.tolist(), strict=True))
            for tag, rows in file_read.rows.items()
        }
        assert pickled(found) == pickled(expected), place


def test_long_records_are_read_or_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboard_events, "BLOCK", 10_000)
    monkeypatch.setattr(tensorboard_events, "MAX_RECORD", 100_000)
    events = []
    for step, size in enumerate([10, 9_000, 50_000, 200_000, 5]):
        made = event(step, loss=step)
        made.summary.value.add(tag="image").image.encoded_image_string = bytes(size)
        events += [made, *(event(step, loss=step) for _ in range(100))]
    path = write(tmp_path / "tfevents", events)
    run = read(path)
    assert run.series["loss"].steps.tolist() == [step for step in range(5) for _ in range(100 + (step != 3))]
    assert run.problems == [f"{path}: holds 1 records of over 100,000 bytes, which were passed over"]


@pytest.mark.parametrize("block", [100, 1000, 5000])
def test_blocks_may_end_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    path, _ = small(tmp_path)
    path.write_bytes(path.read_bytes()[:500] + b"\x09" * 700 + path.read_bytes())
    whole = scalars(read(path))
    monkeypatch.setattr(tensorboard_events, "BLOCK", block)
    assert same(scalars(read(path)), whole)
    assert len(whole["loss"]) >= 45


def test_too_many_tags_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboard_events, "MAX_TAGS", 100)
    path = write(tmp_path / "tfevents", [event(1, **{f"tag {index:04}": 1.0}) for index in range(1000)])
    run = read(path)
    assert len(run.series) == 100
    assert run.notes == [f"{path}: has tags over the limit of 100; 900 scalars were left out"]


def test_audited_alone_beside_a_checkpoint_or_by_content(tmp_path: Path) -> None:
    logs = tmp_path / "run" / "logs"
    logs.mkdir(parents=True)
    path = write(logs / "events.out.tfevents.1", [event(step, loss=step) for step in range(20)])
    for audited in (tmp_path / "run", path, shutil.copy(path, tmp_path / "renamed")):
        run = load([Path(audited)])
        assert run.roles == {"loss.total": "loss"}
        assert run.checkpoints == ()
        assert run.problems == []
    state = {"global_step": 20, "log_history": [{"step": step, "loss": step} for step in range(3)]}
    (tmp_path / "run" / "trainer_state.json").write_text(json.dumps(state))
    run = load([tmp_path / "run"])
    assert run.fact("global_step").value == 20
    assert len(run.series["loss"].steps) == 20


def test_links_may_not_lead_out(tmp_path: Path) -> None:
    outside = write(tmp_path / "tfevents", [event(1, secret=1.0)])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tfevents.link").symlink_to(outside)
    write(tmp_path / "run" / "tfevents.1", [event(1, loss=1.0)])
    (tmp_path / "run" / "tfevents.2").symlink_to("tfevents.1")
    run = read(tmp_path / "run")
    assert set(run.series) == {"loss"}
    assert len(run.problems) == 1
    assert "points outside" in run.problems[0]
    os.mkfifo(tmp_path / "run" / "tfevents.pipe")
    assert "is a named pipe" in read(tmp_path / "run").problems[1]


def test_odd_times_and_steps(tmp_path: Path) -> None:
    edge = (1 << 63) - 1
    for index, wall in enumerate([math.nan, -math.inf, 1e300]):
        write(tmp_path / f"tfevents.{index}", [event(step, wall, loss=1.0) for step in (edge, -edge - 1, edge)])
        (tmp_path / str(index)).mkdir()
        write(tmp_path / str(index) / "tfevents", [event(step, wall, loss=1.0) for step in (-edge, edge)])
    run = read(tmp_path)
    assert sum(len(series.steps) for series in run.series.values()) == 15
    assert all(series.legs for series in run.series.values())


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    path = tmp_path / "events.out.tfevents.1"
    path.write_bytes(b"broken" * 10)
    for audited in (path, tmp_path):
        with pytest.raises(Unreadable, match=r"events\.out\.tfevents\.1: ends in the middle of a record"):
            load([audited])
    path.write_bytes(b"")
    with pytest.raises(Unreadable, match="holds no scalars"):
        load([path])
    (tmp_path / "trainer_state.json").write_text(json.dumps({"global_step": 1, "max_steps": 5}))
    path.write_bytes(b"broken" * 10)
    run: Any = load([tmp_path])
    assert run.fact("max_steps").value == 5
    assert len(run.problems) == 1
