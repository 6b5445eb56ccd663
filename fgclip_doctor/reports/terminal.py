"""The report on a terminal: boxes and colour."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.markup import escape
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from fgclip_doctor.diagnosis import Comparison, Report
from fgclip_doctor.findings import Evidence, Finding, Severity
from fgclip_doctor.inert import inert
from fgclip_doctor.reports.text import by_rule, comparison_verdict, evidence_line, number, verdict

NARROW = 60  # columns, under which a table of four would break every word
COLOUR = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.INFO: "blue"}


def render(report: Report, *, verbose: bool = False) -> RenderableType:
    """What a terminal shows."""
    return Group(*_parts(report, verbose))


def comparison(compared: Comparison, *, here: str = "here", there: str = "there") -> RenderableType:
    """What was mended, what is new, and what differs, with the columns of both runs called as is said."""
    parts: list[RenderableType] = [Text(comparison_verdict(compared), "bold")]
    for title, colour, findings in (("fixed", "green", compared.fixed), ("new", "red", compared.new)):
        for rule, places in by_rule(findings).items():
            parts.append(Text.assemble((f"{title} ", colour), f"{rule}: {', '.join(map(inert, places))}"))
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for heading in ("differs", there, here, "explained by"):
        table.add_column(heading, overflow="fold")
    for one in sorted(compared.differences, key=lambda one: not one.explained_by):
        causes = Text(", ".join(one.explained_by)) if one.explained_by else Text("unexplained", "dim")
        table.add_row(Text(inert(one.what)), Text(number(one.there)), Text(number(one.here)), causes)
    return Group(*parts, table) if compared.differences else Group(*parts)


def to_svg(renderable: RenderableType, *, title: str, width: int) -> str:
    """A picture of a terminal that shows `renderable`."""
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(renderable)
    return console.export_svg(title=title)


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
    if report.comparison:
        yield comparison(report.comparison)
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
            yield from (Text(f"- {evidence_line(one)}", "dim") for one in self.evidence)


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
