"""The report as Markdown that fits a comment on a pull request."""

from __future__ import annotations

import re
from collections.abc import Iterator

from fgclip_doctor.diagnosis import Report
from fgclip_doctor.findings import Evidence, Finding, Severity
from fgclip_doctor.inert import inert
from fgclip_doctor.reports.text import comparison_lines, number, verdict

MAX_LENGTH = 65_536  # characters of a comment on GitHub; a note on GitLab may have a million
SIGNS = {Severity.ERROR: "❌", Severity.WARNING: "⚠️", Severity.INFO: "ℹ️"}


def render(report: Report, *, limit: int = MAX_LENGTH) -> str:
    """Causes with their proof, symptoms in a line; of what is longer than `limit`, the last findings are counted."""
    head = f"### fgclip-doctor: {verdict(report)}\n\n{code(report.subject)}\n"
    tail = "".join(_tail(report))
    if len(tail) > limit // 2:
        tail = "\n… and what was set aside, skipped or not read, which doesn't fit here.\n"
    blocks = [_block(finding) for finding in report.findings]
    room = limit - len(head) - len(tail) - 80
    kept = 0
    while kept < len(blocks) and len(blocks[kept]) <= room:
        room -= len(blocks[kept])
        kept += 1
    left_out = len(blocks) - kept
    more = f"\n… and {left_out} more, which don't fit here.\n" if left_out else ""
    return head + "".join(blocks[:kept]) + more + tail


def _block(finding: Finding) -> str:
    head = f"\n{SIGNS[finding.severity]} **{finding.code} {finding.name}** {code(finding.where)}  \n"
    if finding.explained_by:
        return f"{head}{plain(finding.message)} _A symptom of {', '.join(finding.explained_by)}._\n"
    rows = "".join(_row(one) for one in finding.evidence)
    table = f"\n| measured | value | expected | why |\n|---|---|---|---|\n{rows}" if rows else ""
    return f"{head}{plain(finding.message)}\n{table}\n**Fix:** {plain(finding.fix)}\n"


def _row(one: Evidence) -> str:
    expected = "" if one.expected is None else number(one.expected)
    where = f"{one.why} ({one.source})" if one.source else one.why
    return f"| {' | '.join(plain(cell) for cell in (one.name, number(one.value), expected, where))} |\n"


def _tail(report: Report) -> Iterator[str]:
    for finding, reason in report.suppressed:
        yield f"\n- suppressed: {finding.code} {code(finding.where)}: {plain(reason)}"
    for line in report.stale:
        yield f"\n- no longer found, and can leave the baseline: {plain(line)}"
    for line in comparison_lines(report):
        yield f"\n- {plain(line)}"
    for note in report.notes:
        yield f"\n- note: {plain(note)}"
    for rule, reason in report.crashed:
        yield f"\n- {rule} crashed: {plain(reason)}"
    for problem in report.problems:
        yield f"\n- could not be read: {plain(problem)}"
    if report.skipped:
        yield "\n\n<details><summary>Skipped for want of evidence</summary>\n\n"
        yield "".join(f"- {rule}: {plain(reason)}\n" for rule, reason in report.skipped)
        yield "\n</details>"
    yield "\n"


def plain(text: str) -> str:
    """`text` with nothing in it that Markdown or HTML would act on."""
    escaped = "".join(f"\\{char}" if char in "\\`*_{}[]()#+!|~$" else char for char in inert(text))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("@", "&#64;")


def code(text: str) -> str:
    """`text` as a span of code, which nothing in it can end."""
    safe = inert(text).replace("|", "¦")  # which would end a cell of a table even in code
    longest = max(map(len, re.findall("`+", safe)), default=0)
    fence, space = "`" * (longest + 1), " " * bool(longest)
    return f"{fence}{space}{safe}{space}{fence}"
