"""The configuration file, and what it refuses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fgclip_doctor.config import ConfigError, parse_fail_on, plan_beside, read_config
from fgclip_doctor.findings import Severity
from fgclip_doctor.registry import installed_checks

GOOD = """
select = ["FGD2"]
ignore = ["FGD204"]
fail-on = "warning"
[thresholds.logit-scale-above-cap]
cap = 4.7
[roles]
"bank.pointer" = "memory.ptr"
[facts]
accumulation = 8
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_of_its_own_and_a_pyproject_say_the_same(tmp_path: Path) -> None:
    alone = read_config(write(tmp_path / "doctor.toml", GOOD))
    nested = GOOD.replace("[thresholds", "[tool.fgclip-doctor.thresholds").replace(
        "[roles", "[tool.fgclip-doctor.roles"
    )
    nested = "[tool.fgclip-doctor]" + nested.replace("[facts", "[tool.fgclip-doctor.facts")
    within = read_config(write(tmp_path / "pyproject.toml", nested))
    assert alone.select == within.select == ("FGD2",)
    assert alone.fail_on is within.fail_on is Severity.WARNING
    assert alone.thresholds == within.thresholds == {"logit-scale-above-cap": {"cap": 4.7}}
    assert alone.roles == {"bank.pointer": "memory.ptr"}
    assert alone.facts == {"accumulation": 8}


def test_a_pyproject_without_our_table_changes_nothing(tmp_path: Path) -> None:
    assert read_config(write(tmp_path / "pyproject.toml", "[project]\nname = 'x'\n")).select == ()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("selects = []", "unknown setting 'selects'"),
        ("select = 'FGD1'", "select must be a list"),
        ("fail-on = 'fatal'", "not 'fatal'"),
        ("thresholds = 3", "must be a table"),
        ("roles = {a = 1}", "must name tensors"),
        ("select = [", "doctor.toml"),
        ("plan = 3", "plan must be a table"),
        ("plan = { bank_on = 50 }", "unknown setting 'bank_on'"),
        ("plan = { bank-on = -1 }", "bank-on must be an optimizer step"),
        ("plan = { bank-on = true }", "bank-on must be an optimizer step"),
        ("plan = { frozen = 'a' }", "frozen must be a list of patterns"),
        ("plan = { candidates = { a = 4 } }", "candidates must be a table"),
        ("plan = { candidates = { 0 = nan } }", "candidates must be a table"),
    ],
)
def test_a_wrong_file_is_one_clear_line(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        read_config(write(tmp_path / "doctor.toml", text))
    assert "doctor.toml" in str(caught.value)


def test_a_missing_file_that_was_asked_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_config(tmp_path / "absent.toml")


def test_what_might_never_end_is_no_configuration(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    for path in (tmp_path / "pipe.toml", tmp_path, Path(os.devnull)):
        with pytest.raises(ConfigError, match="not a file"):
            read_config(path)


def test_thresholds_must_exist(tmp_path: Path) -> None:
    checks, _ = installed_checks()
    for text in (
        "[thresholds.no-such-rule]\nx = 1",
        "[thresholds.FGD301]\nx = 1",
        "[thresholds.FGD301]\ncap = 'x'",
        "[thresholds.FGD301]\ncap = true",
        "[thresholds.FGD301]\ncap = nan",
        "[thresholds.FGD502]\npoints = 2.5",
    ):
        with pytest.raises(ConfigError, match=r"^[^\n]*doctor\.toml: thresholds: "):
            read_config(write(tmp_path / "doctor.toml", text)).check_against(checks)
    read_config(write(tmp_path / "doctor.toml", "[thresholds.FGD301]\ncap = 5")).check_against(checks)


def test_fail_on() -> None:
    assert parse_fail_on("never") is None
    assert parse_fail_on("info") is Severity.INFO


PLAN = """
bank-on = 50
frozen = ["vision_model.*"]
scale-at-cap = true
restarts = [100, 200]
candidates = { 50 = 132, 0 = 4 }
"""


def test_a_plan_is_read_from_the_configuration_and_from_beside_a_run(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    beside = write(tmp_path / "run" / "plan.toml", PLAN)
    log = write(tmp_path / "run" / "train.log", "step 1: loss 1.0\n")
    declared = read_config(write(tmp_path / "doctor.toml", "[plan]" + PLAN)).plan
    assert declared.bank_on == 50
    assert declared.frozen == ("vision_model.*",)
    assert declared.scale_at_cap
    assert declared.restarts == (100, 200)
    assert list(declared.candidates.items()) == [(0, 4.0), (50, 132.0)]  # in order of step
    assert plan_beside([tmp_path / "run"]) == plan_beside([log])
    assert plan_beside([log]).source == str(beside)
    assert not plan_beside([tmp_path]).source


def test_a_broken_plan_beside_a_run_is_named(tmp_path: Path) -> None:
    write(tmp_path / "plan.toml", "bank-on = [")
    with pytest.raises(ConfigError, match=r"plan\.toml"):
        plan_beside([tmp_path])
