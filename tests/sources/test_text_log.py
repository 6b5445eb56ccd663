"""Logs as people have them, whoever printed them."""

from __future__ import annotations

import json
import math
import re
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgclip_doctor.run import Run
from fgclip_doctor.sources import decimals, lines, load, records, roles, skeletons, text_log, trainer
from fgclip_doctor.sources.decimals import Number
from fgclip_doctor.sources.files import Unreadable
from fgclip_doctor.sources.records import Clock, clock
from fgclip_doctor.sources.skeletons import Block, chunks

LOGS = Path(__file__).parent / "logs"


def points(run: Run, name: str) -> list[tuple[int, float]]:
    series = run.series[name]
    return list(zip(series.steps.tolist(), series.values.tolist(), strict=True))


def log(tmp_path: Path, text: str | bytes) -> Run:
    path = tmp_path / "run.log"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return text_log.read(path)


def fact(run: Run, name: str) -> object:
    return run.facts[name].value


# --- what each trainer writes ----------------------------------------------------------------------------------


def test_the_case_study_as_a_log_alone() -> None:
    run = text_log.read(LOGS / "case_study.log")
    found = roles.find({}, run.series)
    assert points(run, found["loss.region"])[:3] == [(10, 2.0008), (40, 1.5), (60, 5.0)]
    assert points(run, found["loss.global"])[-1] == (130, 1.2)
    assert points(run, found["loss.total"])[0] == (10, 4.0012)
    assert points(run, "logit_scale") == [(0, 2.65625)]
    (event,) = run.events
    assert (event.kind, event.step, event.source.line) == ("bank-on", 50, 5)
    assert (fact(run, "bank_size"), fact(run, "bank_warmup")) == (128, 50)
    assert "warmup_steps" not in run.facts  # the bank's warmup is not the learning rate's


@pytest.mark.parametrize("name", ["transformers.log", "transformers_bars.log"])
def test_transformers_says_the_same_on_the_terminal_as_in_its_state(name: str) -> None:
    run = text_log.read(LOGS / name)
    state = json.loads((LOGS / "trainer_state.json").read_text())
    for key, expected in trainer.series(state["log_history"], "state").items():
        if re.search("runtime|per_second", key):
            continue  # of another run of the same training
        series = run.series[key]
        assert series.steps.tolist() == expected.steps.tolist(), key
        np.testing.assert_allclose(series.values, expected.values, rtol=6e-4)  # printed to four digits
    assert [fact(run, name) for name in ("micro_batch", "accumulation", "max_steps", "dataset_size")] == [4, 2, 20, 64]
    assert run.events == []


def test_open_clip_counts_samples_and_prints_a_running_mean() -> None:
    run = text_log.read(LOGS / "open_clip.log")
    assert points(run, "Loss") == [(1, 4.8203), (51, 4.1), (100, 3.9001), (101, 3.8), (151, 3.7)]
    assert run.series["Logit_Scale"].values[0] == 14.286  # exponentiated, as it was logged
    assert run.series["LR"].resolution == 1e-6  # "0.000000" is not zero
    assert (fact(run, "micro_batch"), fact(run, "accumulation"), fact(run, "learning_rate")) == (64, 2, 5e-6)


def test_metric_logger() -> None:
    run = text_log.read(LOGS / "metric_logger.log")
    assert points(run, "loss_ita") == [(0, 9.0102), (50, 8.5102), (999, 6.5102), (1000, 6.4)]
    assert points(run, "mean/loss_ita") == [(999, 7.7723)]  # of the epoch
    assert points(run, "eval/loss") == [(999, 7.1)]
    assert fact(run, "world_size") == 8


def test_metric_logger_in_json_has_strings_for_numbers() -> None:
    run = text_log.read(LOGS / "metric_logger.jsonl")
    assert points(run, "train_loss_ita") == [(1, 7.772), (2, 6.172)]
    assert run.series["train_lr"].resolution == 1e-3


@pytest.mark.parametrize(
    ("name", "series", "expected"),
    [
        ("moco.log", "Loss", [(0, 6.9432), (10, 9.0432), (5004, 7.9432)]),
        ("moco.log", "Acc@1", [(0, 0.0), (10, 3.12), (5004, 12.5)]),
        ("mmengine.log", "loss", [(50, 1.4023), (100, 1.3023), (1050, 1.2023)]),
        ("mmengine.log", "eval/accuracy/top1", [(100, 71.2)]),
        ("fairseq.log", "loss", [(100, 12.612), (200, 10.812), (1200, 8.912)]),
        ("fairseq.log", "loss_scale", [(100, 128), (200, 128), (1200, 256)]),
        ("fairseq.log", "wps", [(100, 31210.2), (200, 31110.9), (1200, 30110.9)]),
        ("keras.log", "loss", [(1, 2.3012), (50, 1.9012), (100, 1.7012), (101, 1.6012), (200, 1.4012)]),
        ("keras.log", "val_loss", [(100, 1.5012), (200, 1.3012)]),
        ("lightning.csv", "train_loss", [(49, 2.3012149333953857), (99, 2.1012148857116699)]),
        ("lightning.csv", "val_loss", [(99, 2.2012147903442383)]),
        ("yaml_loop.log", "loss", [(40, 1.25), (50, 1.20), (60, 1.15), (70, 1.12)]),  # three on a line
        ("yaml_loop.log", "grad_norm", [(70, 3.5)]),  # wrapped
        ("yaml_loop.log", "region_loss", [(10, 1.9), (20, math.inf), (30, 1.7)]),  # quoted, commented
    ],
)
def test_series(name: str, series: str, expected: list[tuple[int, float]]) -> None:
    run = text_log.read(LOGS / name)
    assert points(run, series) == expected
    assert [event for event in run.events if event.kind == "resume"] == []


def test_a_scale_of_amp_is_no_loss() -> None:
    run = text_log.read(LOGS / "fairseq.log")
    assert roles.find({}, run.series) == {"loss.total": "loss"}


def test_other_ranks_are_left_out_and_a_restart_is_told() -> None:
    run = text_log.read(LOGS / "trainer_prefix.log")
    series = run.series["loss"]
    assert series.steps.tolist() == [10, 20, 10, 20]
    np.testing.assert_array_equal(series.values, [1.25, math.nan, 1.15, 1.12])
    (event,) = run.events
    assert (event.kind, event.step, event.source.line) == ("resume", 10, 5)


def test_arguments_become_facts() -> None:
    run = text_log.read(LOGS / "yaml_loop.log")
    expected = {"micro_batch": 4, "accumulation": 8, "learning_rate": 5e-6, "schedule": "cosine", "warmup_steps": 50}
    assert {name: fact(run, name) for name in expected} == expected
    assert (fact(run, "bank_enabled"), fact(run, "bank_size")) == (True, 128)


@pytest.mark.parametrize(
    "line",
    [
        "python train.py --per_device_train_batch_size 4 --gradient_accumulation_steps=8 --bf16 True",
        "Namespace(per_device_train_batch_size=4, gradient_accumulation_steps=8, bf16=True)",
        "per_device_train_batch_size: 4\ngradient_accumulation_steps: 8\nbf16: true",
        "TrainingArguments(\nper_device_train_batch_size=4,\ngradient_accumulation_steps=8,\nbf16=True,\n)",
    ],
)
def test_arguments_in_every_guise(tmp_path: Path, line: str) -> None:
    run = log(tmp_path, f"{line}\nstep 1 loss 2.5\n")
    assert [fact(run, name) for name in ("micro_batch", "accumulation", "bf16")] == [4, 8, True]
    assert list(run.series) == ["loss"]


def test_what_is_logged_each_step_is_no_argument(tmp_path: Path) -> None:
    run = log(tmp_path, "step: 1, loss: 2.5, lr: 1e-07, epochs: 0\nstep: 2, loss: 2.4, lr: 2e-07, epochs: 0\n")
    assert run.facts == {}


# --- lines as they come ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "step 50 region loss 5.0",
        "Step 50: region loss is 5.0",
        "step=50 region_loss=5.0",
        "step=50,region_loss=5.0,lr=1e-5",
        "[50/1000] region_loss: 5.0",
        "iter: 50 | region_loss: 5.0 (4.9)",
        "\x1b[32m2024-01-01 12:00:00\x1b[0m INFO - global_step: 50 - region_loss: 5.0",
        "> # {'region_loss': 5.0, 'step': 50}",
        "2024-01-01T12:00:00.123Z [rank0]: step 50 region_loss 5.0e+00",
        "INFO:root:Step [50/1000], region_loss: 5.0",
        "  5%|▌         | 50/1000 [00:05<01:35,  9.95it/s, region_loss=5.0]",
        "  5%|â–Œ         | 50/1000 [00:05<01:35,  9.95it/s, region_loss=5.0]",
        "step：50 region_loss：5.0",
        '2024-01-01 | {"global_step": 50, "region_loss": "5.0"}',
    ],
)
def test_one_line(tmp_path: Path, line: str) -> None:
    run = log(tmp_path, line + "\n")
    name = roles.find({}, run.series)["loss.region"]
    assert points(run, name) == [(50, 5.0)]
    assert name == "region_loss"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "latin-1"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    run = log(tmp_path, "Début\r\nstep 50 loss 5.0\r\nstep 60 loss 4.0\r\n".encode(encoding))
    assert points(run, "loss") == [(50, 5.0), (60, 4.0)]


@pytest.mark.parametrize(("text", "value"), [("nan", math.nan), ("-inf", -math.inf), ("Infinity", math.inf)])
def test_what_is_not_finite_is_kept(tmp_path: Path, text: str, value: float) -> None:
    run = log(tmp_path, f"step 1 loss: 2.0 (2.0) lr: 0.1\nstep 2 loss: {text} ({text}) lr: 0.1\n")
    np.testing.assert_array_equal(run.series["loss"].values, [2.0, value])
    assert run.series["lr"].values.tolist() == [0.1, 0.1]


def test_without_a_step_the_record_counts(tmp_path: Path) -> None:
    assert points(log(tmp_path, "loss: 3.0\nloss: 2.0\nloss: 1.0\n"), "loss") == [(1, 3.0), (2, 2.0), (3, 1.0)]


def test_a_step_of_its_own_line_holds_for_those_after_it(tmp_path: Path) -> None:
    run = log(
        tmp_path, "Step 50\n  [ACCUMULATED] Total: 3.1 | Global: 1.5 | Region: 1.6\nStep 60\n  region loss: 1.4\n"
    )
    assert points(run, "loss/region") == [(50, 1.6)]
    assert points(run, "region_loss") == [(60, 1.4)]


def test_steps_that_begin_anew_with_each_epoch_go_on(tmp_path: Path) -> None:
    lines = [f"Epoch {epoch} step {step}: loss {epoch + step / 100:.2f}" for epoch in range(3) for step in (0, 10, 20)]
    run = log(tmp_path, "\n".join(lines))
    assert run.series["loss"].steps.tolist() == [0, 10, 20, 30, 40, 50, 60, 70, 80]
    assert run.events == []


def test_names_with_numbers_in_them_are_different_names(tmp_path: Path) -> None:
    run = log(tmp_path, "".join(f"step {step} layer{step % 2}.loss: {step}.5\n" for step in range(6)))
    assert points(run, "layer0.loss") == [(0, 0.5), (2, 2.5), (4, 4.5)]
    assert points(run, "layer1.loss") == [(1, 1.5), (3, 3.5), (5, 5.5)]


@pytest.mark.parametrize(
    ("line", "on"),
    [
        ("[Memory Bank] enabled at step 50, size 128, ptr 4", True),
        ("step 50: memory bank is now active", True),
        ("step 50: XBM queue activated", True),
        ("step 50: memory bank not active yet", False),
        ("step 50: memory bank will be enabled at step 400", False),
        ("step 50: use_memory_bank=True", False),
        ("step 50: memory bank enabled: False", False),
    ],
)
def test_the_line_that_tells_of_the_bank(tmp_path: Path, line: str, on: bool) -> None:
    run = log(tmp_path, f"step 40 loss 1.0\n{line}\nstep 60 loss 1.0\n")
    assert [(event.kind, event.step) for event in run.events] == [("bank-on", 50)] * on


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("global_step", Clock.UPDATES),
        ("trainer/global_step", Clock.UPDATES),
        ("num_updates", Clock.UPDATES),
        ("Step", Clock.STEP),
        ("_step", Clock.STEP),
        ("iter", Clock.ITERATION),
        ("warmup_steps", Clock.NONE),
        ("max_steps", Clock.NONE),
        ("Total_optimization_steps", Clock.NONE),
        ("accumulation_steps", Clock.NONE),
        ("enabled_at_step", Clock.STEP),
        ("loss", Clock.NONE),
    ],
)
def test_clocks(name: str, expected: Clock) -> None:
    assert clock(name) is expected


# --- hostile, torn, long ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is empty"),
        (bytes(range(256)) * 100, "is neither text nor weights"),
        (b"It was a dark and stormy night.\n" * 100, "nothing in it is understood"),
        (b"{" * 60_000, "nothing in it is understood"),
        (b"0" * 1_000_000, "nothing in it is understood"),
        (b"[[[[" * 10_000 + b"\n", "nothing in it is understood"),
    ],
)
def test_what_is_no_log_costs_one_line(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "x.log"
    path.write_bytes(content)
    with pytest.raises(Unreadable, match=f"^{path}: {why}") as error:
        text_log.read(path)
    assert "\n" not in str(error.value)


def test_a_line_without_end_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fgclip_doctor.sources.skeletons.CHUNK", 1 << 16)
    path = tmp_path / "x.log"
    path.write_bytes(b"step 1 loss 2.0\n" + b"step 5 loss 9.0 " * 100_000 + b"\nstep 2 loss 1.0\n")
    assert max(map(len, chunks(path))) < 1 << 19
    assert points(text_log.read(path), "loss") == [(1, 2.0), (2, 1.0)]


def test_reading_in_small_pieces_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = text_log.read(LOGS / "open_clip.log")
    monkeypatch.setattr("fgclip_doctor.sources.skeletons.CHUNK", 700)
    run = text_log.read(LOGS / "open_clip.log")
    assert {name: points(run, name) for name in run.series} == {name: points(expected, name) for name in run.series}


def test_a_series_is_bounded_and_keeps_neighbours_and_faults() -> None:
    column = lines._Column()
    for start in range(0, 64 * lines.STRETCH, lines.STRETCH):
        steps = np.arange(start, start + lines.STRETCH)
        column.add(steps, np.where(steps == 3 * lines.STRETCH, np.nan, steps.astype(float)), limit=8 * lines.STRETCH)
    steps, values = column.arrays()
    assert column.thinned
    assert len(steps) <= 9 * lines.STRETCH
    assert np.diff(steps).min() == 1
    assert np.isnan(values).sum() == 1


def test_a_hole_in_the_file_is_one_long_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fgclip_doctor.sources.skeletons.CHUNK", 1 << 16)
    path = tmp_path / "x.log"
    with path.open("wb") as file:
        file.write(b"step 1 loss 2.0\n" * 5_000)
        file.seek(1 << 26, 1)
        file.write(b"\nstep 2 loss 1.0\n")
    assert max(map(len, chunks(path))) <= (1 << 16) + 2 * skeletons.MAX_LINE
    assert points(text_log.read(path), "loss")[-2:] == [(1, 2.0), (2, 1.0)]


def test_what_is_appended_while_a_log_is_read_is_left_to_the_next_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fgclip_doctor.sources.skeletons.CHUNK", 1 << 10)
    path = tmp_path / "x.log"
    path.write_bytes(b"step 1 loss 2.0\n" * 1_000)
    read = 0
    for chunk in chunks(path):
        read += len(chunk)
        with path.open("ab") as file:
            file.write(chunk * 2)
    assert read == 16_000


@pytest.mark.parametrize("name", ["{letters}_loss", "layer{number}_loss"])
def test_however_many_names_there_are_only_so_many_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("fgclip_doctor.sources.lines.MAX_KINDS", 50)
    monkeypatch.setattr("fgclip_doctor.sources.lines.MAX_VARIANTS", 50)
    monkeypatch.setattr("fgclip_doctor.sources.skeletons.CHUNK", 1 << 12)
    read = 0

    def understand(skeleton: str, line: str) -> records.Reading:
        nonlocal read
        read += 1
        return text_log.understand(skeleton, line)

    path = tmp_path / "x.log"
    names = [name.format(number=step, letters="x" * (step % 200 + 1)) for step in range(1_000)]
    path.write_text("".join(f"step {step} {name}: 1.5\n" for step, name in enumerate(names)))
    assert len(lines.collect(path, understand).run.series) == 50
    assert read <= 51


def test_lines_of_too_many_kinds_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fgclip_doctor.sources.lines.MAX_KINDS", 2)
    path = tmp_path / "x.log"
    text = "step 1 loss_a: 0.5\nstep 1 loss_b: 0.5\n" + "step 1 loss_c: 0.5\n" * 30 + "step 2 loss_d: 0.5\n"
    path.write_text(text + "step 2 loss_a: 0.5\n")
    log = lines.collect(path, text_log.understand)
    assert sorted(log.run.series) == ["loss_a", "loss_b"]
    assert log.notes == ["31 lines are too long, or of too many kinds, and were left out"]


def test_steps_that_keep_going_back_cost_no_memory(tmp_path: Path) -> None:
    run = log(tmp_path, "step 5 loss 1.0\nstep 3 loss 2.0\n" * 5_000)
    assert len(run.events) == lines.MAX_RESUMES
    assert run.series["loss"].steps.tolist() == [5, 3] * 5_000


def test_a_series_of_many_pieces_is_joined() -> None:
    column = lines._Column()
    for step in range(1_000):
        column.add(np.array([step]), np.array([0.5]), limit=10_000)
    assert len(column._steps) <= lines.PIECES + 1
    assert column.arrays()[0].tolist() == list(range(1_000))


MIXED = "".join(
    f"step {step} loss {step % 37 / 7:.4g} ({step / 3:.2f}) lr={10.0 ** -(step % 9):.3e}\n"
    f"{'epoch 1 [rank0] ' * (step % 5 == 0)}region_loss: {step * 1.1!r} norm: {step % 3}\n"
    for step in range(400)
)


@pytest.mark.parametrize(
    "limits",
    [{"MANY": 10**9}, {"MANY": 1}, {"MANY": 1, "MOST": 1}, {"LENGTHS": 1}, {"HASH": skeletons.HASH * 0}],
    ids=["digits", "shapes", "shapes apart", "one length", "every hash equal"],
)
def test_lines_say_the_same_by_shape_and_digit_by_digit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: dict[str, object]
) -> None:
    expected = log(tmp_path, MIXED)
    for name, value in limits.items():
        monkeypatch.setattr(f"fgclip_doctor.sources.skeletons.{name}", value)
    run = log(tmp_path, MIXED)
    assert {name: points(run, name) for name in run.series} == {
        name: points(expected, name) for name in expected.series
    }
    assert points(run, "region_loss") == [(step, step * 1.1) for step in range(400)]


@pytest.mark.parametrize(
    "name", sorted(path.name for path in LOGS.iterdir() if path.suffix in (".log", ".csv", ".jsonl"))
)
def test_torn_anywhere(tmp_path: Path, name: str) -> None:
    content = (LOGS / name).read_bytes()
    path = tmp_path / name
    read = 0
    for cut in range(0, len(content), 17):
        path.write_bytes(content[:cut])
        with suppress(Unreadable):
            read += len(text_log.read(path).series)
    assert read


@settings(max_examples=150, deadline=None)
@given(st.text("0123456789.,:=/%|[](){}'\"-+eE \nabstepnanlossinf\\\x1b\r#>_@", max_size=300))
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("any") / "x.log"
    path.write_text(text + "\nstep 5 loss 1.5\n")
    run = text_log.read(path)
    assert run.series
    assert list(text_log.explain(path))


# --- numbers ---------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.floats(allow_nan=False, allow_infinity=False).map(repr),
            st.floats(-1e6, 1e6).map(lambda value: f"{value:.4f}"),
            st.floats(-1e6, 1e6).map(lambda value: f"{value:.3e}"),
            st.integers(0, 10**18).map(str),
        ),
        min_size=1,
        max_size=20,
    )
)
def test_numbers_are_what_python_reads(tmp_path_factory: pytest.TempPathFactory, numbers: list[str]) -> None:
    path = tmp_path_factory.mktemp("numbers") / "x.log"
    path.write_text("".join(f"loss={number}\n" for number in numbers))
    assert text_log.read(path).series["loss"].values.tolist() == [float(number) for number in numbers]


@pytest.mark.parametrize("before", [chr(code) for code in range(1, 128) if chr(code) not in "0123456789\n\r\b\f"])
def test_what_stands_before_a_number_does_not_change_it(before: str) -> None:
    block = Block(f"{before}{before}12 {before}3.25\n".encode())
    assert next(block.alike(*block.first))[1].values(Number((0,)))[0].tolist() == [12.0]
    assert next(block.alike(*block.first))[1].values(Number((1,), 2))[0].tolist() == [3.25]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9 * 10**18), st.integers(-44, 44)), min_size=1))
def test_rounding_is_certain_or_left_to_python(numbers: list[tuple[int, int]]) -> None:
    whole, power = (np.array(column) for column in zip(*numbers, strict=True))
    values, certain = decimals.rounded(whole, power)
    expected = np.array([float(f"{digits}e{exponent}") for digits, exponent in numbers])
    np.testing.assert_array_equal(values[certain], expected[certain])


def test_rounding_is_nearly_always_certain() -> None:
    rng = np.random.default_rng(0)
    for power in range(-44, 0):
        _, certain = decimals.rounded(rng.integers(10**16, 10**17, 1_000), np.full(1_000, power))
        assert certain.mean() > 0.9  # what lies in the middle between two float64 is Python's


@pytest.mark.parametrize(
    "number",
    [
        *("9007199254740993", "9007199254740992.5", "9" * 19, "18446744073709551616.0", "1234567890" * 3),
        *("0.00012345678901234567", "0." + "0" * 30 + "1", "1e-0", ".5", "5."),
        *("1.7976931348623157e308", "5e-324", "1e400"),
    ],
)
@pytest.mark.parametrize("beside", [1, 100])
def test_numbers_at_the_edges(tmp_path: Path, number: str, beside: int) -> None:
    text = "".join(f"loss={number}\nloss={0.5 + place}\n" for place in range(beside))
    assert log(tmp_path, text).series["loss"].values.tolist()[::2] == [float(number)] * beside


def test_thousands() -> None:
    block = Block(b"a 1,234,567.5\n")
    assert next(block.alike(*block.first))[1].values(Number((0, 1, 2), 3))[0].tolist() == [1234567.5]


# --- what was understood ---------------------------------------------------------------------------------------


def test_explain() -> None:
    said = list(text_log.explain(LOGS / "open_clip.log"))
    assert said[3] == "4: arguments: micro_batch = 64"
    assert said[12].startswith("13: epoch 0, step 128 of 12800 (count, samples), Data_t = 0.351")
    assert "[mean of Loss 4.8203 left out]" in said[12]
    assert any(line.endswith("counted in samples, 128 to a step") for line in said)


# --- beside checkpoints ----------------------------------------------------------------------------------------


def test_the_state_of_a_trainer_alone() -> None:
    run = load([LOGS / "trainer_state.json"])
    assert points(run, "loss")[0] == (5, 4.816109085083008)
    assert fact(run, "max_steps") == 20


def test_a_log_is_joined_with_the_checkpoints_beside_it(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint-20"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_bytes((LOGS / "trainer_state.json").read_bytes())
    (tmp_path / "nohup.out").write_bytes((LOGS / "case_study.log").read_bytes())
    (tmp_path / "captions.csv").write_text("image,width\na.jpg,5\n")
    run = load([tmp_path])
    assert run.roles["loss.region"] == "loss/region"
    assert points(run, "grad_norm")[0][0] == 5
    assert [event.kind for event in run.events] == ["bank-on"]
    assert run.problems == []


def test_a_link_out_of_the_directory_costs_a_line(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-9"
    folder.mkdir()
    (folder / "config.json").write_text('{"projection_dim": 64}')
    (tmp_path / "elsewhere.log").write_text("step: 1 loss: 2.0\nstep: 2 loss: 1.0\n")
    (folder / "train.log").symlink_to(tmp_path / "elsewhere.log")
    run = load([folder])
    assert run.problems == [f"{folder}: 'train.log' points outside the directory"]
    assert run.series == {}
    assert text_log.logs(folder) == []


def test_a_log_by_any_name(tmp_path: Path) -> None:
    path = tmp_path / "anything.bin"
    path.write_text("step 1 loss 2.0\n")
    assert points(load([path]), "loss") == [(1, 2.0)]


def test_the_warning_of_gradient_checkpointing_is_kept(tmp_path: Path) -> None:
    warning = (
        "torch/utils/checkpoint.py:87: UserWarning: None of the inputs have requires_grad=True. Gradients will be None"
    )
    path = tmp_path / "train.log"
    path.write_text(f"step 1 loss 2.0\n{warning}\n  warnings.warn(\nstep 2 loss 1.5\n")
    run = load([path])
    assert fact(run, "cut_off") is True
    assert points(run, "loss") == [(1, 2.0), (2, 1.5)]
