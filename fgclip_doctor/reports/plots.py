"""The pictures of a run, as SVG that takes its colours from the page around it, each with a text and its data."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fgclip_doctor import bank, events, progress, theory
from fgclip_doctor.run import Missing, Run, Series
from fgclip_doctor.terms import Term, terms

POINTS = 600  # of one line: of more, each stretch keeps its least and its largest value, so that no spike is lost
PARTS = 40  # rows of a heat map
MARKS = 12  # events in one picture
ROWS = 64  # of a bank, in the picture of their similarities
COLOURS = {  # what matplotlib draws with, and what the page puts in its place
    "#010203": "var(--ink)",
    "#040506": "var(--muted)",
    "#070809": "var(--one)",
    "#0a0b0c": "var(--two)",
    "#0d0e0f": "var(--band)",
    "#101112": "var(--mark)",
}
INK, MUTED, ONE, TWO, BAND, MARK = COLOURS


@dataclass(frozen=True, slots=True)
class Picture:
    """One figure: its SVG, what it shows in words, and its data as a table."""

    title: str
    svg: str
    text: str
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


def pictures(run: Run) -> Iterator[Picture]:
    """Every picture that the evidence allows, in reading order."""
    for draw in (_losses, _sites, _clocks, _scales, _gradients, _bank, _changes):
        try:
            yield from draw(run)
        except Missing:
            continue  # there is nothing to draw; the checks say what they miss


def thinned(steps: NDArray[Any], values: NDArray[Any], most: int = POINTS) -> tuple[NDArray[Any], NDArray[Any]]:
    """At most `most` points: of each stretch its least and its largest value, in their order."""
    if len(values) <= most:
        return steps, values
    edges = np.linspace(0, len(values), most // 2 + 1).astype(int)
    kept: list[int] = []
    for start, end in pairwise(edges.tolist()):
        part = np.nan_to_num(values[start:end], nan=-math.inf)
        kept += sorted({start + int(part.argmin()), start + int(part.argmax())})
    return steps[kept], values[kept]


def _losses(run: Run) -> Iterator[Picture]:
    for term in terms(run):
        if isinstance(term, Missing):
            continue
        try:
            yield _loss(run, term)
        except Missing:
            continue


def _loss(run: Run, term: Term) -> Picture:
    steps, values = thinned(term.series.steps, term.series.values)
    candidates = progress.candidates_at(run, term, steps)
    figure, (above, below) = _figure(2)
    levels, noises = _nulls(term, candidates)
    if levels is not None and noises is not None:
        above.fill_between(steps, levels - noises, levels + noises, color=BAND, linewidth=0, step="mid")
        above.plot(steps, levels, color=MUTED, linestyle="--", drawstyle="steps-mid", label="null level and noise")
    chance = np.array([term.chance_at(max(float(one), 1.0)) for one in candidates])
    above.plot(steps, chance, color=MUTED, linestyle=":", drawstyle="steps-mid", label="ln N")
    above.plot(steps, values, color=ONE, label=f"{term.name} loss")
    above.set_ylabel("loss (nats)")
    _legend(above)
    learnt = progress.learnt(run, term)
    below.fill_between(learnt.steps, learnt.low, learnt.high, color=BAND, linewidth=0)
    below.plot(learnt.steps, learnt.bits, color=TWO)
    below.axhline(0, color=MUTED, linewidth=0.8)
    below.set_ylabel("bits learnt, at least")
    below.set_xlabel("optimizer step")
    _mark(run, above, below)
    last = float(learnt.bits[-1])
    text = (
        f"The {term.name} loss goes from {values[0]:.3g} to {values[-1]:.3g} over {steps[-1] - steps[0]:,} steps. With "
        f"{term.candidates:.4g} candidates its chance level is {term.chance:.3g}: {last:.2f} bits are learnt, at least."
    )
    rows = tuple(
        (f"{step}", f"{bits:.3f}", f"{low:.3f} to {high:.3f}")
        for step, bits, low, high in zip(learnt.steps, learnt.bits, learnt.low, learnt.high, strict=True)
    )
    return Picture(f"The {term.name} loss on its yardstick", _svg(figure), text, ("step", "bits", "two errors"), rows)


def _nulls(term: Term, candidates: NDArray[Any]) -> tuple[NDArray[Any] | None, NDArray[Any] | None]:
    """Level and noise of the logged values, at each count of candidates; None where no scale is known."""
    counts, which = np.unique(np.round(candidates, 1), return_inverse=True)
    try:
        nulls = [term.null_at(candidates=max(float(count), 2.0)) for count in counts[:64]]
    except Missing:
        return None, None
    if len(counts) > len(nulls):
        return None, None
    averaged = math.sqrt(max(term.accumulation, 1))
    return np.array([one.level for one in nulls])[which], np.array([one.noise / averaged for one in nulls])[which]


def _sites(run: Run) -> Iterator[Picture]:
    """Losses as they were seen where they are computed, with the null level of the very same logits."""
    for site in run.watched.first.sites:
        if site.targets == "other" or len(site.loss) < 2:
            continue
        figure, (above, below) = _figure(2)
        for values, colour, label in ((site.null, MUTED, "null level of these logits"), (site.loss, ONE, "loss")):
            above.plot(*thinned(site.forwards, values), color=colour, label=label)
        above.set_ylabel("loss (nats)")
        _legend(above)
        bits = (site.null - site.loss) / theory.LN2
        below.plot(*thinned(site.forwards, bits), color=TWO)
        below.axhline(0, color=MUTED, linewidth=0.8)
        below.set_ylabel("bits learnt")
        below.set_xlabel("forward")
        text = (
            f"At {site.name}: {int(site.anchors[-1])} anchors, {int(site.candidates[-1])} candidates, and "
            f"{float(np.nanmean(bits[-32:])):.2f} bits learnt in the last calls that were looked at."
        )
        yield Picture(f"The loss at {site.name}", _svg(figure), text)


def _clocks(run: Run) -> Iterator[Picture]:
    """The learning rate over optimizer steps, with what happened."""
    rates = events.learning_rate(run)
    if rates is None:
        return
    figure, (axes,) = _figure(1)
    axes.plot(*thinned(rates.steps, rates.values), color=ONE)
    axes.set_ylabel("learning rate")
    axes.set_xlabel("optimizer step")
    _mark(run, axes)
    peak = float(np.nanmax(rates.values))
    text = (
        f"The learning rate peaks at {peak:.3g} and is {float(rates.values[-1]):.3g} at step {int(rates.steps[-1]):,}."
    )
    yield Picture("Learning rate and events", _svg(figure), text, ("step", "event"), _told(run))


def _scales(run: Run) -> Iterator[Picture]:
    lines: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {
        series.name: events.log_scale(series) for series in events.scales(run) if len(series.values)
    }
    if not lines:
        return
    figure, (axes,) = _figure(1)
    for number, (name, (steps, values)) in enumerate(lines.items()):
        axes.plot(*thinned(steps, values), color=(ONE, TWO, INK)[number % 3], label=_plain(name))
    for level, label in ((math.log(100), "cap ln 100"), (math.log(1 / 0.07), "start from scratch")):
        axes.axhline(level, color=MUTED, linestyle=":", linewidth=0.8)
        axes.annotate(label, (0, level), xycoords=("axes fraction", "data"), color=MUTED, fontsize=8, va="bottom")
    axes.set_ylabel("logit_scale (log space)")
    axes.set_xlabel("optimizer step")
    _legend(axes)
    ends = "; ".join(f"{_plain(name)} {values[0]:.4f} to {values[-1]:.4f}" for name, (_, values) in lines.items())
    yield Picture("Logit scales", _svg(figure), f"In log space: {ends}.")


def _gradients(run: Run) -> Iterator[Picture]:
    """The scale of gradients by module: as recorded over time, else from Adam's second moments."""
    prefix = "gradient norm/"
    recorded = {name.removeprefix(prefix): one for name, one in run.series.items() if name.startswith(prefix)}
    if recorded:
        yield _heat(recorded)
        return
    scales = dict(_second_moments(run))
    if not scales:
        return
    parts = sorted(scales, key=_in_order)[:PARTS]
    values = [scales[part] for part in parts]
    figure, (axes,) = _figure(1, height=max(1.6, 0.18 * len(parts) + 0.6))
    axes.barh([_plain(part) for part in parts], [max(value, 1e-30) for value in values], color=ONE)
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.set_xlabel("root mean square of the gradient, from Adam's second moment")
    dead = [part for part in parts if scales[part] == 0]
    text = f"{len(parts)} parts; " + (f"never reached: {', '.join(map(_plain, dead))}." if dead else "all are reached.")
    rows = tuple((_plain(part), f"{scales[part]:.3e}") for part in parts)
    yield Picture("Gradient scale by module", _svg(figure), text, ("module", "gradient RMS"), rows)


def _heat(recorded: Mapping[str, Series]) -> Picture:
    parts = sorted(recorded, key=_in_order)[:PARTS]
    steps = np.unique(np.concatenate([recorded[part].steps for part in parts]))
    columns = np.linspace(0, len(steps) - 1, min(len(steps), 120)).astype(int)
    grid = np.full((len(parts), len(columns)), np.nan)
    for row, part in enumerate(parts):
        places = np.searchsorted(recorded[part].steps, steps[columns], side="right") - 1
        known = recorded[part].values[np.maximum(places, 0)]
        grid[row] = np.where((places >= 0) & (known > 0), np.log10(np.maximum(known, 1e-30)), np.nan)
    figure, (axes,) = _figure(1, height=max(1.6, 0.18 * len(parts) + 0.8))
    image = axes.imshow(grid, aspect="auto", interpolation="nearest", cmap="viridis")
    axes.set_yticks(range(len(parts)), [_plain(part) for part in parts], fontsize=7)
    ticks = np.linspace(0, len(columns) - 1, min(6, len(columns))).astype(int)
    axes.set_xticks(ticks, [f"{steps[columns[tick]]:,}" for tick in ticks])
    axes.set_xlabel("optimizer step")
    bar = figure.colorbar(image, ax=axes)
    bar.set_label("log10 of the gradient norm", color=INK)
    bar.ax.tick_params(colors=INK)
    rows = tuple((_plain(part), f"{float(recorded[part].values[-1]):.3e}") for part in parts)
    return Picture(
        "Gradient norm by module",
        _svg(figure),
        f"{len(parts)} modules over {len(steps)} looks.",
        ("module", "last norm"),
        rows,
    )


def _second_moments(run: Run) -> Iterator[tuple[str, float]]:
    optimizer = run.optimizer
    sums: dict[str, list[float]] = {}
    for index, names in optimizer.names.items():
        state = optimizer.states.get(index)
        if len(names) == 1 and state is not None and state.exp_avg_sq is not None:
            statistics = state.exp_avg_sq.statistics
            if statistics.finite:
                total = sums.setdefault(_part(names[0]), [0.0, 0.0])
                total[0] += max(statistics.mean, 0.0) * statistics.count
                total[1] += statistics.count
    for part, (total_squares, count) in sums.items():
        yield part, math.sqrt(total_squares / count) if count else 0.0


def _bank(run: Run) -> Iterator[Picture]:
    """Cosines of the bank's rows among each other: noise is plain, encoded features have a structure."""
    found = bank.memory_bank(run)
    figure, axes = _figure(1, height=3.2, columns=len(found.keys))
    for place, modality in zip(axes, found.keys, strict=True):
        rows = found.rows(modality)[:: max(1, found.size // ROWS)][:ROWS].astype(np.float64)
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        unit = rows / np.where(norms > 0, norms, 1)
        image = place.imshow(np.nan_to_num(unit @ unit.T), vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
        place.set_title(f"{modality} rows", fontsize=9, color=INK)
    figure.colorbar(image, ax=list(axes), shrink=0.8).ax.tick_params(colors=INK)
    written = "unknown" if found.written is None else f"{found.written:,}"
    text = f"Cosines between up to {ROWS} of {found.size:,} rows of each modality; rows known to be written: {written}."
    yield Picture("Similarity of the bank's rows", _svg(figure), text)


def _changes(run: Run) -> Iterator[Picture]:
    """How far each part moved between the first and the last checkpoint, or from the base."""
    if len(run.checkpoints) > 1:
        before, after = run.checkpoints[0], run.checkpoints[-1]
    elif run.base is not None:
        before, after = run.base, run.checkpoint
    else:
        return
    moved: dict[str, list[float]] = {}
    for name, tensor in after.tensors.items():
        other = before.tensors.get(name)
        if other is None or other.shape != tensor.shape or "float" not in tensor.dtype or tensor.nbytes > 1 << 26:
            continue
        try:
            old, new = other.values().astype(np.float64), tensor.values().astype(np.float64)
        except Missing:
            continue
        sums = moved.setdefault(_part(name), [0.0, 0.0])
        sums[0] += float(np.nansum((new - old) ** 2))
        sums[1] += float(np.nansum(old**2))
    ratios = {part: math.sqrt(change / size) for part, (change, size) in moved.items() if size}
    parts = sorted(ratios, key=_in_order)[:PARTS]
    if not parts:
        return
    figure, (axes,) = _figure(1, height=max(1.6, 0.18 * len(parts) + 0.6))
    axes.barh([_plain(part) for part in parts], [max(ratios[part], 1e-12) for part in parts], color=TWO)
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.set_xlabel("change as a share of the weights' size")
    still = [part for part in parts if ratios[part] == 0]
    text = f"From {before.path} to {after.path}: " + (
        f"unmoved: {', '.join(map(_plain, still))}." if still else "every part moved."
    )
    rows = tuple((_plain(part), f"{ratios[part]:.3e}") for part in parts)
    yield Picture("What changed", _svg(figure), _plain(text), ("module", "relative change"), rows)


# --- how it is drawn -------------------------------------------------------------------------------------------------


def _figure(rows: int, *, height: float = 2.2, columns: int = 1) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(8, height * rows), layout="constrained")
    figure.patch.set_alpha(0)
    axes = list(np.atleast_1d(figure.subplots(rows, columns, sharex=rows > 1)).ravel())
    for one in axes:
        one.patch.set_alpha(0)
        one.tick_params(colors=INK, labelsize=8)
        for spine in one.spines.values():
            spine.set_color(MUTED)
        one.xaxis.label.set_color(INK)
        one.yaxis.label.set_color(INK)
    return figure, axes


def _legend(axes: Any) -> None:
    legend = axes.legend(fontsize=8, frameon=False, loc="best")
    for text in legend.get_texts():
        text.set_color(INK)


def _mark(run: Run, *axes: Any) -> None:
    """Vertical lines where something happened, named in the uppermost picture."""
    for event in events.events(run)[:MARKS]:
        for one in axes:
            one.axvline(event.step, color=MARK, linewidth=0.8)
        place = {"xycoords": ("data", "axes fraction"), "rotation": 90, "va": "top", "ha": "right"}
        axes[0].annotate(_plain(event.kind), (event.step, 1), color=MARK, fontsize=7, **place)


def _told(run: Run) -> tuple[tuple[str, ...], ...]:
    return tuple((f"{event.step}", f"{event.kind}: {event.detail}") for event in events.events(run)[:100])


def _svg(figure: Figure) -> str:
    """The figure without anything that a page doesn't need, and with the page's colours. The same bytes every time."""
    out = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "fgclip-doctor", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    for drawn, meant in COLOURS.items():
        svg = svg.replace(drawn, meant)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", svg))
    mine = sha256(svg.encode()).hexdigest()[:8]  # several pictures share a page, and none may use another's parts

    def own(match: re.Match[str]) -> str:
        return f' id="{mine}-{match[1]}"' if match[1] in used else ""

    svg = re.sub(r' id="([^"]+)"', own, svg)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{mine}-", svg)


def _plain(text: str) -> str:
    """`text` for matplotlib, to which a dollar sign begins mathematics; short enough for an axis."""
    safe = "".join(char if char.isprintable() else "?" for char in text).replace("$", "＄")
    return safe if len(safe) <= 60 else f"{safe[:28]}…{safe[-28:]}"


def _part(name: str) -> str:
    """The layer of a stack that a parameter is of, else its module."""
    words = name.split(".")
    for place, word in enumerate(words):
        if word.isdecimal():
            return ".".join(words[: place + 1])
    return ".".join(words[:-1]) or name


def _in_order(part: str) -> list[tuple[int, str]]:
    """Layers by their number: 2 before 10."""
    return [(int(word), "") if word.isdecimal() else (-1, word) for word in part.split(".")]
