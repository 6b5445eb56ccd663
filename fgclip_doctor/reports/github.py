"""The report as annotations of GitHub Actions, worst first."""

from __future__ import annotations

from fgclip_doctor.diagnosis import Report
from fgclip_doctor.findings import Severity
from fgclip_doctor.inert import inert
from fgclip_doctor.reports.places import place
from fgclip_doctor.reports.text import verdict

COMMANDS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "notice"}
SUMMARY_LENGTH = 250_000  # characters: a step summary may have a mebibyte, and a character up to four bytes
PER_KIND = 10  # annotations of one kind that a step may show; GitHub drops those beyond


def render(report: Report) -> str:
    """Workflow commands. What is more than GitHub shows is counted in the last annotation of its kind."""
    lines: list[str] = []
    for severity, command in COMMANDS.items():
        same = sorted(
            (one for one in report.findings if one.severity is severity), key=lambda one: bool(one.explained_by)
        )
        shown = same if len(same) <= PER_KIND else same[: PER_KIND - 1]
        for finding in shown:
            path, line = place(finding, report)
            where = f"file={_property(path)}" + (f",line={line}" if line else "")
            title = _property(f"{finding.code} {finding.name}")
            causes = f" (explained by {', '.join(finding.explained_by)})" if finding.explained_by else ""
            message = f"{finding.where}: {finding.message}{causes} Fix: {finding.fix}"
            lines.append(f"::{command} {where},title={title}::{_message(message)}")
        if len(same) > len(shown):
            lines.append(
                f"::{command} title=fgclip-doctor::{len(same) - len(shown)} more of this kind; see the step summary"
            )
    lines += [f"::warning title=could not be read::{_message(problem)}" for problem in report.problems[:PER_KIND]]
    lines += [f"::error title={code} crashed::{_message(reason)}" for code, reason in report.crashed[:PER_KIND]]
    return "\n".join([*lines, f"fgclip-doctor: {verdict(report)}"]) + "\n"


def _message(text: str) -> str:
    return inert(text).replace("%", "%25")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")
