"""The report in a pipe or a file: each finding on one line."""

from __future__ import annotations

import math
from collections.abc import Iterable

from fgclip_doctor.diagnosis import Comparison, Report
from fgclip_doctor.findings import Evidence, Finding, Severity, Value
from fgclip_doctor.inert import inert


def render(report: Report, *, verbose: bool = False) -> str:
    """Plain lines, whatever their length."""
    lines = [f"fgclip-doctor: {inert(report.subject)}"]
    lines += [f"detected: {role}: {inert(name)}" for role, name in report.detected.items()]
    lines += [f"observed: {evidence_line(one)}" for one in report.observations]
    lines += [finding_line(finding) for finding in report.findings]
    lines += [f"suppressed: {one.code}: {inert(one.where)}: {inert(reason)}" for one, reason in report.suppressed]
    lines += [f"stale: {inert(line)} is no longer found, and can leave the baseline" for line in report.stale]
    lines += [f"note: {inert(note)}" for note in report.notes]
    lines += comparison_lines(report)
    lines += [f"crashed: {code}: {inert(reason)}" for code, reason in report.crashed]
    lines += [f"unreadable: {inert(problem)}" for problem in report.problems]
    if verbose:
        lines += [f"passed: {code}" for code in report.passed]
        lines += [f"skipped: {code}: {inert(reason)}" for code, reason in report.skipped]
    return "\n".join([*lines, verdict(report)]) + "\n"


def finding_line(finding: Finding) -> str:
    """A finding with all its proof on one line."""
    causes = f" [explained by {', '.join(finding.explained_by)}]" if finding.explained_by else ""
    proof = "; ".join(evidence_line(one) for one in finding.evidence)
    rule = f"{finding.severity}: {finding.code} {finding.name}"
    return (
        f"{rule}: {inert(finding.where)}: {inert(finding.message)}{causes} | evidence: {proof} | "
        f"fix: {inert(finding.fix)}"
    )


def by_rule(findings: Iterable[Finding]) -> dict[str, list[str]]:
    """The places of findings under the code and the name of their rule."""
    places: dict[str, list[str]] = {}
    for one in findings:
        places.setdefault(f"{one.code} {one.name}", []).append(one.where)
    return places


def comparison_lines(report: Report) -> list[str]:
    """What differs from the good run, a line each: what no finding accounts for last, and said to be so."""
    if report.comparison is None:
        return []
    comparison = report.comparison
    lines = [comparison_verdict(comparison)]
    lines += [f"fixed: {one.code} {one.name}: {inert(one.where)}" for one in comparison.fixed]
    for one in sorted(comparison.differences, key=lambda one: not one.explained_by):
        why = f"explained by {', '.join(one.explained_by)}" if one.explained_by else "unexplained"
        values = f"{number(one.here)} here, {number(one.there)} there"
        lines.append(f"differs: {inert(one.what)}: {values} ({inert(one.why)}) [{why}]")
    return lines


def comparison_verdict(comparison: Comparison) -> str:
    """What a comparison came to, in a sentence."""
    return (
        f"against {inert(comparison.against)}: {_many(len(comparison.new), 'finding')} new, {len(comparison.fixed)} "
        f"fixed, {len(comparison.unchanged)} unchanged; {_many(len(comparison.differences), 'difference')}, "
        f"{len(comparison.unexplained)} unexplained"
    )


def verdict(report: Report) -> str:
    """The outcome in a sentence."""
    counts = [_many(report.count(severity), severity) for severity in Severity if report.count(severity)]
    found = ", ".join(counts) if counts else "nothing found" if report.passed else "nothing could be checked"
    checks = f"{_many(len(report.passed), 'check')} passed, {len(report.skipped)} skipped for want of evidence"
    crashed = f", {len(report.crashed)} crashed" if report.crashed else ""
    hidden = f"; {len(report.suppressed)} suppressed" if report.suppressed else ""
    unread = f"; {_many(len(report.problems), 'file')} could not be read" if report.problems else ""
    return f"{found}; {checks}{crashed}{hidden}{unread}"


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def number(value: Value) -> str:
    """A value as people read it: four significant digits for fractions, whole numbers whole."""
    if isinstance(value, bool) or value is None or isinstance(value, (int, str)):
        return inert(str(value))
    if not math.isfinite(value) or (value == int(value) and abs(value) < 1e15):
        return f"{value:g}" if not math.isfinite(value) or abs(value) < 1e6 else str(int(value))
    return f"{value:.4g}"


def evidence_line(evidence: Evidence) -> str:
    """A measured value beside the expected one, and where it was read."""
    expected = f" (expected {number(evidence.expected)})" if evidence.expected is not None else ""
    why = f", {inert(evidence.why)}" if evidence.why else ""
    step = f" at step {evidence.step}" if evidence.step is not None else ""
    source = f" [{inert(evidence.source)}]" if evidence.source else ""
    return f"{inert(evidence.name)} = {number(evidence.value)}{expected}{step}{why}{source}"
