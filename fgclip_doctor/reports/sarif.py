"""The report as SARIF 2.1.0 (OASIS), which code scanners and editors show."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fgclip_doctor.diagnosis import Report
from fgclip_doctor.findings import Finding, Severity
from fgclip_doctor.inert import inert
from fgclip_doctor.registry import Check
from fgclip_doctor.reports.places import place

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
LEVELS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "note"}


def render(report: Report, *, version: str, checks: Iterable[Check]) -> str:
    """The same bytes for the same report: there are no times in it."""
    rules = sorted(checks, key=lambda check: check.code)
    places = {rule.code: number for number, rule in enumerate(rules)}
    results = [_result(one, report, places) for one in report.findings]
    results += [
        _result(one, report, places) | {"suppressions": [{"kind": "external", "justification": inert(reason)}]}
        for one, reason in report.suppressed
    ]
    notes = [("warning", problem) for problem in report.problems]
    notes += [("error", f"{code} crashed: {reason}") for code, reason in report.crashed]
    run = {
        "tool": {
            "driver": {
                "name": "fgclip-doctor",
                "semanticVersion": version,
                "rules": [_rule(rule) for rule in rules],
            }
        },
        "invocations": [
            {
                "executionSuccessful": not report.crashed,
                "toolExecutionNotifications": [
                    {"level": level, "message": {"text": inert(text)}} for level, text in notes
                ],
            }
        ],
        "columnKind": "unicodeCodePoints",
        "results": results,
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2, allow_nan=False) + "\n"


def _rule(rule: Check) -> dict[str, Any]:
    return {
        "id": rule.code,
        "name": rule.name,
        "shortDescription": {"text": rule.defect},
        "fullDescription": {"text": rule.sections.get("Why") or rule.defect},
        "help": {"text": rule.explanation},
        "defaultConfiguration": {"level": LEVELS[rule.severity]},
    }


def _result(finding: Finding, report: Report, places: dict[str, int]) -> dict[str, Any]:
    path, line = place(finding, report)
    causes = f" Explained by {', '.join(finding.explained_by)}." if finding.explained_by else ""
    physical: dict[str, Any] = {"artifactLocation": {"uri": _uri(path)}}
    if line:
        physical["region"] = {"startLine": line}
    result: dict[str, Any] = {
        "ruleId": finding.code,
        "level": LEVELS[finding.severity],
        "message": {"text": inert(f"{finding.message}{causes} Fix: {finding.fix}")},
        "locations": [
            {"physicalLocation": physical, "logicalLocations": [{"fullyQualifiedName": inert(finding.where)}]},
        ],
        "partialFingerprints": {"fgclipDoctor/v1": finding.fingerprint},
    }
    if finding.code in places:
        result["ruleIndex"] = places[finding.code]
    return result


def _uri(path: str) -> str:
    """Relative to the repository where it is inside; absolute elsewhere."""
    try:
        return Path(path).as_uri() if Path(path).is_absolute() else quote(os.fsencode(Path(path).as_posix()))
    except UnicodeEncodeError:  # halves of characters, which no file has in its name
        return _uri(path.encode("utf-8", "surrogatepass").decode("utf-8", "replace"))
