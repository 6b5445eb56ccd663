"""The report as one page that needs nothing else: no network, no script, light and dark, and it prints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from importlib.resources import files
from itertools import groupby

from fgclip_doctor.diagnosis import Comparison, Difference, Report
from fgclip_doctor.findings import Evidence, Finding, Severity
from fgclip_doctor.inert import inert
from fgclip_doctor.reports.plots import Picture, pictures
from fgclip_doctor.reports.text import by_rule, comparison_verdict, number, verdict
from fgclip_doctor.run import Run

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"  # nothing is fetched, and no script runs
MAX_ROWS = 200  # of one table; of more, the number of those left out is told
Cell = str | tuple[str, str]  # a text, and what stands smaller under it


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
    yield (
        f"<header><h1>{text(report.subject)}</h1>\n<p class='verdict'>{text(verdict(report))}.</p>\n"
        f"{_first(report.findings)}</header>\n<main>\n"
    )
    within = tuple(f"{subject}/" for subject in report.subject.split(", "))
    yield from _findings(report.findings, within)
    if report.comparison:
        yield from _comparison(report.comparison)
    if report.observations:
        yield f"<h2>What was measured</h2>\n{_evidence(report.observations, within)}"
    if figures:
        yield "<h2>Pictures</h2>\n"
    for picture in figures:
        yield _figure(picture, within)
    yield from _rest(report)
    yield "</main>\n"


def _first(findings: Sequence[Finding]) -> str:
    """What to mend first, and why that."""
    if not findings or findings[0].severity is Severity.INFO:
        return ""
    under = len(list(_explained(findings[0].code, [one for one in findings if one.explained_by])))
    more = f", which explains {under} of the others" if under else ""
    return f"<p>Mend <strong>{findings[0].code} {text(findings[0].name)}</strong> first{more}.</p>\n"


def _findings(findings: Sequence[Finding], within: Sequence[str]) -> Iterator[str]:
    """The causes in a list that leads to their cards, then the cards, with the symptoms of each folded into it."""
    if not findings:
        return
    yield "<h2>Findings</h2>\n"
    symptoms = [finding for finding in findings if finding.explained_by]
    shown: set[str] = set()
    links: list[str] = []
    cards: list[str] = []
    for same in _alike(finding for finding in findings if not finding.explained_by):
        under = [one for one in _explained(same[0].code, symptoms) if one.fingerprint not in shown]
        shown |= {one.fingerprint for one in under}
        name = f"cause-{len(links) + 1}"
        kind = same[0].severity.value
        counts = [_many(len(same), "place")] * (len(same) > 1) + [_many(len(under), "symptom")] * bool(under)
        more = f" <span class='muted'>({', '.join(counts)})</span>" if counts else ""
        rule = f"{same[0].code} {text(same[0].name)}"
        links.append(f"<li class='{kind}'><span class='badge'>{kind}</span> <a href='#{name}'>{rule}</a>{more}</li>\n")
        cards.append(_card(same, under, within, name=name))
    if len(links) > 1:
        yield f"<ol class='causes'>{''.join(links)}</ol>\n"
    yield from cards
    for same in _alike(one for one in symptoms if one.fingerprint not in shown):  # which explain each other
        yield _card(same, (), within)


def _explained(code: str, symptoms: Sequence[Finding]) -> Iterator[Finding]:
    """The symptoms of a cause, and theirs; each stands behind what explains it."""
    codes = {code}
    for one in symptoms:
        if codes.intersection(one.explained_by):
            codes.add(one.code)
            yield one


def _alike(findings: Iterable[Finding]) -> Iterator[tuple[Finding, ...]]:
    """Findings of one rule with one fix, which follow each other, as one."""
    for _, same in groupby(findings, key=lambda one: (one.code, one.fix, one.explained_by)):
        yield tuple(same)


def _card(same: Sequence[Finding], symptoms: Sequence[Finding], within: Sequence[str], *, name: str = "") -> str:
    first = same[0]
    kind = first.severity.value
    place = f" id='{name}'" if name else ""
    told = "".join(f"<p>{_told(one, within)}</p>\n" for one in same)
    causes = f"<p class='muted'>Explained by {', '.join(first.explained_by)}.</p>\n" if first.explained_by else ""
    fix = f"<p><strong>Fix:</strong> {text(first.fix)}</p>" if first.fix else ""
    folded = ""
    if symptoms:
        inner = "".join(_card(one, (), within) for one in _alike(symptoms))
        folded = f"<details><summary>{_many(len(symptoms), 'symptom')} that this explains</summary>{inner}</details>"
    return (
        f"<article class='{kind}'{place}>"
        f"<h3><span class='badge'>{kind}</span> {first.code} {text(first.name)}</h3>\n"
        f"{told}{causes}{_evidence([one for finding in same for one in finding.evidence], within)}{fix}{folded}"
        "</article>\n"
    )


def _told(finding: Finding, within: Sequence[str]) -> str:
    where = _short(finding.where, within)
    place = "" if where in finding.message else f" <code class='muted'>{text(where)}</code>"
    return text(_short(finding.message, within)) + place


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _short(value: str, within: Sequence[str]) -> str:
    """`value` with the files of what is judged named from there on."""
    for directory in within:
        value = value.replace(directory, "")
    return value


def _comparison(comparison: Comparison) -> Iterator[str]:
    told = comparison_verdict(comparison)
    yield f"<h2>Against {text(comparison.against)}</h2>\n<p>{text(told[0].upper() + told[1:])}.</p>\n"
    for title, findings in (("New", comparison.new), ("Fixed", comparison.fixed), ("Unchanged", comparison.unchanged)):
        rules = [f"<li>{_places(rule, places)}</li>" for rule, places in by_rule(findings).items()]
        yield f"<h3>{title}</h3>\n<ul>{''.join(rules)}</ul>\n" if rules else f"<h3>{title}: none</h3>\n"
    ordered = sorted(comparison.differences, key=lambda one: not one.explained_by)
    rows = [((one.what, one.why), number(one.here), number(one.there), _cause(one)) for one in ordered]
    if rows:
        yield _table(("differs, and why it is more than chance", "here", "there", "explained by"), rows, "versus")
    else:
        yield "<p>Nothing differs by more than chance.</p>\n"


def _places(rule: str, places: Sequence[str]) -> str:
    return f"{text(rule)} {', '.join(f'<code>{text(place)}</code>' for place in places)}"


def _cause(difference: Difference) -> str:
    return ", ".join(difference.explained_by) or "unexplained"


def _evidence(evidence: Sequence[Evidence], within: Sequence[str]) -> str:
    """A table, in which a file is named once in a row of values that were read from it."""
    rows: list[tuple[Cell, ...]] = []
    last = ""
    for one in evidence:
        expected = "" if one.expected is None else number(one.expected)
        step = f"step {one.step}" if one.step is not None else ""
        source = "" if one.source == last else _short(one.source, within)
        last = one.source
        why = "; ".join(part for part in (_short(one.why, within), step) if part)
        rows.append((one.name, number(one.value), expected, (why, source)))
    return _table(("measured", "value", "expected", "why, and where it was read"), rows, "proof")


def _table(columns: Iterable[str], rows: Sequence[Sequence[Cell]], kind: str = "") -> str:
    """On a narrow screen the rows of a table of a `kind` are folded by report.css; others scroll in a box."""
    head = "".join(f"<th scope='col'>{text(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>\n" for row in rows[:MAX_ROWS])
    more = f"<p class='muted'>… and {len(rows) - MAX_ROWS:,} more rows</p>" if len(rows) > MAX_ROWS else ""
    named = f" class='{kind}'" if kind else ""
    table = f"<table{named}><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>"
    return f"{table if kind else _scrolling(table, 'a table')}{more}\n"


def _cell(cell: Cell) -> str:
    first, second = cell if isinstance(cell, tuple) else (cell, "")
    return f"<td>{text(first)}{f'<small>{text(second)}</small>' if second else ''}</td>"


def _scrolling(content: str, name: str) -> str:
    return f"<div class='scroll' role='region' aria-label='{name}' tabindex='0'>{content}</div>"


def _figure(picture: Picture, within: Sequence[str]) -> str:
    told = _short(picture.text, within)
    label = text(f"{picture.title}. {told}")
    svg = picture.svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    data = (
        f"<details><summary>The data</summary>{_table(picture.columns, picture.rows)}</details>" if picture.rows else ""
    )
    return (
        f"<figure><h3>{text(picture.title)}</h3>\n{_scrolling(svg, 'a picture')}\n"
        f"<figcaption>{text(told)}</figcaption>{data}</figure>\n"
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
