"""The learning rate over a run, as logged: a schedule that begins again in the middle of its way."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fgclip_doctor import dynamics, events
from fgclip_doctor.run import Run, Source

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CYCLES = re.compile(r"restart|cycl|sgdr", re.IGNORECASE)  # schedules that begin again by design
LEAST = 0.2  # of the peak: from lower down, a schedule may have come to its end
DOWN = 0.95  # of the peak: a rate that has begun to fall
OFF = 0.02  # of the peak: two logs of one schedule, as printed
MEETING = 5  # records of both that have to agree


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
