"""The report as JUnit XML: every rule a test case."""

from __future__ import annotations

from xml.etree import ElementTree

from fgclip_doctor.diagnosis import Report
from fgclip_doctor.findings import Finding, Severity
from fgclip_doctor.inert import inert
from fgclip_doctor.reports.text import finding_line, verdict


def render(report: Report, *, fail_on: Severity | None = Severity.ERROR) -> str:
    """Rules with findings at or above `fail_on` fail, those without their evidence are skipped, the rest pass."""
    cases: dict[str, list[Finding]] = {}
    for finding in report.findings:
        cases.setdefault(finding.code, []).append(finding)
    outcomes = {code: ("skipped", reason) for code, reason in report.skipped}
    outcomes |= {code: ("error", reason) for code, reason in report.crashed}
    codes = sorted({*cases, *outcomes, *report.passed})
    suite = ElementTree.Element("testsuite", name="fgclip-doctor")
    counts = {"failure": 0, "error": 0, "skipped": 0}
    for code in codes:
        case = ElementTree.SubElement(suite, "testcase", classname="fgclip_doctor", name=code)
        found = cases.get(code, [])
        if found:
            case.set("name", f"{code} {found[0].name}")
        lines = "\n".join(finding_line(one) for one in found)
        if found and fail_on is not None and found[0].severity.at_least(fail_on):
            counts["failure"] += 1
            failure = ElementTree.SubElement(case, "failure", type=found[0].severity, message=inert(found[0].message))
            failure.text = lines
        elif found:
            ElementTree.SubElement(case, "system-out").text = lines
        elif code in outcomes:
            kind, reason = outcomes[code]
            counts[kind] += 1
            ElementTree.SubElement(case, kind, type=kind, message=inert(reason))
    for problem in report.problems:
        counts["error"] += 1
        case = ElementTree.SubElement(suite, "testcase", classname="fgclip_doctor", name="could be read")
        ElementTree.SubElement(case, "error", type="unreadable", message=inert(problem))
    totals = {
        "tests": len(suite),
        "failures": counts["failure"],
        "errors": counts["error"],
        "skipped": counts["skipped"],
    }
    for name, count in totals.items():
        suite.set(name, str(count))
    ElementTree.SubElement(suite, "system-out").text = verdict(report)
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"
