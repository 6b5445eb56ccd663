"""Whether a loss term is at chance, and in which way: told by its level, its noise and where it came from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf, log2, sqrt
from typing import TYPE_CHECKING

from fgclip_doctor import theory
from fgclip_doctor.findings import Evidence
from fgclip_doctor.progress import bank_jump
from fgclip_doctor.run import Missing, Run
from fgclip_doctor.terms import Term, falling, logged_beside, settled, sites

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SUPERVISED = (0.1, 0.5)  # temperatures that SupContrast is run with, whose loss is multiplied by T / 0.07
WORTHLESS = 0.01  # of ln N: a margin under it is none
FEWEST = 4  # values, where the noise of unaligned features is known


@dataclass(frozen=True)
class Reading:
    """The mean of the last values of a term, and what they say."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]
    mean: float
    error: float
    spread: float
    state: str = ""  # "unaligned", "collapsed" or "opposed"; empty where it isn't at chance


def read(run: Run, term: Term, *, bits: float, early: int, points: int, span: int) -> Reading:
    """What the last values of a term say; `Missing` where they can't tell."""
    jump = bank_jump(term, agreement=0.2)
    if term.smoothing * (term.scale or inf) > 0.9 * term.chance:
        raise Missing("with label smoothing at this scale, a loss over ln N may be that of well-separated pairs")
    steps, values = settled(run, term.series, max(early, term.since, jump[0].index - 1 if jump else 0))
    if len(steps) >= 2 * points - 1:
        steps, values = steps[len(steps) // 2 :], values[len(steps) // 2 :]
    known = term.scale is not None and not term.sigmoid
    if len(steps) < (FEWEST if known else points) or steps[-1] - steps[0] < span:
        raise Missing(f"the {term.name} loss has too few values after the start")
    mean, error = theory.mean_with_error(values)
    if len(values) < points and known:
        mean, error = float(values.mean()), max(float(values.std(ddof=1)), term.null.noise) / sqrt(len(values))
    reading = Reading(steps, values, mean, error, float(values.std()))
    over = mean - 4 * error >= term.chance  # clearly, however noisy it is
    if not over and 2 * error > max(bits, 0.1 * log2(term.candidates)) * theory.LN2:
        raise Missing(f"the {term.name} loss is too noisy to tell ({mean:.3f} +- {error:.3f})")
    state = _state(term, reading) or _marginless(run, term, reading)
    if term.assumed and jump is None and not (state == "collapsed" and _still(term, reading)):
        if supervised(term, reading) is None:
            raise Missing(f"the candidates of the {term.name} loss aren't certain without {', '.join(term.assumed)}")
        state = "collapsed"
    if not state and term.scale is None and mean + 2 * error >= term.chance:
        raise Missing(term.scale_source)
    return replace(reading, state=state)


def _state(term: Term, reading: Reading) -> str:
    """Which way the term is at chance; empty if it isn't."""
    mean, error, spread = reading.mean, reading.error, reading.spread
    known = term.scale is not None and not term.sigmoid
    quiet = min(0.05, 0.25 * term.null.noise / sqrt(term.accumulation)) if known else 0.05
    if abs(mean - term.chance) <= 0.02 + 2 * error and spread <= quiet:  # collapsed features have no sampling noise
        return "collapsed"
    if term.sigmoid:
        return "unaligned" if abs(mean - term.chance) <= 0.05 * term.chance + 2 * error else ""
    if not known or mean + 2 * error < term.chance:
        return ""
    null = term.null_with_level(mean)
    if null is None:
        opposed = mean - 3 * error > 2 * term.null.level and not falling(term.series.values)
        return "opposed" if opposed else ""
    varying = 1 / sqrt(term.candidates) if term.name == "region" else 0.0  # of ln N, as the regions per image vary
    return "unaligned" if null.noise / sqrt(term.accumulation) / 3 <= spread <= 2 * null.noise + varying else ""


def _marginless(run: Run, term: Term, reading: Reading) -> str:
    """The same of a loss that was seen being computed: its own logits tell exactly what their positives are worth."""
    import numpy as np

    margin = logged_beside(run, term, "margin")
    if margin is None or term.sigmoid or not _was_seen(run, term):
        return ""
    values = margin.values[(margin.steps >= reading.steps[0]) & np.isfinite(margin.values)]
    if len(values) < FEWEST or values.mean() + 2 * values.std(ddof=1) / sqrt(len(values)) > WORTHLESS * term.chance:
        return ""
    if values.mean() < -WORTHLESS * term.chance:  # worse than chance
        return ""
    return "collapsed" if reading.mean - term.chance <= 0.02 else "unaligned"


def _was_seen(run: Run, term: Term) -> bool:
    return any(site.name == term.name for site in sites(run))


def _still(term: Term, reading: Reading) -> bool:
    """Whether the loss has stood where it is since the start: one that came down from far above has learnt."""
    import numpy as np

    values = term.series.values[np.isfinite(term.series.values)]
    start = float(np.median(values[: max(3, len(values) // 20)]))
    return reading.spread <= 0.05 and start - reading.mean <= 0.75


def supervised(term: Term, reading: Reading) -> tuple[float, float] | None:
    """Temperature and level of a loss over 2 N - 1 views that stands exactly at its chance level; None elsewhere."""
    if term.name != "total" or reading.spread > 0.02 or not _still(term, reading):
        return None
    for temperature in (1 / term.scale,) if term.scale else SUPERVISED:
        level = theory.supervised_chance(round(term.candidates), temperature=temperature)
        if abs(reading.mean - level) <= 0.003 * level:
            return temperature, level
    return None


def acquitted(run: Run, term: Term, reading: Reading) -> bool:
    """Whether the loss falls, or the positives' margin over their rows, or their top-1 share, is over chance.

    Of a loss that was seen being computed the margin is exact, so it has to rise: a scale that sinks, too, brings a
    loss down to chance; and without any margin a top-1 share is luck. Neither margin nor share acquits a loss over
    twice its chance level: what it gets wrong, it is surer of than of what it gets right.
    """
    margin = logged_beside(run, term, "margin")
    seen = margin is not None and _was_seen(run, term)
    margins = margin.standing.values[margin.standing.steps >= reading.steps[0]] if margin else reading.values[:0]
    if falling(-margins if seen else reading.values):
        return True
    if reading.mean > 2 * term.chance:
        return False
    mean, error = theory.mean_with_error(margins) if len(margins) else (0.0, 0.0)
    if mean > max(0.25 * theory.LN2, 3 * error):
        return True
    shares, luck = logged_beside(run, term, "acc"), theory.chance_top1(term.candidates)
    if shares is None or (seen and not mean > 3 * error):
        return False
    share, error = theory.mean_with_error(shares.values[shares.steps >= reading.steps[0]])
    return share - luck > max(0.5 * luck, 3 * error)


def grounds(
    term: Term, reading: Reading, name: str, chance: float, null: theory.Null | None, before: list[Evidence]
) -> list[Evidence]:
    """The mean of the loss beside what it is at chance: `chance`, which is called `name`, and the null where known.

    `before` is what `before_its_bank` gives.
    """
    source = str(term.series.source)
    mean = Evidence(
        name="mean loss",
        value=reading.mean,
        expected=f"under {chance:.3f}",
        why=f"+- {reading.error:.2g}",
        source=source,
    )
    why = f"the least without knowledge: {name} ({term.counted})"
    least = Evidence(name="ln N", value=chance, why=why, source=source)
    if null is None:
        return [mean, least, *before]
    how = f"{term.counted}; scale {term.scale or 0:.4g} ({term.scale_source}); width {term.dimension}"
    spread = Evidence(
        name="spread of the logged values",
        value=reading.spread,
        expected=f"{null.noise / sqrt(term.accumulation):.3f} to {null.noise:.3f} at the null level",
        why=f"null noise of {term.anchors:.3g} anchors, over up to {term.accumulation} forwards a value",
        source=source,
    )
    why = f"of evenly spread features: {how}"
    return [mean, Evidence(name="null level", value=null.level, why=why, source=source), least, *before, spread]


def before_its_bank(term: Term) -> list[Evidence]:
    """That a term was at chance before its bank came on too, by the same yardstick, if it was."""
    import numpy as np

    jump = bank_jump(term, agreement=0.2)
    if jump is None or term.before is None or term.scale is None:
        return []
    log = term.series
    there = log.values[(log.steps < jump[0].index) & np.isfinite(log.values)]
    there = there[len(there) // 2 :]
    null = term.null_at(candidates=term.before)
    error = max(float(there.std()), null.noise / sqrt(term.accumulation)) / sqrt(len(there))
    if not term.chance_at(term.before) - 2 * error <= there.mean() <= null.level + 3 * error:
        return []
    return [
        Evidence(
            name="mean loss before the bank",
            value=float(there.mean()),
            expected=f"under {term.chance_at(term.before):.3f}",
            why=f"+- {error:.2g}; with {term.before:.4g} candidates unaligned features give {null.level:.3f}",
            source=str(log.source),
            step=jump[0].index,
        )
    ]
