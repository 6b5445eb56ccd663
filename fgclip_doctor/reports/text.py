"""The report for people: boxes and colour on a terminal, one soft-wrapped line a finding in a pipe."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.markup import escape
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from fgclip_doctor.diagnosis import Report
from fgclip_doctor.findings import Evidence, Finding, Severity, Value
from fgclip_doctor.inert import inert

NARROW = 60  # columns, under which a table of four would break every word
COLOUR = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.INFO: "blue"}


def render(report: Report, *, verbose: bool = False) -> str:
    """Plain lines, for a pipe or a file: every finding on one line, whatever its length."""
    lines = [f"fgclip-doctor: {inert(report.subject)}"]
    lines += [f"detected: {role}: {inert(name)}" for role, name in report.detected.items()]
    lines += [f"observed: {_evidence_line(one)}" for one in report.observations]
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
    proof = "; ".join(_evidence_line(one) for one in finding.evidence)
    rule = f"{finding.severity}: {finding.code} {finding.name}"
    return (
        f"{rule}: {inert(finding.where)}: {inert(finding.message)}{causes} | evidence: {proof} | "
        f"fix: {inert(finding.fix)}"
    )


def comparison_lines(report: Report) -> list[str]:
    """What differs from the good run, a line each: what no finding accounts for last, and said to be so."""
    if report.comparison is None:
        return []
    comparison = report.comparison
    lines = [
        f"against {inert(comparison.against)}: {_many(len(comparison.new), 'finding')} new, {len(comparison.fixed)} "
        f"fixed, {len(comparison.unchanged)} unchanged; {_many(len(comparison.differences), 'difference')}, "
        f"{len(comparison.unexplained)} unexplained"
    ]
    lines += [f"fixed: {one.code} {one.name}: {inert(one.where)}" for one in comparison.fixed]
    for one in sorted(comparison.differences, key=lambda one: not one.explained_by):
        why = f"explained by {', '.join(one.explained_by)}" if one.explained_by else "unexplained"
        values = f"{number(one.here)} here, {number(one.there)} there"
        lines.append(f"differs: {inert(one.what)}: {values} ({inert(one.why)}) [{why}]")
    return lines


def render_rich(report: Report, *, verbose: bool = False) -> RenderableType:
    """What a terminal shows."""
    return Group(*_parts(report, verbose))


def to_svg(renderable: RenderableType, *, title: str, width: int) -> str:
    """A picture of a terminal that shows `renderable`."""
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(renderable)
    return console.export_svg(title=title)


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


def _evidence_line(evidence: Evidence) -> str:
    expected = f" (expected {number(evidence.expected)})" if evidence.expected is not None else ""
    why = f", {inert(evidence.why)}" if evidence.why else ""
    step = f" at step {evidence.step}" if evidence.step is not None else ""
    source = f" [{inert(evidence.source)}]" if evidence.source else ""
    return f"{inert(evidence.name)} = {number(evidence.value)}{expected}{step}{why}{source}"


def _parts(report: Report, verbose: bool) -> Iterator[RenderableType]:
    yield Text.assemble(("fgclip-doctor ", "bold"), inert(report.subject))
    if report.detected:
        yield Text(
            "parts found: " + ", ".join(f"{role} {inert(name)}" for role, name in report.detected.items()), "dim"
        )
    within = f"{report.subject}/"  # sources are shown from here on
    if report.observations:
        yield Padding(_Proof(report.observations, within if verbose else None), (1, 0, 0, 0))
    for _, same in groupby(report.findings, key=lambda finding: (finding.code, finding.fix, finding.explained_by)):
        yield Padding(_panel(tuple(same), within, verbose), (1, 0, 0, 0))
    yield ""
    for finding, reason in report.suppressed:
        yield Text(f"suppressed: {finding.code} {inert(finding.where)}: {inert(reason)}", "dim")
    for line in report.stale:
        yield Text(f"no longer found, and can leave the baseline: {inert(line)}", "dim")
    for note in report.notes:
        yield Text(f"note: {inert(note)}", "dim")
    for line in comparison_lines(report):
        yield Text(line)
    for code, reason in report.crashed:
        yield Text(f"{code} crashed: {inert(reason)}", "red")
    for problem in report.problems:
        yield Text(f"could not be read: {inert(problem)}", "yellow")
    if verbose:
        for code in report.passed:
            yield Text(f"{code} passed", "green")
        for code, reason in report.skipped:
            yield Text(f"{code} skipped: {inert(reason)}", "dim")
    sound = report.passed and not (report.findings or report.crashed or report.problems)
    style = "green" if sound else "bold"
    yield Text(verdict(report), style)
    folded = any(finding.explained_by for finding in report.findings)
    if not verbose and (folded or report.skipped):
        shows = ["the evidence of symptoms"] * folded + ["what was skipped, and why"] * bool(report.skipped)
        yield Text(f"--verbose shows {' and '.join(shows)}", "dim")


def _panel(same: Sequence[Finding], within: str, verbose: bool) -> RenderableType:
    """Findings of one rule with one fix. Symptoms are folded to their messages: mend their causes first."""
    first = same[0]
    colour = COLOUR[first.severity]
    body: list[RenderableType] = [Text(inert(finding.message)) for finding in same]
    if first.explained_by:
        body.append(Text(f"A symptom: explained by {', '.join(first.explained_by)}.", "italic"))
    if verbose or not first.explained_by:
        body.append(_Proof([evidence for finding in same for evidence in finding.evidence], within))
        if first.fix:
            body.append(Text.assemble(("Fix: ", "bold"), inert(first.fix)))
    title = f"[bold {colour}]{first.severity} {first.code}[/] {escape(first.name)}"
    place = f"[dim]{escape(', '.join(inert(finding.where) for finding in same))}[/]"
    border = "dim" if first.explained_by else colour
    return Panel(
        Group(*body), title=title, subtitle=place, title_align="left", subtitle_align="right", border_style=border
    )


@dataclass(frozen=True, slots=True)
class _Proof:
    """A table of evidence, or on a terminal that is too narrow for one, its lines."""

    evidence: Sequence[Evidence]
    within: str | None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if options.max_width >= NARROW:
            yield _table(self.evidence, self.within)
        else:
            yield from (Text(f"- {_evidence_line(one)}", "dim") for one in self.evidence)


def _table(evidence: Sequence[Evidence], within: str | None) -> Table:
    """Measured beside expected, and why; with `within`, also where it was read, unless that repeats."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("measured", overflow="fold", max_width=32)
    table.add_column("value", justify="right", max_width=36, overflow="fold")
    table.add_column("expected", justify="right", max_width=24)
    table.add_column("why, and where it was read" if within is not None else "why", overflow="fold", style="dim")
    last = ""
    for one in evidence:
        place = [inert(one.why)] if one.why else []
        if within is not None and one.source and one.source != last:
            place.append(inert(one.source.replace(within, "")))
            last = one.source
        expected = number(one.expected) if one.expected is not None else ""
        table.add_row(Text(inert(one.name)), Text(number(one.value)), Text(expected), Text("; ".join(place)))
    return table
