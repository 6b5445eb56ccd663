"""The learning rate over a run: a schedule that begins again in the middle of its way, or that does not fit the run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import cos, pi
from typing import TYPE_CHECKING

from fgclip_doctor import dynamics, events
from fgclip_doctor.run import Fact, Run, Source

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CYCLES = re.compile(r"restart|cycl|sgdr", re.IGNORECASE)  # schedules that begin again by design
LEAST = 0.2  # of the peak: from lower down, a schedule may have come to its end
DOWN = 0.95  # of the peak: a rate that has begun to fall
OFF = 0.02  # of the peak: two logs of one schedule, as printed
MEETING = 5  # records of both that have to agree
LINE = 5  # records that make a line
RUNNING = 3  # records at which a schedule is where it is later on, or at which it has come to its end
NEAR = 0.02  # of the peak
STRAIGHT = 1e-3  # of the last rate
SOON = 0.9  # of the run's length: an end before it is not meant
UPDATES = re.compile(r"TrainerState|TrainingArguments|update|optim")  # lengths that are in optimizer steps for certain
AHEAD = 1.5  # times a step that a schedule advances


@dataclass(frozen=True, slots=True)
class BegunAgain:
    """A learning rate that from `step` on is what it was from the start on."""

    step: int
    before: float  # the rate that it had come to
    after: float  # the one that it began at
    peak: float  # that it came back to
    records: int  # that agree with the start's
    source: Source


def begun_again(run: Run) -> BegunAgain | None:
    """The first place at which the logged schedule, half-way down, begins again as it began at first.

    Not where it was planned to, and not where it may have come to its end: a cycle of a schedule with restarts. The
    steps need not go back there: a trainer that is resumed keeps no log of what it redoes.
    """
    import numpy as np

    series = events.learning_rate(run)
    name = run.facts.get("schedule")
    if series is None or (name is not None and CYCLES.search(str(name.value))):
        return None
    steps, rates = dynamics.condensed(*dynamics.by_step(series.steps, series.values))
    if len(rates) < 3 * MEETING or rates.max() <= 0:
        return None
    stride = float(np.median(np.diff(steps)))
    resumed = [event.step for event in events.events(run) if event.kind == "resume"]
    found: list[BegunAgain] = []
    for at in range(MEETING, len(rates) - MEETING + 1):
        before, after, peak = float(rates[at - 1]), float(rates[at]), float(rates[:at].max())
        if not LEAST * peak <= before <= DOWN * peak or before / 2 < after < before * 2:
            continue
        near = 2 * stride
        if any(abs(step - steps[at]) <= near for step in run.plan.restarts):
            continue
        if _ended(rates[:at]) and not any(abs(step - steps[at]) <= near for step in resumed):
            continue
        met = _met(steps, rates, at, stride)
        if met and rates[at : at + met].max() > before:
            top = float(rates[at : at + met].max())
            found.append(BegunAgain(int(steps[at]), before, after, top, met, series.source))
    lengths = np.diff([0, *(one.step for one in found)])
    cycle = len(found) > 1 and float(np.ptp(lengths)) <= 2 * stride
    return found[0] if found and not cycle else None


def _ended(rates: NDArray[np.float64]) -> bool:
    """Whether a rate may have come to its end, whatever its floor: that of a line at 0, or where a cosine is flat."""
    import numpy as np

    peak = rates.max()
    window = max(1, (len(rates) - 1 - int(np.flatnonzero(rates >= 0.99 * peak)[-1])) // 8)
    if len(rates) < 2 * window + 1:
        return True
    earlier, middle, last = rates[-1 - 2 * window], rates[-1 - window], rates[-1]
    fall, slower = (middle - last) / window, ((earlier - middle) - (middle - last)) / window**2  # of a record
    if fall <= 0 or last - 2 * fall < 0.1 * peak:
        return True
    return bool(slower > 0 and fall / slower <= 1.5 * window + 2)  # records until it is flat


def _met(steps: NDArray[np.int64], rates: NDArray[np.float64], at: int, stride: float) -> int:
    """How many records from `at` on are what the schedule was from its start on; 0 where they aren't."""
    import numpy as np

    peak = float(rates[:at].max())
    known, first = steps[:at], rates[:at]
    for begin in np.linspace(steps[at - 1] - stride, steps[at] + stride, 33) - max(int(known[0]) - 1, 0):
        again = steps[at:] - begin
        within = (again >= known[0]) & (again <= known[-1])
        if within.sum() < MEETING:
            continue
        off = np.abs(np.interp(again[within], known, first) - rates[at:][within]) / peak
        if np.median(off) <= OFF and off.max() <= 5 * OFF:
            return int(within.sum())
    return 0


# --- of a watched run, whose rates are exact and whose clocks are all counted -----------------------------------------


@dataclass(frozen=True, slots=True)
class Misfit:
    """What is wrong between a schedule and the run that it was made for, and the number that shows it."""

    message: str
    name: str
    value: float
    expected: float
    why: str
    source: str
    step: int


def misfit(run: Run, planned: Fact, off: float) -> Misfit | None:
    """Of a watched run whose length is `planned`, long before its end: a warmup that will not be over by then, or
    a schedule that runs ahead, by `off` of the peak.
    """
    series = events.learning_rate(run)
    optimizer = run.checkpoints[-1].optimizer if run.checkpoints else None
    peak = optimizer.groups[0].options.get("initial_lr") if optimizer is not None and optimizer.groups else None
    if run.recording is None or series is None or not isinstance(peak, (int, float)) or not peak > 0:
        return None
    length = float(planned.value)
    steps, rates = dynamics.by_step(series.steps, series.values)
    if len(steps) < LINE or steps[-1] > length:
        return None
    source = str(series.source)
    found = _never_over(steps, rates / peak, length, str(planned.source), source)
    return found or _runs_ahead(run, steps, rates / peak, planned, off, source)


def _never_over(
    steps: NDArray[np.int64], factors: NDArray[np.float64], length: float, stated: str, source: str
) -> Misfit | None:
    """A warmup on whose line the peak comes after the end of the run."""
    import numpy as np

    middle, step = len(steps) // 2, int(steps[-1])
    slope = (factors[middle] - factors[0]) / (steps[middle] - steps[0])
    line = factors[0] + slope * (steps - steps[0])
    straight = np.abs(line - factors).max() <= STRAIGHT * factors[-1] and (np.diff(factors) > 0).all()
    if not straight or factors[-1] >= 1 or (over := step + (1 - factors[-1]) / slope) < length:
        return None
    return Misfit(
        f"By step {step} the learning rate has warmed up to {factors[-1]:.1%} of its peak. On this line it gets there "
        f"at step {over:.0f}, and the run has {length:g}: its warmup is never over.",
        "end of the warmup",
        round(over),
        length,
        f"under the run's length, {stated}: a line through {len(steps)} records",
        source,
        step,
    )


def _runs_ahead(
    run: Run, steps: NDArray[np.int64], factors: NDArray[np.float64], planned: Fact, off: float, source: str
) -> Misfit | None:
    """A schedule that advances several times a step."""
    clocks = run.recording.ranks[0].clocks if run.recording else {}
    pace = clocks.get("scheduler_steps", 0) / max(clocks.get("steps", 0), 1)
    step, factor, length = int(steps[-1]), float(factors[-1]), float(planned.value)
    if pace < AHEAD:
        return None
    advances = f"The schedule advances {pace:.3g} times a step{because(run, pace)}"
    known, warmup = run.facts.get("schedule"), run.number("warmup_steps", 0.0)
    kind = str(known.value) if known else ""
    meant = [named(kind, one - 1, warmup, length) for one in steps[-RUNNING:].tolist()]
    later = [[named(kind, max(0.0, pace * (one - b)), warmup, length) for b in (2, 0)] for one in steps[-RUNNING:]]
    if all(
        one is not None and None not in ends and abs(rate - one) > off and _between(rate, ends)
        for rate, one, ends in zip(factors[-RUNNING:].tolist(), meant, later, strict=True)
    ):
        return Misfit(
            f"{advances}: at step {step} of {length:g} the learning rate is at {factor:.1%} of its peak instead of "
            f"{meant[-1] or 0.0:.1%}.",
            "learning rate over its peak",
            round(factor, 4),
            round(meant[-1] or 0.0, 4),
            f"a {kind} schedule of {length:g} steps at step {step}; it is at {pace * step:g}",
            source,
            step,
        )
    forwards = clocks.get("forwards", 0)
    if clocks.get("steps", 0) < 0.95 * forwards <= length and not UPDATES.search(planned.source.key):
        return None  # the length may be one of forwards
    end = _end_of_the_way_down(steps, factors)
    if end is not None and end < SOON * length:
        return Misfit(
            f"{advances}: on its way down it comes to its end at step {end:.0f}, and the run has {length:g}.",
            "end of the schedule",
            round(end),
            length,
            "the rates so far lie on a line, or on half a cosine",
            source,
            step,
        )
    ended = len(factors) - 1
    while ended and abs(factors[ended - 1] - factor) <= 1e-9:
        ended -= 1
    before, at = (int(steps[max(place, 0)]) for place in (ended - 1, ended))
    falls = ended > 0 and factors[ended - 1] > factor and len(factors) - ended >= RUNNING
    its_length = 0.95 * pace * before <= length <= 1.05 * pace * at  # in the clock of the scheduler
    if not falls or not its_length:
        return None
    return Misfit(
        f"{advances} and came to its end by step {at} of {length:g}: the learning rate stays at {factor:.1%} of its "
        "peak from there on.",
        "last step at which the rate changed, at most",
        at,
        length,
        f"the scheduler was at {pace * at:g} then, and the run's length is {length:g}",
        source,
        step,
    )


def _end_of_the_way_down(steps: NDArray[np.int64], factors: NDArray[np.float64]) -> float | None:
    """The step at which a rate that falls on a line or on half a cosine, exactly, is at 0."""
    import numpy as np

    top = int(factors.argmax())
    stops = np.flatnonzero((np.diff(factors[top:]) >= 0) | (factors[top + 1 :] <= 0))
    way = slice(top + 1, top + 1 + int(stops[0]) if len(stops) else None)
    at, down = steps[way], factors[way]
    at, down = at[: LINE - 1], down[: LINE - 1]
    if len(at) < LINE - 1:
        return None
    for done in (1 - down, np.arccos(np.clip(2 * down - 1, -1, 1)) / np.pi):  # of the way, from 0 to 1
        slope = (done[-1] - done[0]) / (at[-1] - at[0])
        if slope > 0 and np.abs(done[0] + slope * (at - at[0]) - done).max() <= STRAIGHT:
            return float(at[-1] + (1 - done[-1]) / slope)
    return None


def _between(rate: float, ends: list[float | None]) -> bool:
    known = [one for one in ends if one is not None]
    return min(known) - NEAR <= rate <= max(known) + NEAR


def named(schedule: str, step: float, warmup: float, length: float) -> float | None:
    """The learning rate over its peak that a schedule has by its name; None for one that isn't known."""
    if schedule not in ("linear", "cosine") or length <= warmup:
        return None
    if step < warmup:
        return step / warmup
    done = min(1.0, (step - warmup) / (length - warmup))
    return 1 - done if schedule == "linear" else (1 + cos(pi * done)) / 2


def because(run: Run, ratio: float) -> str:
    """What the ratio of the scheduler's clock to the steps is, if it is one that is known."""
    clocks = run.recording.ranks[0].clocks if run.recording else {}
    forwards = clocks.get("forwards", 0) / max(clocks.get("steps", 0), 1)
    told = (
        (forwards or run.number("accumulation", 1.0), "it advances with every micro-batch"),
        (run.number("world_size", 1.0), "it advances once for every rank"),
    )
    known = [why for number, why in told if number > 1 and abs(ratio / number - 1) < 0.05]
    return f" ({known[0]})" if known else ""
