"""The gauntlet's outcome as Markdown, for `docs/gauntlet.md`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.gauntlet.cases import Fault, Sound
from tests.gauntlet.gauntlet import Judged, Outcome
from tests.gauntlet.views import View

DOCUMENT = Path(__file__).parents[2] / "docs" / "gauntlet.md"
BEGIN, END = "<!-- gauntlet: begin (make gauntlet) -->\n", "<!-- gauntlet: end -->"


def summary(outcomes: Sequence[Outcome]) -> list[str]:
    """The counts that the project answers for."""
    faults = [one for one in outcomes if isinstance(one.case, Fault)]
    sound = [one for one in outcomes if isinstance(one.case, Sound)]
    audits = sum(len(one.heard) for one in sound)
    lines = [
        "| evidence | faults that it shows | found | ranked first |",
        "|---|---|---|---|",
        *(_counts(str(view), [j for one in faults for j in one.judged if j.view is view]) for view in View),
        _counts("all", [j for one in faults for j in one.judged]),
        "",
        f"Sound runs: {len(sound)}, audited {audits} times; runs with a finding at warning or above: "
        f"{sum(bool(one.false_alarms) for one in sound)}.",
    ]
    failed = [one for one in outcomes if one.error or one.troubles]
    return [*lines, *([f"Cases that failed or had a check crash: {len(failed)}."] if failed else [])]


def _counts(title: str, judged: Sequence[Judged]) -> str:
    shown = [one for one in judged if one.expected]
    found, first = sum(one.found for one in shown), sum(one.first for one in shown)
    return f"| {title} | {len(shown)} | {_share(found, len(shown))} | {_share(first, len(shown))} |"


def _share(count: int, of: int) -> str:
    return f"{count} ({count / of:.0%})" if of else "-"


def faults_table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    yield f"| planted fault | {' | '.join(View)} | said besides |"
    yield "|---|" + "---|" * (len(View) + 1)
    for one in outcomes:
        if isinstance(one.case, Fault):
            cells = {judged.view: _cell(judged) for judged in one.judged}
            extra = sorted({code for judged in one.judged for code in judged.beside})
            shown = [cells.get(view, "failed" if one.error else "") for view in View]
            yield f"| {one.case.name} | {' | '.join(shown)} | {', '.join(extra)} |"


def _cell(judged: Judged) -> str:
    if not judged.expected:
        return "-"
    if not judged.found:
        return f"**missed** ({' or '.join(judged.expected)})"
    finding = next(one for one in judged.heard.findings if one.code in judged.expected)
    return finding.code if judged.first else f"{finding.code}, not first"


def hidden_table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    yield "| planted fault | evidence | why it can't be seen there |"
    yield "|---|---|---|"
    for one in outcomes:
        if isinstance(one.case, Fault):
            reasons: dict[str, list[str]] = {}
            for judged in one.judged:
                if judged.hidden:
                    reasons.setdefault(judged.hidden, []).append(judged.view)
            for reason, views in reasons.items():
                yield f"| {one.case.name} | {', '.join(views)} | {reason} |"


def sound_table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    yield "| sound run | audits | findings at warning or above |"
    yield "|---|---|---|"
    for one in outcomes:
        if isinstance(one.case, Sound):
            alarms = sorted({f"{alarm.code} ({view})" for view, alarm in one.false_alarms})
            yield f"| {one.case.name} | {len(one.heard)} | {'failed' if one.error else ', '.join(alarms) or 'none'} |"


def markdown(outcomes: Sequence[Outcome]) -> str:
    """All of it."""
    parts = (summary(outcomes), ["## Faults"], faults_table(outcomes))
    parts += (["## What can't be seen"], hidden_table(outcomes), ["## Sound runs"], sound_table(outcomes))
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def updated(text: str, outcomes: Sequence[Outcome]) -> str:
    """`text` with what stands between the two markers renewed."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not rest:
        raise SystemExit(f"{DOCUMENT.name} has lost its markers")
    return before + BEGIN + markdown(outcomes) + END + after
