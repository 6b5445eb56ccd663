"""``fgclip-doctor train``: what it says before the first step, its logs, how it resumes, and how it fails."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from fgclip_doctor import train_command
from fgclip_doctor.cli import app
from fgclip_doctor.training.checkpointing import latest
from fgclip_doctor.training.logs import JSON_LINES

SMALL = ("micro_batch=4", "accumulation=2", "scenes=40", "warmup_steps=2", "save_steps=3")
BANK = ("model.use_memory_bank=true", "model.memory_bank_size=20", "model.memory_bank_warmup_steps=2")


def sets(*assignments: str) -> list[str]:
    return [part for assignment in assignments for part in ("--set", assignment)]


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["train", *arguments])
    return result.exit_code, result.stdout, result.stderr


def lines(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / JSON_LINES).read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of 6 steps, and what it printed."""
    directory = tmp_path_factory.mktemp("train") / "run"
    code, out, err = run(*sets("steps=6", f"output_dir={directory}", "text_learning_rate=2e-6", *SMALL, *BANK))
    assert (code, err) == (0, "")
    return directory, out


def test_it_says_what_will_happen_before_the_first_step(trained: tuple[Path, str]) -> None:
    _, out = trained
    before, _, _ = out.partition("step 1/6")
    rows = {line.split("  ")[0]: line.split() for line in before.splitlines()}
    assert rows["text"][-2:] == ["2e-06", "0.05"]
    assert rows["scales-no-decay"][1:] == ["3", "3", "0.001", "0"]
    assert rows["region, bank off"][4] == "8"
    assert rows["region, bank full"][4] == "28"
    assert "on after step 2 (forward 4), full after step 3.5 (forward 7)" in before


def test_what_it_said_is_what_happened(trained: tuple[Path, str]) -> None:
    directory, out = trained
    assert "memory bank on at step 2, forward 4: 0 of 20 rows, pointer 0" in out
    history = lines(directory)
    assert [entry["bank_rows"] for entry in history] == [0, 0, 16, 20, 20, 20]
    assert [entry["bank_on"] for entry in history] == [0, 1, 1, 1, 1, 1]
    assert history[1]["candidates_region"] == 8
    assert history[4]["candidates_region"] > 24  # of 28, less the rows with an anchor's own caption


def test_every_line_tells_progress_and_the_last_one_where_the_run_lies(trained: tuple[Path, str]) -> None:
    directory, out = trained
    told = [line for line in out.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in told] == [f"{step}/6" for step in range(1, 7)]
    assert all("loss " in line and "region " in line and "step/s" in line for line in told)
    assert str(directory) in out.splitlines()[-1]
    assert latest(directory).name == "checkpoint-6"


def test_the_log_holds_learnt_bits_and_every_learning_rate(trained: tuple[Path, str]) -> None:
    directory, _ = trained
    history = lines(directory)
    assert history == json.loads((latest(directory) / "trainer_state.json").read_text())["log_history"]
    for entry in history:
        for term in ("global", "global_short", "region", "hard"):
            floor = (math.log(entry[f"candidates_{term}"]) - entry[f"loss_{term}"]) / math.log(2)
            assert entry[f"learnt_bits_{term}"] == pytest.approx(max(floor, 0.0))
        assert {"grad_norm", "logit_scale", "logit_scale_finegraind", "logit_scale_hardneg"} <= entry.keys()
        assert entry["learning_rate_vision"] == entry["learning_rate"]
    assert history[2]["learning_rate_text"] == pytest.approx(2e-6)


def test_a_resumed_run_takes_its_settings_with_it_and_appends(trained: tuple[Path, str], tmp_path: Path) -> None:
    whole, _ = trained
    directory = tmp_path / "run"
    settings = (f"output_dir={directory}", "text_learning_rate=2e-6", *SMALL, *BANK)
    assert run(*sets("steps=5", "schedule=constant", *settings))[0] == 0
    (directory / "checkpoint-5").rename(tmp_path / "lost")  # as if it had died after step 5
    code, out, _ = run("--resume", *sets("steps=7", f"output_dir={directory}"))
    assert code == 0
    assert "step 4/7" in out
    assert "step 3/7" not in out
    history = lines(directory)
    assert [entry["step"] for entry in history] == list(range(1, 8))
    assert [entry["loss"] for entry in history[:3]] == [entry["loss"] for entry in lines(whole)[:3]]
    assert history[6]["learning_rate"] == 1e-3  # the constant schedule of the first part
    assert run("--resume", *sets("steps=7", f"output_dir={directory}"))[0] == 0  # nothing is left to do
    assert lines(directory) == history


def test_toml_with_settings(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(f"steps = 2\noutput_dir = '{tmp_path / 'a'}'\nmicro_batch = 4\nscenes = 40\nlogging_steps = 2\n")
    code, out, _ = run(str(file), *sets(f"output_dir={tmp_path / 'b'}"))
    assert code == 0
    assert [line.split()[1] for line in out.splitlines() if line.startswith("step ")] == ["2/2"]
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["b"]


def test_a_terminal_shows_a_bar(tmp_path: Path) -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=140)
    assignments = ["steps=2", f"output_dir={tmp_path}", "micro_batch=4", "scenes=40"]
    train_command.train(train_command.settings(None, assignments, resume=False), screen)
    shown = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "2/2" in shown
    assert "━" in shown
    assert "step 1/2" not in shown


def test_without_an_output_directory_every_run_gets_its_own() -> None:
    config = train_command.settings(None, [], resume=False)
    assert config.output_dir.parts[0] == ".fgclip-doctor"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["absent.toml"], "absent.toml: No such file"),
        (sets("stepz=3"), "unknown setting 'stepz'"),
        (sets("steps=3.5"), "max_steps must be a whole number, not '3.5'"),
        (["--resume"], "--resume needs to know which run"),
        (["--resume", *sets("output_dir={tmp}/none")], "none: no checkpoint"),
        (sets("output_dir={run}"), "already holds a run"),
        (sets("output_dir={tmp}/new", "base={tmp}/none"), "none: no checkpoint"),
        (sets("output_dir={tmp}/new", "faults=bank-on-fire"), "no fault 'bank-on-fire'"),
        (sets("output_dir={tmp}/new", "scenes=3"), "3 samples do not make a micro-batch"),
        (sets("output_dir={tmp}/file/new"), "Not a directory"),
    ],
)
def test_what_cannot_work_is_one_clear_line_and_exit_2(
    arguments: list[str], complaint: str, trained: tuple[Path, str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    filled = [argument.format(tmp=tmp_path, run=trained[0]) for argument in arguments]
    code, out, err = run(*filled)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert complaint in err


def test_a_forecast_that_is_impossible_stops_no_training(tmp_path: Path) -> None:
    code, out, err = run(
        *sets("steps=1", f"output_dir={tmp_path}", "micro_batch=4", "scenes=40", "model.projection_dim=8")
    )
    assert (code, err) == (0, "")
    assert "no forecast of the losses" in out
    assert "dimension must be a number from 16" in out


def test_ctrl_c_is_130_and_says_how_to_go_on(tmp_path: Path) -> None:
    command = [sys.executable, "-u", "-m", "fgclip_doctor", "train"]
    settings = sets("steps=100000", f"output_dir={tmp_path}", *SMALL)
    with subprocess.Popen(
        [*command, *settings, *sets("save_steps=2", "logging_steps=1")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as process:
        while not any(tmp_path.glob("checkpoint-*")):
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.count("\n") == 1
    assert "interrupted after step" in err
    assert f"--resume --set output_dir={tmp_path} goes on from checkpoint-" in err
