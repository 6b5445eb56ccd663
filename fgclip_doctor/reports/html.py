"""The report as one page that needs nothing else: no network, no script, light and dark, and it prints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from importlib.resources import files

from fgclip_doctor.diagnosis import Comparison, Difference, Report
from fgclip_doctor.findings import Evidence, Finding
from fgclip_doctor.inert import inert
from fgclip_doctor.reports.plots import Picture, pictures
from fgclip_doctor.reports.text import number, verdict
from fgclip_doctor.run import Run

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"  # nothing is fetched, and no script runs
MAX_ROWS = 200  # of one table; of more, the number of those left out is told


def render(report: Report, run: Run, *, version: str) -> str:
    """The same bytes for the same report and run. Everything that comes from the run is escaped."""
    body = "".join(_body(report, list(pictures(run))))
    style = files("fgclip_doctor.reports").joinpath("report.css").read_text("utf-8")
    head = (
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>fgclip-doctor: {text(report.subject)}</title>",
        f"<style>\n{style}</style>",
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n' + "\n".join(head) + f"\n</head>\n<body>\n{body}"
        f'<p class="muted">fgclip-doctor {text(version)}</p>\n</body>\n</html>\n'
    )


def text(value: str) -> str:
    """Text from a run as text of the page, whatever is in it."""
    return escape(inert(value), quote=True)


def _body(report: Report, figures: Sequence[Picture]) -> Iterator[str]:
    yield f"<header><h1>{text(report.subject)}</h1>\n<p class='verdict'>{text(verdict(report))}.</p></header>\n<main>\n"
    causes = [finding for finding in report.findings if not finding.explained_by]
    symptoms = [finding for finding in report.findings if finding.explained_by]
    if causes or symptoms:
        yield "<h2>Findings</h2>\n"
    shown: set[str] = set()
    for finding in causes:
        under = [one for one in symptoms if finding.code in one.explained_by and one.fingerprint not in shown]
        shown |= {one.fingerprint for one in under}
        yield _finding(finding, under)
    for finding in symptoms:
        if finding.fingerprint not in shown:  # explained by another symptom
            yield _finding(finding, ())
    if report.comparison:
        yield from _comparison(report.comparison)
    if report.observations:
        yield f"<h2>What was measured</h2>\n{_evidence(report.observations)}"
    if figures:
        yield "<h2>Pictures</h2>\n"
    for picture in figures:
        yield _figure(picture)
    yield from _rest(report)
    yield "</main>\n"


def _comparison(comparison: Comparison) -> Iterator[str]:
    yield f"<h2>Against {text(comparison.against)}</h2>\n"
    for title, findings in (("New", comparison.new), ("Fixed", comparison.fixed), ("Unchanged", comparison.unchanged)):
        names = ", ".join(f"{one.code} {text(one.name)} (<code>{text(one.where)}</code>)" for one in findings)
        yield f"<p><strong>{title}:</strong> {names or 'none'}.</p>\n"
    ordered = sorted(comparison.differences, key=lambda one: not one.explained_by)
    rows = [(one.what, number(one.here), number(one.there), one.why, _cause(one)) for one in ordered]
    yield _table(("differs", "here", "there", "why it is more than chance", "explained by"), rows)


def _cause(difference: Difference) -> str:
    return ", ".join(difference.explained_by) or "unexplained"


def _finding(finding: Finding, symptoms: Sequence[Finding]) -> str:
    kind = finding.severity.value
    causes = f"<p class='muted'>Explained by {', '.join(finding.explained_by)}.</p>" if finding.explained_by else ""
    folded = ""
    if symptoms:
        count = f"{len(symptoms)} symptom{'' if len(symptoms) == 1 else 's'} that this explains"
        folded = f"<details><summary>{count}</summary>{''.join(_finding(one, ()) for one in symptoms)}</details>"
    fix = f"<p><strong>Fix:</strong> {text(finding.fix)}</p>" if finding.fix else ""
    return (
        f"<article class='{kind}'><h3><span class='badge'>{kind}</span> {finding.code} {text(finding.name)}</h3>\n"
        f"<p>{text(finding.message)}</p>{causes}\n<p class='muted'><code>{text(finding.where)}</code></p>\n"
        f"{_evidence(finding.evidence)}{fix}{folded}</article>\n"
    )


def _evidence(evidence: Sequence[Evidence]) -> str:
    rows = [
        (one.name, number(one.value), "" if one.expected is None else number(one.expected), _why(one))
        for one in evidence
    ]
    return _table(("measured", "value", "expected", "why, and where it was read"), rows)


def _why(one: Evidence) -> str:
    step = f"step {one.step}" if one.step is not None else ""
    return "; ".join(part for part in (one.why, step, one.source) if part)


def _table(columns: Iterable[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th scope='col'>{text(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>\n" for row in rows[:MAX_ROWS])
    more = f"<p class='muted'>… and {len(rows) - MAX_ROWS:,} more rows</p>" if len(rows) > MAX_ROWS else ""
    table = f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>"
    return f"<div class='scroll' tabindex='0'>{table}</div>{more}\n"


def _figure(picture: Picture) -> str:
    label = text(f"{picture.title}. {picture.text}")
    svg = picture.svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    data = (
        f"<details><summary>The data</summary>{_table(picture.columns, picture.rows)}</details>" if picture.rows else ""
    )
    return (
        f"<figure><h3>{text(picture.title)}</h3>\n{svg}\n<figcaption>{text(picture.text)}</figcaption>{data}</figure>\n"
    )


def _rest(report: Report) -> Iterator[str]:
    """What was set aside, not read or not checked: silence is never a pass."""
    lists = {
        "Set aside": [f"{one.code} {one.where}: {reason}" for one, reason in report.suppressed],
        "In the baseline, and no longer found": list(report.stale),
        "Notes": list(report.notes),
        "Could not be read": list(report.problems),
        "Crashed": [f"{code}: {reason}" for code, reason in report.crashed],
    }
    for title, lines in lists.items():
        if lines:
            yield f"<h2>{title}</h2>\n<ul>{''.join(f'<li>{text(line)}</li>' for line in lines)}</ul>\n"
    if report.detected:
        yield f"<h2>Parts found</h2>\n{_table(('role', 'name'), list(report.detected.items()))}"
    if report.skipped:
        skipped = _table(("rule", "what was missing"), report.skipped)
        summary = f"{len(report.skipped)} checks were skipped for want of evidence"
        yield f"<details><summary>{summary}</summary>{skipped}</details>\n"
    if report.passed:
        yield f"<p class='muted'>Passed: {', '.join(report.passed)}.</p>\n"
