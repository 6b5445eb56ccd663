"""The formats that other tools read, each through a parser of its own, and nothing hostile gets through."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
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


def test_junit_is_read_with_its_counts() -> None:
    suite = ElementTree.fromstring(junit.render(report(FINDING)))
    assert suite.attrib == {"name": "fgclip-doctor", "tests": "4", "failures": "1", "errors": "1", "skipped": "1"}
    assert [case.get("name") for case in suite.iter("testcase")] == [
        "FGD104", "FGD201 bank-never-active", "FGD301", "could be read",
    ]  # fmt: skip
    assert not ElementTree.fromstring(junit.render(report(FINDING), fail_on=None)).findall(".//failure")


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
