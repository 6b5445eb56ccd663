"""A run that goes on, on one screen: loss terms on the yardstick, clocks, bank, scales, gradients and findings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from math import log2

from rich.console import Group, RenderableType
from rich.layout import Layout
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from fgclip_doctor import bank, progress
from fgclip_doctor.diagnosis import Report
from fgclip_doctor.findings import Severity
from fgclip_doctor.inert import inert
from fgclip_doctor.live.follow import Told, step_of
from fgclip_doctor.run import Missing, Run, Series
from fgclip_doctor.terms import Term, terms

BARS = "▁▂▃▄▅▆▇█"
COLOUR = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.INFO: "blue"}
PANES = {"clocks": 25, "state": 28, "gradients": 27}  # columns at 80: so wide is what they hold
MIN_PANE = 5  # lines: its frame, and two or three of what it tells
TALL = 40  # lines, from which on all gradient norms have room
WIDE = 100  # columns, from which on headers are spelt out
RECENT = 8  # values that "now" is the mean of


def screen(
    run: Run | None, report: Report | None, told: Sequence[Told], *, state: str, width: int, height: int
) -> Layout:
    """The panes, for a terminal of `width` columns and `height` lines. `state` is a line of what goes on."""
    rows = list(_loss_rows(run, width)) if run is not None else []
    clocks, held = _clocks(run), _state(run)
    norms = _gradients(run, width * PANES["gradients"] // 80)
    # As high as what they hold, so that the last clock is there on 24 lines; findings take what is left.
    middle = max(MIN_PANE, min(2 + max(clocks.row_count, held.row_count), height - 1 - 2 * MIN_PANE))
    if height >= TALL:
        middle = max(middle, 2 + norms.row_count)
    left = height - 1 - middle
    losses = min(3 + max(1, len(rows)), max(left // 2, left - 3 - 2 * max(1, len(told))))
    layout = Layout()
    layout.split_column(
        Layout(_head(run, state), name="head", size=1),
        Layout(_losses(rows, width), name="losses", size=losses),
        Layout(name="middle", size=middle),
        Layout(_findings(told, report), name="findings"),
    )
    layout["middle"].split_row(
        Layout(_pane("clocks", clocks), name="clocks", ratio=PANES["clocks"]),
        Layout(_pane("bank and scales", held), name="state", ratio=PANES["state"]),
        Layout(_pane("gradient norms", norms), name="gradients", ratio=PANES["gradients"]),
    )
    return layout


def sparkline(values: Sequence[float], width: int) -> str:
    """The course of the values in `width` characters, each the mean of its share; a gap where nothing is finite."""
    if not len(values) or width < 1:
        return ""
    count = min(width, len(values))
    parts = [values[i * len(values) // count : (i + 1) * len(values) // count] for i in range(count)]
    means = [sum(kept) / len(kept) if (kept := [v for v in part if math.isfinite(v)]) else None for part in parts]
    known = [mean for mean in means if mean is not None]
    if not known:
        return " " * count
    low, span = min(known), max(known) - min(known)
    places = [None if m is None else int((m - low) / span * (len(BARS) - 1)) if span else 0 for m in means]
    return "".join(" " if place is None else BARS[place] for place in places)


def _pane(title: str, body: RenderableType) -> Panel:
    return Panel(body, title=title, title_align="left", border_style="dim", padding=(0, 1))


def _head(run: Run | None, state: str) -> Text:
    step = f"step {step_of(run):,}  " if run is not None else ""
    return Text.assemble(("fgclip-doctor ", "bold"), f"{step}{inert(state)}", overflow="ellipsis", no_wrap=True)


def _losses(rows: Sequence[tuple[str, ...]], width: int) -> Panel:
    table = Table(box=None, expand=True, pad_edge=False, header_style="dim")
    table.add_column("loss", no_wrap=True)
    for name in ("now", "N", "null level", "bits"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("loss over the run", "bits over the run") if width >= WIDE else ("in time", "of bits"):
        table.add_column(name, ratio=1, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return _pane("losses on their yardstick", table)


def _loss_rows(run: Run, width: int) -> Iterator[tuple[str, ...]]:
    room, longest = max(4, (width - 60) // 3), max(14, width // 4)
    try:
        for term in islice((one for one in terms(run) if isinstance(one, Term)), 8):
            learnt = progress.learnt(run, term)
            values = term.series.values.tolist()
            known = term.scale is not None and not term.sigmoid
            null = f"{term.null.level:.2f}±{term.null.noise:.2f}" if known else f"over {term.chance:.2f}"
            name = inert(term.name)
            yield (
                _end_of(name, longest),
                f"{_mean(values):.3f}",
                f"{term.candidates:.4g}",
                null,
                f"{max(_mean(learnt.bits.tolist()), 0.0):.2f} of {log2(term.candidates):.1f}",
                sparkline(values, room),
                sparkline(learnt.bits.tolist(), room),
            )
    except Missing as missing:
        yield (inert(str(missing)), "", "", "", "", "", "")


def _end_of(name: str, longest: int) -> str:
    """The end tells lines of a program apart."""
    return name if len(name) <= longest else f"…{name[1 - longest :]}"


def _ends_of(name: str, longest: int) -> str:
    """The beginning tells towers apart, the end their layers."""
    return name if len(name) <= longest else name[: longest // 3] + _end_of(name, longest - longest // 3)


def _mean(values: Sequence[float]) -> float:
    recent = [value for value in values[-RECENT:] if math.isfinite(value)]
    return sum(recent) / len(recent) if recent else math.nan


def _clocks(run: Run | None) -> Table:
    table = _pairs()
    if run is None:
        return table
    clocks = run.recording.first.clocks if run.recording else {}
    for name in ("steps", "forwards"):
        if name in clocks:
            table.add_row(name, f"{clocks[name]:,}")
    if clocks.get("steps"):
        expected = run.facts.get("accumulation")
        meant = f" (of {expected.value})" if expected else ""
        table.add_row("per step", f"{clocks.get('forwards', 0) / clocks['steps']:.3g}{inert(meant)}")
    seconds, elapsed = _last(run, "watching/seconds"), _last(run, "watching/elapsed")
    if seconds is not None and elapsed:
        table.add_row("watching", f"{100 * seconds / elapsed:.2f} %")
    for name in ("skipped", "scheduler_steps", "zero_grads", "backwards"):
        if clocks.get(name):
            table.add_row(name.removesuffix("_steps").replace("_", " "), f"{clocks[name]:,}")
    return table


def _state(run: Run | None) -> Table:
    table = _pairs()
    if run is None:
        return table
    try:
        found = bank.memory_bank(run)
        filled = "?" if found.written is None else f"{found.written:,}"
        on = {True: ", on", False: ", off", None: ""}[found.enabled]
        table.add_row("bank", f"{filled} of {found.size:,}{on}")
        if found.pointer is not None:
            table.add_row("pointer", f"{found.pointer:,}")
    except Missing:
        table.add_row("bank", "none found")
    joined = run.recording.first.joined if run.recording else None
    if joined is not None:
        table.add_row("active", f"since step {joined.step:,}")
    for event in run.events[-3:]:
        table.add_row(inert(event.kind), f"step {event.step:,}")
    try:
        for scale in run.scales():
            table.add_row(
                scale.role.removeprefix("scale."), f"{scale.last:.3f} (exp {math.exp(min(scale.last, 50)):.3g})"
            )
    except Missing:
        pass  # a log alone: there is nothing to show, and the checks say what they miss
    rate = _last(run, "learning_rate")
    if rate is not None:
        table.add_row("lr", f"{rate:.3g}")
    return table


def _gradients(run: Run | None, width: int) -> Table:
    table = _pairs()
    if run is None:
        return table
    prefix = "gradient norm/"
    norms = {
        name.removeprefix(prefix): float(one.values[-1]) for name, one in run.series.items() if name.startswith(prefix)
    }
    largest = max(norms.values(), default=0.0)
    for name, norm in islice(sorted(norms.items(), key=lambda item: -item[1]), 12):
        room = max(0, width - 34)
        bar = "█" * round(room * norm / largest) if math.isfinite(norm) and largest else ""
        table.add_row(_ends_of(inert(name), max(8, width - 14 - room)), f"{norm:.1e} {bar}".rstrip())
    whole = _last(run, "grad_norm")
    if whole is not None and not norms:
        table.add_row("all", f"{whole:.3g}")
    return table


def _findings(told: Sequence[Told], report: Report | None) -> Panel:
    lines: list[RenderableType] = []
    for one in sorted(told, key=lambda one: (bool(one.finding.explained_by), one.finding.severity.rank)):
        finding = one.finding
        lines.append(
            Text.assemble(
                (f"{finding.severity} {finding.code} ", COLOUR[finding.severity]),
                (f"step {one.step:,} ", "dim"),
                inert(finding.message),
                overflow="ellipsis",
            )
        )
    if not lines:
        passed = (
            f"nothing found; {len(report.passed)} checks passed so far" if report else "waiting for the first records"
        )
        lines.append(Text(passed, "dim"))
    return _pane("findings", Group(*lines))


def _pairs() -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, expand=True)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(justify="left", overflow="ellipsis", no_wrap=True, ratio=1)
    return table


def _last(run: Run, name: str) -> float | None:
    series: Series | None = run.series.get(name)
    return float(series.values[-1]) if series is not None and len(series.values) else None
