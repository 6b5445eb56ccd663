"""Robust statistics of one logged series: its level, its noise, its shifts, its swings, its spikes.

Arrays in, numbers out. Nothing here assumes a distribution beyond a middle and a spread: levels are medians, spreads
are median absolute deviations (times 1.4826, which is the standard deviation of normal values), so one wild value
among many changes nothing. Everything is linear in the length but for what works on at most `MOST` condensed points.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, sqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]
    Steps = NDArray[np.int64]

MOST = 4096  # points that keep the shape of a log, however long it is
NORMAL = 1.4826  # standard deviations of a normal law in one median absolute deviation
MEDIAN_ERROR = 1.2533  # of a median over that of a mean, for normal values: sqrt(pi / 2)


@dataclass(frozen=True, slots=True)
class Shift:
    """A change of the level within a few values: `index` is the first value after it."""

    index: int
    before: float
    after: float
    error: float  # of the difference

    @property
    def size(self) -> float:
        return self.after - self.before


def finite(steps: Steps, values: Floats) -> tuple[Steps, Floats]:
    """The records whose value is a finite number."""
    import numpy as np

    kept = np.isfinite(values)
    return (steps, values) if kept.all() else (steps[kept], values[kept])


def condensed(steps: Steps, values: Floats, most: int = MOST) -> tuple[Steps, Floats]:
    """At most about `most` points of the same shape: medians of as many neighbours as it takes, at the middle step."""
    import numpy as np

    size = -(-len(values) // most)
    if size <= 1:
        return steps, values
    whole = len(values) // size * size
    levels = np.median(values[:whole].reshape(-1, size), axis=1)
    middles = steps[:whole].reshape(-1, size)[:, size // 2]
    if whole < len(values):
        levels = np.append(levels, np.median(values[whole:]))
        middles = np.append(middles, steps[whole + (len(values) - whole) // 2])
    return middles, levels


def spread(values: ArrayLike) -> float:
    """The robust standard deviation around the median; the plain one where more than half of the values are equal."""
    import numpy as np

    series = np.asarray(values, dtype=np.float64)
    if not len(series):
        return inf
    robust = NORMAL * float(np.median(np.abs(series - np.median(series))))
    return robust or float(series.std())


def noise(values: ArrayLike) -> float:
    """The standard deviation of one value around a level that moves slowly (infinite under 5 values).

    From second differences, in which straight lines vanish; those of independent values have variance 1.5.
    """
    import numpy as np

    series = np.asarray(values, dtype=np.float64)
    if len(series) < 5:
        return inf
    second = series[1:-1] - (series[:-2] + series[2:]) / 2
    return spread(second) / sqrt(1.5)


def shifts(values: Floats, *, window: int, least: float, errors: float = 5.0) -> list[Shift]:
    """Where the level changes by `least` or more, and by so many `errors`, between two windows that touch.

    Of a change that takes several values, the place where it is steepest. `window` values on either side, and no other
    change within them.
    """
    import numpy as np

    if len(values) < 2 * window or window < 2:
        return []
    padded = np.concatenate([[0.0], np.cumsum(values - values.mean())])
    means = (padded[window:] - padded[:-window]) / window
    rise = means[window:] - means[:-window]  # at index i: the change from values[i:i + window] to those after them
    found: list[Shift] = []
    size = np.abs(rise)
    while size.size and (size >= least).any():
        best = int(size.argmax())
        before, after = values[best : best + window], values[best + window : best + 2 * window]
        error = sqrt((before.var(ddof=1) + after.var(ddof=1)) / window)
        if size[best] >= max(least, errors * error):
            found.append(Shift(best + window, float(np.median(before)), float(np.median(after)), error))
        size[max(0, best - window) : best + window + 1] = -inf
    return sorted(found, key=lambda shift: shift.index)


def turns(values: ArrayLike, least: float) -> list[int]:
    """Indices of the extremes between which the series goes up and down by `least` or more; no end is one of them.

    For condensed series: a loop over the values.
    """
    import numpy as np

    series = np.asarray(values, dtype=np.float64).tolist()
    extremes: list[int] = []
    high = low = 0
    direction = 0  # 1 while rising from the last extreme, -1 while falling
    for index, value in enumerate(series):
        if value > series[high]:
            high = index
        if value < series[low]:
            low = index
        if direction >= 0 and series[high] - value >= least:
            if direction or high:
                extremes.append(high)
            direction, low, high = -1, index, index
        elif direction <= 0 and value - series[low] >= least:
            if direction or low:
                extremes.append(low)
            direction, low, high = 1, index, index
    return extremes


def smooth(values: Floats, blocks: int = 96) -> tuple[Floats, float]:
    """Medians of 5 neighbours or more, at most so many of them, and the error of one, where the series is noisiest."""
    import numpy as np

    blocks = max(1, min(blocks, len(values) // 5))
    levels = condensed(np.arange(len(values)), values, blocks)[1]
    noisiest = max(noise(part) for part in np.array_split(values, 3))
    return levels, noisiest * MEDIAN_ERROR / sqrt(max(1, len(values) // len(levels)))


def period(steps: Steps, values: Floats) -> tuple[float, float]:
    """The period, in steps, with which a series repeats itself best, and how well: its autocorrelation there, 0 to 1.

    Irregular steps are put on an even grid first, and a straight line is taken out. A repetition counts where the
    series holds three of them, and has been under zero in between.
    """
    import numpy as np

    steps, values = condensed(steps, values)
    if len(values) < 12 or steps[-1] <= steps[0]:
        return 0.0, 0.0
    grid = np.linspace(steps[0], steps[-1], len(values))
    even = np.interp(grid, steps, values)
    even -= np.polyval(np.polyfit(grid - grid[0], even, 1), grid - grid[0])
    even = np.clip(even, -4 * spread(even), 4 * spread(even))
    if not even.any():
        return 0.0, 0.0
    power = np.abs(np.fft.rfft(even, 2 * len(even))) ** 2
    correlation = np.fft.irfft(power)[: len(even) // 3 + 1]
    correlation = correlation / correlation[0] * len(even) / (len(even) - np.arange(len(correlation)))
    under = np.flatnonzero(correlation < 0)
    if not len(under):
        return 0.0, 0.0
    best = int(under[0] + correlation[under[0] :].argmax())
    return float(best * (grid[1] - grid[0])), max(0.0, float(correlation[best]))


def growth(values: Floats) -> tuple[float, float]:
    """How many times as noisy the last third of a series is as its first, and the relative error of that ratio."""
    third = len(values) // 3
    if third < 8:
        return 1.0, inf
    first, last = noise(values[:third]), noise(values[-third:])
    # a median absolute deviation of n normal values is known to 1.17 / sqrt(n), and second differences overlap
    error = sqrt(2 * 1.17**2 * 1.5 / third)
    return (last / first if first > 0 else (inf if last > 0 else 1.0)), error


def spikes(values: Floats, *, factor: float, errors: float, window: int = 64) -> NDArray[np.int64]:
    """Indices of positive values over `factor` times their neighbourhood, and over it by `errors` of its spread.

    In logarithms, for gradient norms and losses spread by ratios. The neighbourhood is a block of `window` values, the
    one before it and the one after: a level that rises and stays is none.
    """
    import numpy as np

    logs = np.log(np.maximum(values, 1e-300))
    window = min(window, max(1, len(logs)))
    whole = len(logs) // window * window
    blocks = logs[:whole].reshape(-1, window)
    middles = np.median(blocks, axis=1)
    widths = middles - np.quantile(blocks, 0.16, axis=1)  # spikes don't widen the lower side
    top, width = (
        np.max([beside[:-2], beside[1:-1], beside[2:]], axis=0)
        for beside in (np.pad(middles, 1, mode="edge"), np.pad(widths, 1, mode="edge"))
    )
    of = np.minimum(np.arange(len(logs)) // window, len(middles) - 1)  # what is left over goes with the last block
    over = logs - top[of]
    return np.flatnonzero((over >= np.log(factor)) & (over >= errors * width[of]))


def constant(values: Floats, resolution: float | None = None) -> bool:
    """Whether all values are one and the same, as far as they were printed."""
    import numpy as np

    return bool(len(values)) and float(np.ptp(values)) <= max(resolution or 0.0, 1e-9 * float(np.abs(values).max()))


def by_step(steps: Steps, values: Floats) -> tuple[Steps, Floats]:
    """The finite values in order of step, of several at one step the last."""
    import numpy as np

    steps, values = finite(steps, values)
    order = np.argsort(steps, kind="stable")
    steps, values = steps[order], values[order]
    last = np.append(steps[1:] != steps[:-1], True)[: len(steps)]
    return steps[last], values[last]


def detrended(values: Floats) -> Floats:
    """What is left of a series when its trend is taken out: a cubic, or of under 15 values a line."""
    import numpy as np

    places = np.linspace(-1.0, 1.0, len(values))
    return np.asarray(
        values - np.polyval(np.polyfit(places, values, 3 if len(values) >= 15 else min(1, len(values) - 1)), places)
    )
