"""The report as JSON, ``schema_version`` 1; ``report.schema.json`` beside this file is its JSON Schema."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from fgclip_doctor.diagnosis import Comparison, Report
from fgclip_doctor.findings import Evidence, Finding, Severity

SCHEMA_VERSION = 1


def render(report: Report, *, version: str) -> str:
    """The same bytes for the same report. NaN and infinities are strings, since JSON has no such numbers."""
    return json.dumps(document(report, version=version), indent=2, ensure_ascii=True, allow_nan=False) + "\n"


def document(report: Report, *, version: str) -> dict[str, Any]:
    """The report as plain data."""
    return {
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": "fgclip-doctor", "version": version},
        "subject": report.subject,
        "detected": dict(report.detected),
        "summary": {
            "errors": report.count(Severity.ERROR),
            "warnings": report.count(Severity.WARNING),
            "infos": report.count(Severity.INFO),
            "passed": len(report.passed),
            "skipped": len(report.skipped),
            "crashed": len(report.crashed),
            "suppressed": len(report.suppressed),
        },
        "findings": [_finding(finding) for finding in report.findings],
        "skipped": _reasons(report.skipped),
        "passed": list(report.passed),
        "crashed": _reasons(report.crashed),
        "problems": list(report.problems),
        "suppressed": [_finding(finding) | {"reason": reason} for finding, reason in report.suppressed],
        "stale": list(report.stale),
        "notes": list(report.notes),
        "comparison": _comparison(report.comparison) if report.comparison else None,
        "observations": [_evidence(one) for one in report.observations],
    }


def _comparison(comparison: Comparison) -> dict[str, Any]:
    return {
        "against": comparison.against,
        "differences": [{key: _plain(value) for key, value in asdict(one).items()} for one in comparison.differences],
        "new": [one.fingerprint for one in comparison.new],
        "fixed": [_finding(one) for one in comparison.fixed],
        "unchanged": [one.fingerprint for one in comparison.unchanged],
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "code": finding.code,
        "name": finding.name,
        "severity": finding.severity.value,
        "message": finding.message,
        "where": finding.where,
        "evidence": [_evidence(one) for one in finding.evidence],
        "fix": finding.fix,
        "explained_by": list(finding.explained_by),
        "fingerprint": finding.fingerprint,
    }


def _evidence(evidence: Evidence) -> dict[str, Any]:
    return {key: _plain(value) for key, value in asdict(evidence).items()}


def _reasons(pairs: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"code": code, "reason": reason} for code, reason in pairs]


def _plain(value: Any) -> Any:
    """A JSON value: numpy's scalars become Python's, numbers that JSON lacks become strings, tuples lists."""
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    value = value.item() if hasattr(value, "item") else value
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
