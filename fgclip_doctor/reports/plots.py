"""The pictures of a run, as SVG that takes its colours from the page around it, each with a text and its data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgclip_doctor import bank, events, progress, theory
from fgclip_doctor.reports.drawing import (
    BAND,
    INK,
    LINES,
    MARK,
    MUTED,
    ONE,
    TWO,
    drawing,
    figure_of,
    legend,
    logarithmic,
    plain,
    svg,
)
from fgclip_doctor.run import Missing, Run, Series
from fgclip_doctor.terms import Term, terms

POINTS = 600  # of one line: of more, each stretch keeps its least and its largest value, so that no spike is lost
SMOOTHED = 9  # logged values, over which a count of candidates that changes from batch to batch is shown by its median
ORDER = ("total", "global", "region", "hard")  # of the losses; others follow
FIGURES = 8  # of one kind
PARTS = 40  # rows of a heat map
MARKS = 12  # events in one picture
CLOSE = 0.12  # of the width: events nearer to each other share a label
FAR = 5.0  # times as high as the loss: a null level at which only a logarithmic axis shows both
ROWS = 64  # of a bank, in the picture of their similarities


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
            with drawing():
                drawn = list(islice(draw(run), FIGURES))
        except Missing:
            continue  # there is nothing to draw; the checks say what they miss
        yield from drawn


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
    """Every loss on its yardstick, or as it was logged where the yardstick isn't known."""
    for course in sorted(progress.courses(run), key=lambda one: ORDER.index(one.name) if one.name in ORDER else 9):
        try:
            if course.term is None:
                raise Missing(_unknown(run))
            yield _loss(run, course.term)
        except Missing as missing:
            if len(course.values):
                yield _bare(run, course, str(missing))


def _unknown(run: Run) -> str:
    """Why losses have no yardstick."""
    try:
        return "; ".join(dict.fromkeys(str(one) for one in terms(run) if isinstance(one, Missing)))
    except Missing as missing:
        return str(missing)


def _bare(run: Run, course: progress.Course, reason: str) -> Picture:
    figure, (axes,) = figure_of(1)
    axes.plot(*thinned(course.steps, course.values), color=ONE)
    axes.set_ylabel("loss")
    axes.set_xlabel("optimizer step")
    marked = _mark(run, axes)
    first, last = (f"{course.values[at]:.3g} at step {course.steps[at]:,}" for at in (0, -1))
    text = f"From {first} to {last}. What it means is not known: {reason}.{marked}"
    return Picture(f"The {course.name} loss, without its yardstick", svg(figure), text)


def _loss(run: Run, term: Term) -> Picture:
    steps, values = thinned(term.series.steps, term.series.values)
    candidates = _steady(progress.candidates_at(run, term, steps))
    figure, (above, below) = figure_of(2)
    levels, noises = _nulls(term, candidates)
    if levels is not None and noises is not None:
        above.fill_between(steps, levels - noises, levels + noises, color=BAND, linewidth=0, step="mid")
        above.plot(steps, levels, color=MUTED, linestyle="--", label="null level and noise")
        _show_both(above, values, levels)
    chance = np.array([term.chance_at(max(float(one), 1.0)) for one in candidates])
    above.plot(steps, chance, color=MUTED, linestyle=":", label="chance, ln N")
    above.plot(steps, values, color=ONE, label=f"{term.name} loss")
    above.set_ylabel("loss (nats)")
    learnt = progress.learnt(run, term)
    below.fill_between(learnt.steps, learnt.low, learnt.high, color=BAND, linewidth=0)
    below.plot(learnt.steps, learnt.bits, color=TWO)
    below.axhline(0, color=MUTED, linewidth=0.8)
    below.set_ylabel("bits learnt, at least")
    below.set_xlabel("optimizer step")
    marked = _mark(run, above, below)
    legend(above, above=1.12 if marked else 1.0)  # over the names of the events
    last = max(float(learnt.bits[-1]), 0.0)
    null = (
        f", and that of unaligned features {levels[-1]:.3g} +- {noises[-1]:.2g}"
        if levels is not None and noises is not None
        else ""
    )
    text = (
        f"From {values[0]:.3g} at step {steps[0]:,} to {values[-1]:.3g} at step {steps[-1]:,}. With "
        f"{candidates[-1]:.4g} candidates its chance level is {chance[-1]:.3g}{null}: {last:.2f} bits are learnt, at "
        f"least.{marked}"
    )
    rows = tuple(
        (f"{step}", f"{bits:.3f}", f"{low:.3f} to {high:.3f}")
        for step, bits, low, high in zip(learnt.steps, learnt.bits, learnt.low, learnt.high, strict=True)
    )
    return Picture(f"The {term.name} loss on its yardstick", svg(figure), text, ("step", "bits", "two errors"), rows)


def _steady(candidates: NDArray[Any]) -> NDArray[Any]:
    """A running median, which leaves steps where they are."""
    if len(candidates) <= SMOOTHED:
        return candidates
    padded = np.pad(candidates, SMOOTHED // 2, mode="edge")
    medians: NDArray[Any] = np.median(np.lib.stride_tricks.sliding_window_view(padded, SMOOTHED), axis=1)
    return medians


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
    """Losses as they were seen where they are computed, and that are no known term, with the null of those logits."""
    drawn = {term.name for term in terms(run) if isinstance(term, Term)}
    for site in run.watched.first.sites:
        if site.targets == "other" or len(site.loss) < 2 or site.name in drawn:
            continue
        figure, (above, below) = figure_of(2)
        for values, colour, label in ((site.null, MUTED, "null level of these logits"), (site.loss, ONE, "loss")):
            above.plot(*thinned(site.forwards, values), color=colour, label=label)
        above.set_ylabel("loss (nats)")
        _show_both(above, site.loss, site.null)
        legend(above)
        bits = (site.null - site.loss) / theory.LN2
        below.plot(*thinned(site.forwards, bits), color=TWO)
        below.axhline(0, color=MUTED, linewidth=0.8)
        below.set_ylabel("bits learnt")
        below.set_xlabel("forward")
        text = (
            f"At {site.name}: {int(site.anchors[-1])} anchors, {int(site.candidates[-1])} candidates, and "
            f"{float(np.nanmean(bits[-32:])):.2f} bits learnt in the last calls that were looked at."
        )
        yield Picture(f"The loss at {site.name}", svg(figure), text)


def _clocks(run: Run) -> Iterator[Picture]:
    """The learning rate over optimizer steps, with what happened."""
    rates = events.learning_rate(run)
    if rates is None:
        return
    figure, (axes,) = figure_of(1)
    axes.plot(*thinned(rates.steps, rates.values), color=ONE)
    axes.set_ylabel("learning rate")
    axes.set_xlabel("optimizer step")
    marked = _mark(run, axes)
    peak = float(np.nanmax(rates.values))
    last = f"{float(rates.values[-1]):.3g} at step {int(rates.steps[-1]):,}"
    text = f"The learning rate peaks at {peak:.3g} and is {last}.{marked}"
    yield Picture("Learning rate and events", svg(figure), text, ("step", "event"), _told(run))


def _scales(run: Run) -> Iterator[Picture]:
    lines: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {
        series.name: events.log_scale(series) for series in events.scales(run) if len(series.values)
    } or dict(_saved_scales(run))
    if not lines:
        return
    figure, (axes,) = figure_of(1)
    for number, (name, (steps, values)) in enumerate(islice(lines.items(), len(LINES))):
        colour, style = LINES[number]
        marker = {"marker": "."} if len(values) < 20 else {}
        axes.plot(*thinned(steps, values), color=colour, linestyle=style, label=plain(name), **marker)
    for level, label in ((math.log(100), "cap, ln 100"), (math.log(1 / 0.07), "CLIP's start, ln(1 / 0.07)")):
        axes.axhline(level, color=MUTED, linestyle=":", linewidth=0.8)
        place = {"xycoords": ("axes fraction", "data"), "xytext": (-4, 2), "textcoords": "offset points"}
        axes.annotate(label, (1, level), color=MUTED, fontsize=8, ha="right", **place)
    axes.margins(y=0.15)
    axes.set_ylabel("logit_scale")
    axes.set_xlabel("optimizer step")
    legend(axes)
    ends = "; ".join(f"{name} {values[0]:.4f} to {values[-1]:.4f}" for name, (_, values) in lines.items())
    yield Picture("Logit scales", svg(figure), f"In log space: {ends}.")


def _saved_scales(run: Run) -> Iterator[tuple[str, tuple[NDArray[Any], NDArray[Any]]]]:
    """Where no scale was logged: the scales of each checkpoint."""
    for role, name in run.roles.items():
        if role.startswith("scale."):
            saved = [(one.step, one.tensors[name]) for one in run.checkpoints if name in one.tensors]
            known = [(step, tensor.item()) for step, tensor in saved if step is not None and tensor.size == 1]
            if len(known) > 1:
                steps, values = zip(*known, strict=True)
                yield name, (np.array(steps), np.array(values))


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
    yield _dots(
        "Gradient scale by module",
        scales,
        ("module", "gradient RMS"),
        "root mean square of the gradient, from Adam's second moment",
        none=("never reached", "all are reached"),
    )


def _dots(
    title: str, values: Mapping[str, float], columns: tuple[str, str], label: str, *, none: tuple[str, str]
) -> Picture:
    """A number for each part on a logarithmic axis; `none` says what a zero means, and what that there is none."""
    parts = sorted(values, key=_in_order)[:PARTS]
    shown = [(row, values[part]) for row, part in enumerate(parts) if values[part] > 0]
    figure, (axes,) = figure_of(1, height=max(1.6, 0.18 * len(parts) + 0.6))
    axes.plot([value for _, value in shown], [row for row, _ in shown], "o", color=ONE, markersize=4)
    if shown:
        logarithmic(axes, "x")
    else:
        axes.set_xticks([])
    axes.set_yticks(range(len(parts)), [plain(part) for part in parts])
    axes.set_ylim(len(parts) - 0.5, -0.5)
    axes.grid(axis="y", color=MUTED, linewidth=0.3, linestyle=":")
    axes.set_xlabel(label)
    zero = [part for part in parts if values[part] == 0]
    for part in zero:
        place = {"xycoords": ("axes fraction", "data"), "va": "center"}
        axes.annotate(none[0], (0.01, parts.index(part)), color=MARK, fontsize=8, **place)
    text = f"{len(parts)} parts; " + (f"{none[0]}: {', '.join(zero)}." if zero else f"{none[1]}.")
    text += f" {len(values) - PARTS:,} more are not shown." if len(values) > PARTS else ""
    return Picture(title, svg(figure), text, columns, tuple((part, f"{values[part]:.3e}") for part in parts))


def _heat(recorded: Mapping[str, Series]) -> Picture:
    parts = sorted(recorded, key=_in_order)[:PARTS]
    steps = np.unique(np.concatenate([recorded[part].steps for part in parts]))
    columns = np.linspace(0, len(steps) - 1, min(len(steps), 120)).astype(int)
    grid = np.full((len(parts), len(columns)), np.nan)
    for row, part in enumerate(parts):
        places = np.searchsorted(recorded[part].steps, steps[columns], side="right") - 1
        known = recorded[part].values[np.maximum(places, 0)]
        grid[row] = np.where((places >= 0) & (known > 0), np.log10(np.maximum(known, 1e-30)), np.nan)
    figure, (axes,) = figure_of(1, height=max(1.6, 0.18 * len(parts) + 0.8))
    image = axes.imshow(grid, aspect="auto", interpolation="nearest", cmap="viridis")
    axes.set_yticks(range(len(parts)), [plain(part) for part in parts], fontsize=7)
    ticks = np.linspace(0, len(columns) - 1, min(6, len(columns))).astype(int)
    axes.set_xticks(ticks, [f"{steps[columns[tick]]:,}" for tick in ticks])
    axes.set_xlabel("optimizer step")
    bar = figure.colorbar(image, ax=axes)
    bar.set_label("log10 of the gradient norm", color=INK)
    bar.ax.tick_params(colors=INK)
    rows = tuple((part, f"{float(recorded[part].values[-1]):.3e}") for part in parts)
    middles = {part: float(np.median(np.nan_to_num(recorded[part].values))) for part in parts}
    low, high = min(parts, key=middles.__getitem__), max(parts, key=middles.__getitem__)
    told = f"largest {high} ({middles[high]:.3g} in the middle), smallest {low} ({middles[low]:.3g})"
    return Picture(
        "Gradient norm by module",
        svg(figure),
        f"{len(parts)} modules over {len(steps)} looks: {told}.",
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
    figure, axes = figure_of(1, height=3.2, columns=len(found.keys))
    for place, modality in zip(axes, found.keys, strict=True):
        rows = found.rows(modality)[:: max(1, found.size // ROWS)][:ROWS].astype(np.float64)
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        unit = rows / np.where(norms > 0, norms, 1)
        image = place.imshow(np.nan_to_num(unit @ unit.T), vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
        place.set_title(f"{modality} rows", fontsize=9, color=INK)
    figure.colorbar(image, ax=list(axes), shrink=0.8).ax.tick_params(colors=INK)
    written = "unknown" if found.written is None else f"{found.written:,}"
    text = f"Cosines between up to {ROWS} of {found.size:,} rows of each modality; rows known to be written: {written}."
    yield Picture("Similarity of the bank's rows", svg(figure), text)


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
    if not ratios:
        return
    picture = _dots(
        "What changed",
        ratios,
        ("module", "relative change"),
        "change as a share of the weights' size",
        none=("unmoved", "every part moved"),
    )
    ends = (before.path, after.path) if before.path != after.path else (f"step {before.step}", f"step {after.step}")
    yield replace(picture, text=f"From {ends[0]} to {ends[1]}: {picture.text}")


def _show_both(axes: Any, values: NDArray[Any], levels: NDArray[Any]) -> None:
    """A logarithmic axis where the null level is so far above a loss that the loss would be a line at the bottom."""
    known, null = values[np.isfinite(values)], levels[np.isfinite(levels)]
    if len(known) and len(null) and known.min() > 0 and null.max() > FAR * np.median(known):
        logarithmic(axes, "y")


def _mark(run: Run, *axes: Any) -> str:
    """Lines where something happened, named over the uppermost picture; in words."""
    low, high = axes[0].get_xlim()
    happened = [event for event in events.events(run) if low <= event.step <= high][:MARKS]
    for step in sorted({event.step for event in happened}):
        for one in axes:
            one.axvline(step, color=MARK, linewidth=0.8)
    labels: list[tuple[int, list[str]]] = []
    for event in happened:
        if labels and event.step - labels[-1][0] < CLOSE * (high - low):
            labels[-1][1].append(event.kind)
        else:
            labels.append((event.step, [event.kind]))
    for step, kinds in labels:
        place = {"xycoords": ("data", "axes fraction"), "xytext": (0, 3), "textcoords": "offset points"}
        words = plain(", ".join(dict.fromkeys(kinds)))
        axes[0].annotate(words, (step, 1), color=MARK, fontsize=7, ha="center", va="bottom", **place)
    told = ", ".join(dict.fromkeys(f"{event.kind} at step {event.step:,}" for event in happened))
    return f" Marked: {told}." if told else ""


def _told(run: Run) -> tuple[tuple[str, ...], ...]:
    return tuple((f"{event.step}", f"{event.kind}: {event.detail}") for event in events.events(run)[:100])


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
