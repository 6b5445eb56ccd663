"""A part of the gauntlet, a minute of it: faults are named through each evidence that shows them, sound runs pass."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers.utils import logging
from typer.testing import CliRunner

from fgclip_doctor.cli import app
from tests.gauntlet import table
from tests.gauntlet.cases import CASES, FAULTS, SOUND, by_name
from tests.gauntlet.gauntlet import Outcome, run_case
from tests.gauntlet.views import View

NAMED = (
    "bank never enabled",
    "region head in no group",
    "parameters in bf16",
    "region head detached, from scratch",
    "plain: NaN hidden by the Trainer",
)
SILENT = ("tuned, seed 0", "tuned, a few steps", "scratch, its first steps", "plain, from scratch")


@pytest.fixture
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    own = tmp_path_factory.getbasetemp()
    return (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "gauntlet"


@pytest.fixture(autouse=True)
def _quiet_on_one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()
    torch.set_num_threads(threads)


def passed(name: str, cache: Path) -> Outcome:
    outcome = run_case(by_name(name), cache)
    assert not outcome.error, outcome.error
    assert not outcome.troubles
    return outcome


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMED)
def test_fault_is_named_first_wherever_it_shows(name: str, cache: Path) -> None:
    shown = [one for one in passed(name, cache).judged if one.expected]
    assert shown
    assert [one.view for one in shown if not one.first] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", SILENT)
def test_sound_run_raises_no_alarm(name: str, cache: Path) -> None:
    outcome = passed(name, cache)
    assert len(outcome.heard) >= len(View)
    assert outcome.false_alarms == ()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "exit_code"), [("tuned, seed 0", 0), ("bank never enabled", 1)])
def test_command_line_says_the_same(name: str, exit_code: int, cache: Path) -> None:
    path = passed(name, cache).path
    answer = CliRunner().invoke(app, ["audit", str(path), "--format", "json", "--fail-on", "warning"])
    assert answer.exit_code == exit_code, answer.output
    codes = [one["code"] for one in json.loads(answer.stdout)["findings"]]
    assert ("FGD201" in codes[:1]) == bool(exit_code)


def test_cases_have_names_of_their_own_and_are_enough() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    assert len(FAULTS) >= 60
    assert len(SOUND) >= 60


def test_every_fault_says_what_each_evidence_shows() -> None:
    for fault in FAULTS:
        for view in View:
            assert fault.expected(view), fault.name


def test_table_goes_between_its_markers_and_nowhere_else() -> None:
    text = f"before\n{table.BEGIN}old\n{table.END}\nafter\n"
    new = table.updated(text, [Outcome(by_name("scales of one"), None)])
    assert new.startswith("before\n")
    assert new.endswith("after\n")
    assert "old" not in new
    with pytest.raises(SystemExit):
        table.updated("no markers", [])
