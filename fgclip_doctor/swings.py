"""Whether a loss swings: slowly, by more than the sampling of its batches explains, or with noise that grows.

Each answer is what a loss does, in words, with the number that shows it.
"""

from __future__ import annotations

from itertools import product
from math import isfinite
from typing import TYPE_CHECKING

from fgclip_doctor import dynamics
from fgclip_doctor.events import steps_per_epoch
from fgclip_doctor.findings import Evidence
from fgclip_doctor.progress import Course
from fgclip_doctor.run import Run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SWING = "swings from one extreme to the next"


def swings(
    run: Run, steps: NDArray[np.int64], values: NDArray[np.float64], turns: int, share: float, least: float
) -> tuple[str, Evidence] | None:
    """Slow swings: more turns of the smoothed level than a sampling of batches makes, and no epochs."""
    parts = [part for part in (len(values), 1 << 15, 1 << 12) if part <= len(values)]  # fast swings of a long log too
    for part, blocks in product(parts, (96, 768)):
        if found := _swing(run, steps[-part:], values[-part:], blocks, turns, share, least):
            return found
    return None


def _swing(
    run: Run,
    steps: NDArray[np.int64],
    values: NDArray[np.float64],
    blocks: int,
    turns: int,
    share: float,
    least: float,
) -> tuple[str, Evidence] | None:
    import numpy as np

    levels, error = dynamics.smooth(values, blocks)
    level = float(np.median(np.abs(levels)))
    smallest = max(least, share * level, 8 * error)
    extremes = dynamics.turns(levels, smallest)
    if len(extremes) < turns:
        return None
    lasts = np.diff(extremes) * (steps[-1] - steps[0]) / max(len(levels) - 1, 1)
    cycle = 2 * float(np.median(lasts))
    if _by_epochs(run, steps, levels, cycle):
        return None
    swing = float(np.median(np.abs(np.diff(levels[extremes]))))
    return (
        f"swings by {swing:.2f} around {level:.2f}, back and forth in about {cycle:.0f} steps, {len(extremes)} times",
        Evidence(
            name=SWING,
            value=swing,
            expected=f"under {smallest:.3f}",
            why=f"{len(extremes)} turns of the smoothed level, whose sampling error is {error:.2g}",
        ),
    )


def _by_epochs(run: Run, steps: NDArray[np.int64], levels: NDArray[np.float64], cycle: float) -> bool:
    """Whether swings may come of the passes over the data: their length is known, and fits, or unknown, and regular."""
    import numpy as np

    epoch = steps_per_epoch(run)
    period, strength = dynamics.period(np.linspace(steps[0], steps[-1], len(levels)), levels)
    cycle = period if strength > 0.3 else cycle
    if not epoch:
        return strength > 0.3
    ratio = cycle / epoch
    return abs(ratio - round(ratio)) <= 0.1 * max(1, round(ratio)) if ratio > 0.9 else False


def growing_noise(
    course: Course, steps: NDArray[np.int64], values: NDArray[np.float64], share: float, growing: float
) -> tuple[str, Evidence] | None:
    """Noise that grows while the loss is no lower; not that of a log whose values average over fewer steps."""
    import numpy as np

    third = len(values) // 3
    ratio, error = dynamics.growth(values)
    first, last = values[:third], values[-third:]
    now = dynamics.noise(last)
    apart = [float(np.median(np.diff(part))) for part in (steps[:third], steps[-third:])]
    level = float(np.median(last))
    if (
        not isfinite(ratio)
        or ratio < growing
        or ratio - 1 < 4 * error * ratio
        or now < share / 2 * abs(level)
        or level < float(np.median(first)) - 3 * now / third**0.5
        or apart[0] > 1.5 * apart[1]
    ):
        return None
    term = course.term
    if term is not None and term.scale is not None and not term.sigmoid and now < 1.5 * term.null.noise:
        return None
    return (
        f"is {ratio:.1f} times as noisy at the end as at first ({now:.2g} around {level:.2f}), and no lower",
        Evidence(
            name="noise of the last third over that of the first",
            value=ratio,
            expected=f"under {growing:g}",
            why=f"+- {error * ratio:.2g}; from second differences, in which a trend vanishes",
            source=str(course.series.source),
        ),
    )
