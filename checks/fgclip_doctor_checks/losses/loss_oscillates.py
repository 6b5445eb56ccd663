"""FGD503."""

from collections.abc import Iterator
from itertools import product
from math import isfinite
from typing import TYPE_CHECKING

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check, dynamics
from fgclip_doctor.events import steps_per_epoch
from fgclip_doctor.progress import Course, courses, stretch
from fgclip_doctor_checks.causes import explaining

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SWING = "swings from one extreme to the next"


@check("FGD503", "loss-oscillates", Severity.WARNING)
def loss_oscillates(
    run: Run, *, points: int = 24, turns: int = 6, share: float = 0.2, least: float = 0.25, growing: float = 2.0
) -> Iterator[Finding]:
    """A loss term goes up and down by more than the sampling of its batches explains, in slow swings or growing ones.

    Why: sampling noise is as large from one value to the next as over a hundred, and doesn't grow while a loss is no
    higher. What swings slowly, or more and more, is an optimizer that overshoots: a learning rate, a beta or a feedback
    between two terms.
    Evidence: a log of `points` values or more since the warmup and since anything that is known to have happened. Its
    smoothed level turns `turns` times by `least` nats, a share `share` of the loss and 8 errors of the sampling noise;
    or the noise of the last third is `growing` times that of the first, to 4 errors, over the null noise where that is
    known, while the loss is no lower.
    Benign: sampling noise (FGD504); a period that is an epoch, or may be one where its length isn't known; cycles of
    the learning rate; a sawtooth; an evaluation. Data that come sorted by source swing alike: shuffle them.
    Fix: halve the learning rate first; a clipping at 1 bounds the overshoot. More accumulation lowers the noise, not
    a swing.
    Sources: Cohen et al. 2021, "Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability" (what
    too large a learning rate does); fgclip_doctor.theory (the null noise).
    """
    judged = 0
    for course in courses(run):
        steps, values = stretch(run, course)
        if len(values) < points:
            continue
        judged += 1
        found = _swings(run, steps, values, turns, share, least) or _growing(course, steps, values, share, growing)
        if found is not None:
            yield Finding(
                message=f"The {course.name} loss {found[0]}, from step {steps[0]} to {steps[-1]}.",
                where=course.series.name,
                evidence=(found[1],),
                explained_by=explaining("FGD503", where=course.series.name),
            )
    if not judged:
        raise Missing(f"no loss was logged {points} times since the warmup and since the last thing that happened")


def _swings(
    run: Run, steps: "NDArray[np.int64]", values: "NDArray[np.float64]", turns: int, share: float, least: float
) -> tuple[str, Evidence] | None:
    """Slow swings: more turns of the smoothed level than a sampling of batches makes, and no epochs."""
    parts = [part for part in (len(values), 1 << 15, 1 << 12) if part <= len(values)]  # fast swings of a long log too
    for part, blocks in product(parts, (96, 768)):
        if found := _swing(run, steps[-part:], values[-part:], blocks, turns, share, least):
            return found
    return None


def _swing(
    run: Run,
    steps: "NDArray[np.int64]",
    values: "NDArray[np.float64]",
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


def _by_epochs(run: Run, steps: "NDArray[np.int64]", levels: "NDArray[np.float64]", cycle: float) -> bool:
    """Whether swings may come of the passes over the data: their length is known, and fits, or unknown, and regular."""
    import numpy as np

    epoch = steps_per_epoch(run)
    period, strength = dynamics.period(np.linspace(steps[0], steps[-1], len(levels)), levels)
    cycle = period if strength > 0.3 else cycle
    if not epoch:
        return strength > 0.3
    ratio = cycle / epoch
    return abs(ratio - round(ratio)) <= 0.1 * max(1, round(ratio)) if ratio > 0.9 else False


def _growing(
    course: Course, steps: "NDArray[np.int64]", values: "NDArray[np.float64]", share: float, growing: float
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
