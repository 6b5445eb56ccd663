"""The configuration file, and what it refuses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fgclip_doctor.config import ConfigError, parse_fail_on, read_config
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
