"""``fgclip-doctor demo``: the run of the case study in small, audited; then corrected, and audited again."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from fgclip_doctor.comparison import compare
from fgclip_doctor.diagnosis import Report, diagnose
from fgclip_doctor.findings import Evidence, Finding
from fgclip_doctor.registry import Check
from fgclip_doctor.reports import terminal
from fgclip_doctor.reports.text import number
from fgclip_doctor.sources import load

SIDE_BY_SIDE = 200  # columns: below, two reports beside each other can't be read


def demo(directory: Path, checks: Sequence[Check], console: Console) -> None:
    """Train both runs below `directory`, audit the last checkpoint of each, and compare the runs."""
    from fgclip_doctor.training import case_study  # torch: only for those who train

    with _progress(console) as stage:
        base = case_study.base(directory / "base", on_step=stage("pretraining a small CLIP"))
        before = case_study.as_reported(base, directory / "as-reported", on_step=stage("the run as it was reported"))
        after = case_study.corrected(base, directory / "corrected", on_step=stage("the corrected run"))
    reports = [diagnose(load([_last_checkpoint(run)]), checks) for run in (before, after)]
    console.print(side_by_side(*reports, width=console.width))
    runs = [load([run], base=base) for run in (before, after)]
    fuller, good = (diagnose(run, checks) for run in runs)
    console.print("", Text(" what the whole run and --base add ", "bold reverse"))
    only = replace(fuller, findings=added(reports[0], fuller), detected={}, observations=())
    console.print(terminal.render(only))
    console.print("", Text(" what changed, by --against ", "bold reverse"))
    compared = compare(runs[1], good, runs[0], fuller)
    console.print(terminal.comparison(compared, here="corrected", there="as it was reported"))
    words = (str(after), "--against", str(before), "--base", str(base), "--format", "html", "-o", "corrected.html")
    console.print(f"\nThe runs are kept: try [bold]fgclip-doctor audit {escape(shlex.join(words))}[/]")


def added(report: Report, fuller: Report) -> tuple[Finding, ...]:
    """The findings of `fuller` by rules that found nothing in `report`."""
    known = {finding.code for finding in report.findings}
    return tuple(finding for finding in fuller.findings if finding.code not in known)


def side_by_side(before: Report, after: Report, *, width: int) -> RenderableType:
    """Both reports, and what was measured in each."""
    titled = [
        Group(Text(title, "bold reverse"), terminal.render(report))
        for title, report in ((" as it was reported ", before), (" corrected ", after))
    ]
    wide = width >= SIDE_BY_SIDE
    reports = Columns(titled, width=width // 2 - 2, padding=(0, 2)) if wide else Group(titled[0], "", titled[1])
    return Group(reports, "", Text(" before and after ", "bold reverse"), measured(before, after))


def measured(before: Report, after: Report) -> Table:
    """One row for each thing that was measured in either."""
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for heading in ("measured", "as it was reported", "corrected"):
        table.add_column(heading, overflow="fold")
    for name in dict.fromkeys(one.name for report in (before, after) for one in report.observations):
        table.add_row(name, *(_observed(report.observations, name) for report in (before, after)))
    return table


def _observed(observations: Sequence[Evidence], name: str) -> Text:
    return Text(next((number(one.value) for one in observations if one.name == name), "-"))


def _last_checkpoint(run: Path) -> Path:
    return max(run.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """Yields a maker of bars: for a description, the callback (steps done, of how many) that moves its bar."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:

        def stage(description: str) -> Callable[[int, int], None]:
            task = progress.add_task(description, total=None)
            return lambda done, steps: progress.update(task, completed=done, total=steps)

        yield stage
