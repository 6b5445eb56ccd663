"""One training run says the same however it was logged: the same series, and the same report of the doctor."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fgclip_doctor.cli import app
from fgclip_doctor.sources import load

if TYPE_CHECKING:
    from tests.kept import Kept

pytestmark = pytest.mark.slow

Entries = Sequence[Mapping[str, float]]
STEPS, LOGGED_EVERY, MICRO_BATCH, SCENES, BANK = 160, 2, 8, 4096, 128
FACTS = {"micro_batch": MICRO_BATCH, "world_size": 1, "accumulation": 1, "regions_per_sample": 2, "dimension": 64}
FACTS |= {"scale": 14.3, "max_steps": STEPS, "bank_size": BANK}
TERMS = {"loss", "loss_global", "loss_region", "logit_scale", "learning_rate", "grad_norm"}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A run, and what is found in its log alone: the codes of the alarms, and what is told besides."""

    alarms: frozenset[str] = frozenset()
    told: frozenset[str] = frozenset()
    faults: tuple[str, ...] = ()
    bank: bool = False
    nan_after: int | None = None  # the step after which a weight is NaN


CASES = {
    "sound": Case(),
    "at-chance": Case(alarms=frozenset({"FGD501"}), faults=("captions-of-others",)),
    "at-chance-with-bank": Case(
        alarms=frozenset({"FGD501"}), told=frozenset({"FGD502"}), faults=("captions-of-others",), bank=True
    ),
    "sound-with-bank": Case(told=frozenset({"FGD502"}), bank=True),
    "nan": Case(alarms=frozenset({"FGD506"}), nan_after=120),
}


def train(case: Case, directory: Path) -> None:
    """The run with our own logs: trainer_state.json, JSON lines and TensorBoard's events."""
    import torch

    from fgclip_doctor.core.config import FgclipConfig
    from fgclip_doctor.training import loop
    from fgclip_doctor.training.logs import logged
    from fgclip_doctor.training.settings import TrainConfig

    model = replace(FgclipConfig.preset("tiny"), use_memory_bank=case.bank, memory_bank_size=BANK)
    config = TrainConfig(
        output_dir=directory,
        model=replace(model, memory_bank_warmup_steps=60),
        max_steps=STEPS,
        logging_steps=LOGGED_EVERY,
        micro_batch=MICRO_BATCH,
        scenes=SCENES,
        save_steps=STEPS,
        faults=case.faults,
    )
    scales: list[torch.nn.Parameter] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with logged(directory) as write:

        def on_step(entry: dict[str, float]) -> None:
            write(entry)
            if entry["step"] == case.nan_after:
                scales[0].data.fill_(float("nan"))

        loop.train(config, on_start=lambda _, built, __: scales.append(built.logit_scale), on_step=on_step)
    torch.set_num_threads(threads)


# --- the ways of logging, each from the entries of the run ---------------------------------------------------------


def summary_writer(entries: Entries, directory: Path) -> Path:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(directory)) as writer:
        for entry in entries:
            for name, value in entry.items():
                if name != "step":
                    writer.add_scalar(name, value, int(entry["step"]))
    return directory


def comma_separated(entries: Entries, directory: Path) -> Path:
    path = directory / "metrics.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, entries[0])
        table.writeheader()
        table.writerows(entries)
    return path


def dict_lines(entries: Entries, directory: Path, *, bars: bool) -> Path:
    """What transformers' own callbacks print: floats as strings of four digits, with progress bars between or without.

    Neither prints the step: it is in the bar, or follows from the epoch and what the Trainer says as it begins.
    """
    from transformers import PrinterCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.trainer_callback import ProgressCallback

    terminal = io.StringIO()
    arguments = TrainingArguments(output_dir=str(directory), use_cpu=True)
    callback = ProgressCallback() if bars else PrinterCallback()
    state, control = TrainerState(max_steps=STEPS), TrainerControl()
    with redirect_stdout(terminal), redirect_stderr(terminal):
        if not bars:
            print(f"***** Running training *****\n  Num examples = {SCENES:,}\n  Num Epochs = 1")
            print(f"  Num update steps per epoch = {SCENES // MICRO_BATCH:,}")
        callback.on_train_begin(arguments, state, control)
        for entry in entries:
            state.global_step = int(entry["step"])
            callback.on_step_end(arguments, state, control)
            callback.on_log(arguments, state, control, {name: one for name, one in entry.items() if name != "step"})
        callback.on_train_end(arguments, state, control)
    path = directory / "nohup.out"
    path.write_text(terminal.getvalue(), encoding="utf-8")
    return path


def text(entries: Entries, directory: Path) -> Path:
    """A plain loop's `print`."""
    path = directory / "train.txt"
    with path.open("w", encoding="utf-8") as file:
        for entry in entries:
            said = " | ".join(f"{name}: {value:.6g}" for name, value in entry.items() if name not in ("step", "epoch"))
            print(f"[rank0] 2026-01-01 12:00:00,123 - INFO - step {entry['step']}/{STEPS} | {said}", file=file)
    return path


Write = Callable[[Entries, Path], Path]
WRITTEN: dict[str, tuple[Write, float]] = {  # and how exactly
    "torch.utils.tensorboard": (summary_writer, 1e-7),  # float32
    "CSV": (comma_separated, 0.0),
    "transformers' lines between bars": (lambda entries, path: dict_lines(entries, path, bars=True), 5.1e-4),
    "transformers' lines": (lambda entries, path: dict_lines(entries, path, bars=False), 5.1e-4),
    "text": (text, 5.1e-6),
}
LEFT: dict[str, tuple[str, float]] = {  # by our own loop
    "JSON lines": ("log.jsonl", 0.0),
    "events": ("tensorboard", 1e-7),
}


# --- the tests -----------------------------------------------------------------------------------------------------


@pytest.fixture(params=CASES)
def run(request: pytest.FixtureRequest, kept: Kept) -> tuple[Case, Path]:
    case = CASES[request.param]
    return case, kept.once(f"logged-{request.param}", lambda path: train(case, path))


@pytest.fixture
def state(run: tuple[Case, Path], tmp_path: Path) -> Path:
    """The trainer_state.json of the run, away from its weights."""
    return Path(shutil.copy(run[1] / f"checkpoint-{STEPS}" / "trainer_state.json", tmp_path))


def audited(path: Path) -> dict[str, Any]:
    facts = [part for name, value in FACTS.items() for part in ("--fact", f"{name}={value}")]
    result = CliRunner().invoke(app, ["audit", str(path), "--format", "json", *facts])
    assert result.exit_code in (0, 1), result.output
    report: dict[str, Any] = json.loads(result.stdout)
    assert not report["problems"]
    assert not report["crashed"]
    return report


def logs(run: Path, state: Path, directory: Path) -> Iterator[tuple[str, Path, float]]:
    """The run in every other form, each with the precision it was written in."""
    history = json.loads(state.read_text(encoding="utf-8"))["log_history"]
    entries = [{name: float(one) if isinstance(one, str) else one for name, one in entry.items()} for entry in history]
    for name, (file, precision) in LEFT.items():
        yield name, run / file, precision
    for name, (write, precision) in WRITTEN.items():
        folder = directory / re.sub(r"\W+", "_", name)
        folder.mkdir()
        yield name, write(entries, folder), precision


def test_series_and_steps_are_the_same(run: tuple[Case, Path], state: Path, tmp_path: Path) -> None:
    expected = load([state]).series
    assert expected.keys() >= TERMS
    for form, path, precision in logs(run[1], state, tmp_path):
        found = load([path]).series
        assert found.keys() - {"epoch"} == expected.keys(), form
        for name, one in expected.items():
            np.testing.assert_array_equal(found[name].steps, one.steps, err_msg=f"{form}: {name}")
            np.testing.assert_allclose(found[name].values, one.values, rtol=precision, err_msg=f"{form}: {name}")


def test_findings_are_the_same(run: tuple[Case, Path], state: Path, tmp_path: Path) -> None:
    expected = audited(state)
    assert {one["code"] for one in expected["findings"] if one["severity"] != "info"} == run[0].alarms
    assert {one["code"] for one in expected["findings"]} >= run[0].told
    for form, path, precision in logs(run[1], state, tmp_path):
        found = audited(path)
        for key in ("detected", "summary", "passed"):
            assert found[key] == expected[key], f"{form}: {key}"
        for key in ("findings", "skipped", "observations"):
            alike(found[key], expected[key], precision, f"{form}: {key}")


PLACE = re.compile(r"\S*/[^\s:]+: (?:log_history\.)?")  # where a number was read
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[-+]\d+)?")


def alike(found: Any, expected: Any, precision: float, where: str) -> None:
    """Equal but for the file that a number is from, and its last digits where the log has fewer of them."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            alike(found[key], expected[key], precision, f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for place, (one, other) in enumerate(zip(found, expected, strict=True)):
            alike(one, other, precision, f"{where}.{place}")
    elif isinstance(expected, str) and precision and "fingerprint" not in where:
        one, other = PLACE.sub("", found), PLACE.sub("", expected)
        assert NUMBER.sub("N", one) == NUMBER.sub("N", other), where
        numbers, others = NUMBER.findall(one), NUMBER.findall(other)
        for a, b in zip(numbers, others, strict=True):
            last_place = 10.0 ** -len(b.partition(".")[2].partition("e")[0])
            assert float(a) == pytest.approx(float(b), rel=2 * precision, abs=1.01 * last_place), where
    elif isinstance(expected, str):
        assert PLACE.sub("", found) == PLACE.sub("", expected), where
    elif isinstance(expected, float):
        # a spread of losses of about 5 is off by as much as they are
        assert found == pytest.approx(expected, rel=10 * precision or 1e-12, abs=5 * precision), where
    else:
        assert found == expected, where
