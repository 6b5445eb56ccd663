"""What happened to a run at which step, and so explains why a loss changed there: told, planned, or read off a log."""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import log
from typing import TYPE_CHECKING

from fgclip_doctor import dynamics, scale_forms
from fgclip_doctor.run import Event, Run, Series, Source

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RATE = re.compile(r"(?:.*[/_.])?(?:lr|learning_rate)(?:[-_/.].*)?", re.IGNORECASE)
SCALE = re.compile(
    r"(?:.*[/_.])?\w*logit_?scale\w*|(?:.*[/_.])?(?:log_?|inv_?|log_?inv_?)?(?:temp|temperature|tau)"
    r"|(?:.*[/_.])?(?:sharpness|kappa|inv_?t|log_?t)",
    re.IGNORECASE,
)
BARE_SCALE = re.compile(r"(?:train(?:ing)?[/_.])?scale", re.IGNORECASE)  # open_clip's events call it so
GRADIENT_NORM = re.compile(
    r"(?:.*[/.])?(?:(?:total_|global_)?grad(?:ient)?s?[_/]?(?:norm|l2)|g_?norm|gn)", re.IGNORECASE
)
ABOUT = re.compile(r"grad|norm\b|ratio|update|\blr\b|learning.rate", re.IGNORECASE)
BANK = re.compile(r"bank|queue|xbm", re.IGNORECASE)
RAW = log(1000)  # a logged scale over this is exp(logit_scale) itself
LEVELS = 0.25  # of the candidates: a smaller change moves a loss by less than its noise
RESTARTED = 2.0  # times as high as the trough before it: a learning rate that starts over


def events(run: Run) -> list[Event]:
    """Everything known to have happened, by step. Kinds: bank-on, candidates, scale, resume, restart."""
    found = [*run.events, *_planned(run), *_legs(run), *_restarts(run), *_candidates(run), *_joined(run), *_scales(run)]
    return sorted(found, key=lambda event: event.step)


def between(run: Run, first: float, last: float) -> Event | None:
    """What happened from step `first` to step `last`, the likeliest cause of a change first."""
    order = ("bank-on", "candidates", "scale", "restart", "resume")
    there = [event for event in events(run) if first <= event.step <= last]
    return min(there, key=lambda event: order.index(event.kind) if event.kind in order else len(order), default=None)


def gradient_norms(run: Run) -> list[Series]:
    """The logs of the norm of the whole gradient, under any of its names."""
    named = [one.standing for name, one in run.series.items() if GRADIENT_NORM.fullmatch(name)]
    return [one for one in named if len(one.values)]


def learning_rate(run: Run) -> Series | None:
    """The log of the learning rate: that under the plainest name."""
    named = [name for name, one in run.series.items() if RATE.fullmatch(name) and len(one.values) > 1]
    return run.series[min(named, key=len)].standing if named else None


def warmed_up(run: Run) -> float:
    """The step at which the learning rate's warmup ends: as configured, or as logged; 0 where neither says so."""
    import numpy as np

    stated = run.number("warmup_steps", run.number("warmup_ratio", 0.0) * run.number("max_steps", 0.0))
    rates = learning_rate(run)
    if stated or rates is None:
        return stated
    steps, values = dynamics.finite(rates.steps, rates.values)
    if not len(values) or values.max() <= 0 or values[0] >= 0.9 * values.max():
        return 0.0
    return float(steps[np.flatnonzero(values >= 0.99 * values.max())[0]])


def log_scale(series: Series) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Steps and natural logarithms of a logged scale, whichever of scale, its logarithm and temperature was logged."""
    steps, values = dynamics.finite(series.steps, series.values)
    if not len(values):
        return steps, values
    leaf = series.name.rpartition("/")[2]
    named = scale_forms.TEMPERATURE.search(leaf)  # of a temperature its start decides: it may come to lie anywhere
    form = scale_forms.form_of(leaf, float(values[0] if named else values.max()), limit=RAW)
    return dynamics.finite(steps, scale_forms.logarithms(form, values))


def scales(run: Run) -> list[Series]:
    """The logged scales, and not what was logged of their gradients and updates."""
    named = [name for name in run.series if SCALE.fullmatch(name) and not ABOUT.search(name)]
    if not named:
        named = [name for name, one in run.series.items() if BARE_SCALE.fullmatch(name) and not _of_gradients(one)]
    if not named:  # as the tensor is called that holds it, or as papers call it
        called = {name.rpartition(".")[2] for role, name in run.roles.items() if role.startswith("scale.")} | {"T"}
        named = [name for name in run.series if re.split(r"[/.]", name)[-1] in called and not ABOUT.search(name)]
    return [run.series[name].standing for name in named if len(run.series[name].values)]


def _of_gradients(series: Series) -> bool:
    """Whether a scale is that of a gradient scaler: powers of two, or beyond what a softmax stands."""
    import numpy as np

    values = series.values[np.isfinite(series.values)]
    return not len(values) or bool((values > 1000).any() or (np.frexp(values)[0] == 0.5).all())


def _planned(run: Run) -> Iterator[Event]:
    source = Source("the plan")
    if run.plan.bank_on is not None:
        yield Event("bank-on", run.plan.bank_on, "planned", source)
    for step in run.plan.restarts:
        yield Event("restart", step, "planned", source)
    for step, count in run.plan.candidates.items():
        yield Event("candidates", step, f"{count:g} candidates, as planned", source, count)


def _legs(run: Run) -> Iterator[Event]:
    """Where the steps of a loss go back, the run went on from an earlier checkpoint."""
    for role, name in run.roles.items():
        if not role.startswith("loss.") or name not in run.series:
            continue
        series = run.series[name]
        for leg in series.legs[1:]:
            yield Event("resume", int(series.steps[leg.start]), "the steps of the log go back", series.source)


def _restarts(run: Run) -> Iterator[Event]:
    """Where the learning rate starts to rise again, after a fall to under half of what it had been."""
    import numpy as np

    series = learning_rate(run)
    if series is None:
        return
    steps, values = dynamics.condensed(*dynamics.finite(series.steps, series.values))
    if not len(values) or values.max() <= 0:
        return
    logs = np.log(np.maximum(values, 1e-4 * values.max()))
    extremes = dynamics.turns(logs, log(RESTARTED))
    for index in extremes:
        if index and logs[index] < logs[:index].max() - log(RESTARTED) * 0.99:
            after = min(index + 1, len(steps) - 1)
            detail = f"the learning rate starts over from {values[index]:.3g}"
            yield Event("restart", int(steps[after]), detail, series.source, float(values[after]))


def _candidates(run: Run) -> Iterator[Event]:
    """Where a logged number of candidates changes its level, or a logged state of the bank goes from off to on."""
    import numpy as np

    for name, series in run.series.items():
        if "candidates" in name.lower() and len(series.values):
            steps, values = dynamics.condensed(*dynamics.finite(series.standing.steps, series.standing.values))
            logs = np.log(np.maximum(values, 1.0))
            least = log(1 + LEVELS)
            window = max(2, min(10, len(logs) // 3))
            for shift in dynamics.shifts(logs, window=window, least=least):
                detail = f"from {np.exp(shift.before):.4g} to {np.exp(shift.after):.4g} candidates"
                yield Event("candidates", int(steps[shift.index]), detail, series.source, float(np.exp(shift.after)))
        elif BANK.search(name) and re.search(r"(?:^|[_/.])(?:on|enabled|active|rows|filled|size)$", name.lower()):
            steps, values = dynamics.finite(series.standing.steps, series.standing.values)
            on = np.flatnonzero((values[1:] > 0) & (values[:-1] <= 0)) + 1
            yield from (Event("bank-on", int(steps[one]), f"{name} is {values[one]:g}", series.source) for one in on)


def _joined(run: Run) -> Iterator[Event]:
    """Where a recording saw further candidates join a loss, at the very step: its losses are looked at more rarely."""
    if run.recording is not None and (first := run.recording.first.joined) is not None:
        detail = f"{first.columns} candidates of {first.anchors} anchors"
        yield Event("candidates", first.step, detail, Source(run.recording.first.path), first.columns)


def _scales(run: Run) -> Iterator[Event]:
    """Where a logged scale jumps by a tenth or more at once."""
    for series in scales(run):
        steps, values = dynamics.condensed(*log_scale(series))
        window = max(2, min(5, len(values) // 3))
        for shift in dynamics.shifts(values, window=window, least=0.1, errors=8.0):
            detail = f"{series.name} from {shift.before:.4g} to {shift.after:.4g}"
            yield Event("scale", int(steps[shift.index]), detail, series.source, shift.after)


def steps_per_epoch(run: Run) -> float | None:
    """Optimizer steps of one pass over the data: by what is configured, or by a logged epoch; None where neither is."""
    import numpy as np

    batch = run.number("micro_batch", 0.0) * run.number("accumulation", 1.0) * run.number("world_size", 1.0)
    samples = run.number("dataset_size", 0.0)
    if batch and samples:
        return max(1.0, samples / batch)
    for name, series in run.series.items():
        if re.fullmatch(r"(?:.*/)?epochs?", name, re.IGNORECASE) and len(series.values) > 2:
            steps, values = dynamics.finite(series.standing.steps, series.standing.values)
            done = float(values[-1] - values[0]) if len(values) else 0.0
            return float(steps[-1] - steps[0]) / done if done > 0 and not np.array_equal(steps, values) else None
    return None
