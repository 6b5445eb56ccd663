"""The formats that other tools read, each through a parser of its own, and nothing hostile gets through."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest
from junitparser import JUnitXml
from markdown_it import MarkdownIt

from fgclip_doctor.findings import Evidence, Severity
from fgclip_doctor.registry import installed_checks
from fgclip_doctor.reports import github, junit, markdown, sarif
from fgclip_doctor.reports.places import place
from tests.reports.test_reports import FINDING, HOSTILE, report

PLAIN = replace(FINDING, message="It never ran.", where="image_queue", explained_by=())
PROVEN = replace(PLAIN, evidence=(Evidence(name="loss", value=1.0, source="logs/train.log:12: loss"),))
MANY = tuple(replace(FINDING, where=f"tensor {n}", explained_by=()) for n in range(25))


def test_a_place_is_the_file_and_line_of_the_first_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert place(PROVEN, report()) == ("logs/train.log", 12)
    inside = replace(PROVEN, evidence=(Evidence(name="n", value=1, source=f"{tmp_path}/a/b.bin: key"),))
    assert place(inside, report()) == ("a/b.bin", None)
    stated = replace(PROVEN, evidence=(Evidence(name="n", value=1, source="--fact: scale"),))
    assert place(stated, report()) == ("runs/exp7", None)


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        ("python train.py --lr 1e-3", "train.py"),
        ("torchrun --nproc-per-node 2 train.py --config=conf/smoke.toml", "conf/smoke.toml"),
        ("python other.py, python train.py", "train.py"),
        ("python 'gone.py", "rec/rank-0.000.jsonl"),
        ("python gone.py \0.py /etc/hosts.py", "rec/rank-0.000.jsonl"),
    ],
)
def test_what_a_command_was_seen_to_do_stands_at_what_people_can_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subject: str, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").mkdir()
    for name in ("train.py", "conf/smoke.toml", "other.py"):
        (tmp_path / name).touch()
    proof = (Evidence(name="n", value=1, source="rec/rank-0.000.jsonl: scale"),)
    recorded = replace(PLAIN, where="python train.py: scale", evidence=proof)  # of several commands, one
    assert place(recorded, replace(report(), subject=subject)) == (expected, None)


# What a runner of GitHub Actions makes of a line: github.com/actions/runner, ActionCommand.TryParseV2
ANNOTATION = re.compile(r"::(?P<command>\w+)(?: (?P<properties>[^:]*(?:%3A[^:]*)*))?::(?P<message>.*)")


def test_annotations_parse_worst_first_within_what_github_shows() -> None:
    findings = (replace(PROVEN, severity=Severity.WARNING), *MANY, replace(PROVEN, severity=Severity.INFO))
    rendered = github.render(report(*findings))
    parsed = [ANNOTATION.fullmatch(line) for line in rendered.splitlines()]
    commands = [match["command"] for match in parsed if match]
    assert commands[: github.PER_KIND] == ["error"] * github.PER_KIND
    assert commands.count("error") == github.PER_KIND
    assert "16 more of this kind" in rendered
    (warning,) = [match for match in parsed if match and match["command"] == "warning" and "FGD201" in match[0]]
    assert warning["properties"].startswith("file=logs/train.log,line=12,title=FGD201")
    assert sum(match is None for match in parsed) == 1, "the verdict is the only plain line"


def test_a_hostile_name_can_end_no_annotation() -> None:
    hostile = replace(FINDING, where="x\n::error::owned", message="100%,a:b::c", explained_by=())
    rendered = github.render(report(hostile))
    assert "\n::error::owned" not in rendered
    assert "100%25" in rendered


def test_junit_is_read_by_a_consumer_as_it_was_meant(tmp_path: Path) -> None:
    """junitparser, which merges and reads the reports of test runners."""
    path = tmp_path / "doctor.xml"
    path.write_text(junit.render(report(FINDING, replace(PLAIN, code="FGD302", severity=Severity.INFO))), "utf-8")
    (suite,) = JUnitXml.fromfile(str(path))
    assert (suite.tests, suite.failures, suite.errors, suite.skipped) == (5, 1, 1, 1)
    results = {str(case.name): [type(one).__name__ for one in case.result] for case in suite}
    assert results == {
        "FGD104": ["Skipped"],
        "FGD201 bank-never-active": ["Failure"],
        "FGD301": [],
        "FGD302 bank-never-active": [],
        "could be read": ["Error"],
    }


def test_junit_is_read_with_its_counts() -> None:
    suite = ElementTree.fromstring(junit.render(report(FINDING)))
    assert suite.attrib == {"name": "fgclip-doctor", "tests": "4", "failures": "1", "errors": "1", "skipped": "1"}
    assert [case.get("name") for case in suite.iter("testcase")] == [
        "FGD104", "FGD201 bank-never-active", "FGD301", "could be read",
    ]  # fmt: skip
    assert not ElementTree.fromstring(junit.render(report(FINDING), fail_on=None)).findall(".//failure")


def schema() -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(
        (Path(__file__).parent / "fixtures/sarif-2.1.0-errata01.json").read_text("utf-8")
    )
    return schema


def validated(rendered: str) -> dict[str, Any]:
    """A SARIF document that its official schema accepts."""
    document: dict[str, Any] = json.loads(rendered, parse_constant=lambda token: pytest.fail(f"bare {token}"))
    jsonschema.Draft4Validator(schema(), format_checker=jsonschema.FormatChecker()).validate(document)
    return document


@pytest.mark.parametrize(
    "place",
    ["a b/ü.json:3", "/abs/x.bin: key", "C:\\x.json", "%41#?&.log:0", "", "\x1b\udc80.log:3", "\ud800", "/\udfff"],
)
def test_sarif_is_valid_whatever_is_in_it(place: str) -> None:
    checks, _ = installed_checks()
    hostile = replace(FINDING, where="", message="", fix="", evidence=(Evidence(name="n", value=1, source=place),))
    judged = replace(report(hostile, *MANY), suppressed=((hostile, HOSTILE),), crashed=(("FGD999", HOSTILE),))
    document = validated(sarif.render(judged, version="1.0.0", checks=checks))
    assert len(document["runs"][0]["results"]) == 27
    assert document["runs"][0]["invocations"][0]["executionSuccessful"] is False


def test_sarif_with_nothing_in_it_is_valid_and_what_is_none_is_not() -> None:
    document = validated(sarif.render(report(), version="1.0.0", checks=()))
    del document["runs"][0]["tool"]
    with pytest.raises(jsonschema.ValidationError):
        validated(json.dumps(document))


def test_sarif_names_rules_places_and_what_was_set_aside() -> None:
    checks, _ = installed_checks()
    judged = replace(report(PROVEN), suppressed=((PLAIN, "known"),))
    document = json.loads(sarif.render(judged, version="1.0.0", checks=checks))
    (run,) = document["runs"]
    first, second = run["results"]
    assert run["tool"]["driver"]["rules"][first["ruleIndex"]]["id"] == first["ruleId"] == "FGD201"
    physical = first["locations"][0]["physicalLocation"]
    assert physical == {"artifactLocation": {"uri": "logs/train.log"}, "region": {"startLine": 12}}
    assert second["suppressions"][0]["justification"] == "known"
    assert sarif.render(judged, version="1.0.0", checks=checks) == sarif.render(judged, version="1.0.0", checks=checks)


def test_markdown_fits_and_counts_what_it_left_out() -> None:
    whole = markdown.render(report(*MANY))
    short = markdown.render(report(*MANY), limit=4000)
    assert len(short) <= 4000 < len(whole)
    shown = short.count("FGD201")
    assert f"and {25 - shown} more" in short


def test_what_was_set_aside_leaves_room_for_what_was_found() -> None:
    judged = replace(report(*MANY), suppressed=tuple((one, "known " * 20) for one in MANY * 99))
    rendered = markdown.render(judged)
    assert len(rendered) <= markdown.MAX_LENGTH
    assert rendered.count("**FGD201") == len(MANY)
    assert "set aside" in rendered


def test_hostile_names_stay_text_in_markdown() -> None:
    evil = replace(
        FINDING, message="<script>x</script> ![a](http://b) @team", where="`x` | y ``z``", explained_by=(),
        evidence=(Evidence(name=HOSTILE, value="<img src=x>", source="a|b"),),
    )  # fmt: skip
    html = MarkdownIt("commonmark").enable("table").render(markdown.render(report(evil)))
    assert "<script" not in html
    assert "<img" not in html
    assert "\x1b" not in html
    assert "<code>`x` ¦ y ``z``</code>" in html
