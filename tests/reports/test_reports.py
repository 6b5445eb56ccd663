"""The text is one line a finding, JSON keeps its schema, and nothing hostile reaches the terminal."""

from __future__ import annotations

import json as stdlib_json
import math
from importlib.resources import files

import jsonschema
import pytest
from rich.console import Console

from fgclip_doctor.diagnosis import Report
from fgclip_doctor.findings import Evidence, Finding, Severity
from fgclip_doctor.reports import json, terminal, text

HOSTILE = "evil\x1b[2J\x1b]0;owned\x07\n\u202e[red]bold[/red] [link=file:///etc/passwd]x"


def report(*findings: Finding) -> Report:
    return Report(
        subject="runs/exp7",
        detected={"bank.pointer": HOSTILE},
        findings=findings,
        passed=("FGD301",),
        skipped=(("FGD104", "only one checkpoint"),),
        crashed=(),
        problems=(f"{HOSTILE}: truncated",),
        observations=(Evidence(name="in-bank retrieval", value=0.43, expected=1 / 64, why="chance", source="a.bin"),),
    )


FINDING = Finding(
    code="FGD201",
    name="bank-never-active",
    severity=Severity.ERROR,
    message=f"The bank {HOSTILE} never ran.",
    where=HOSTILE,
    evidence=(
        Evidence(
            name="pointer", value=0, expected=64, why="240 steps", source="model.safetensors: queue_ptr", step=240
        ),
        Evidence(name="norm", value=math.nan, expected=math.inf),
    ),
    fix="Switch it on.",
    explained_by=("FGD401",),
)


def test_json_keeps_its_schema_and_has_no_bare_nan() -> None:
    schema = stdlib_json.loads(files("fgclip_doctor.reports").joinpath("report.schema.json").read_text("utf-8"))
    rendered = json.render(report(FINDING), version="1.2.3")
    document = stdlib_json.loads(rendered, parse_constant=lambda token: pytest.fail(f"bare {token}"))
    jsonschema.validate(document, schema, cls=jsonschema.Draft202012Validator)
    assert document["schema_version"] == 1
    assert document["summary"]["errors"] == 1
    assert document["findings"][0]["evidence"][1]["value"] == "nan"
    assert document["findings"][0]["evidence"][1]["expected"] == "inf"
    assert document["findings"][0]["where"] == HOSTILE, "data stays data: JSON escapes, it doesn't rewrite"
    assert rendered == json.render(report(FINDING), version="1.2.3")


def test_the_schema_refuses_what_is_not_a_report() -> None:
    schema = stdlib_json.loads(files("fgclip_doctor.reports").joinpath("report.schema.json").read_text("utf-8"))
    document = json.document(report(FINDING), version="1")
    document["findings"][0]["evidence"] = []
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, schema, cls=jsonschema.Draft202012Validator)


def test_piped_text_is_one_line_a_finding() -> None:
    lines = text.render(report(FINDING)).splitlines()
    (line,) = [line for line in lines if line.startswith("error: ")]
    assert line.startswith("error: FGD201 bank-never-active: ")
    assert "pointer = 0 (expected 64) at step 240" in line
    assert "[explained by FGD401]" in line
    assert line.endswith("fix: Switch it on.")
    assert lines[-1] == "1 error; 1 check passed, 1 skipped for want of evidence; 1 file could not be read"


def test_verbose_lists_what_was_skipped_and_why() -> None:
    assert "skipped: FGD104: only one checkpoint" in text.render(report(), verbose=True)
    assert "FGD104" not in text.render(report())


@pytest.mark.parametrize("width", [1, 30, 59, 60, 100, 10_000])
def test_every_width_shows_the_proof(width: int) -> None:
    console = Console(width=width, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(terminal.render(report(FINDING), verbose=True))
    shown = captured.get()
    assert all(len(line) <= width for line in shown.splitlines())
    if width >= 30:
        assert ("measured" in shown) == (width >= 60), "a table needs room"
        assert "pointer" in shown


def test_nothing_from_the_run_reaches_the_terminal_alive() -> None:
    plain = text.render(report(FINDING), verbose=True)
    console = Console(width=600, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(terminal.render(report(FINDING), verbose=True))
    for shown in (plain, captured.get()):
        assert "\x1b[2J" not in shown
        assert "\x1b]0;" not in shown
        assert "\x07" not in shown
        assert "\u202e" not in shown
        assert "[red]bold[/red]" in shown, "markup stays text"
    assert "\n[red]bold" not in plain


@pytest.mark.parametrize(
    ("value", "shown"),
    [(3, "3"), (0.123456, "0.1235"), (64.0, "64"), (math.inf, "inf"), (True, "True"), (1e-9, "1e-09")],
)
def test_numbers_are_short(value: float, shown: str) -> None:
    assert text.number(value) == shown
