"""FGD507."""

from collections.abc import Iterator
from math import exp

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check, dynamics
from fgclip_doctor.run import Series
from fgclip_doctor.sums import Sum, decompose, parts_of, total_of
from fgclip_doctor_checks.causes import explaining


@check("FGD507", "dead-loss-term", Severity.WARNING)
def dead_loss_term(run: Run, *, rows: int = 20, share: float = 0.05) -> Iterator[Finding]:
    """A term of the loss is constant, or is missing from the total in bursts.

    Why: a constant has no gradient: its branch trains nothing, while the total looks sound and merely a little high. A
    term that an exception takes out (try, except, pass) leaves its heads without a gradient in just those steps.
    Evidence: a log of the total and its terms, at `rows` steps or more: a term that never changes though it was printed
    finely enough; a constant that is left when the total is written as the weighted sum of its terms, to within
    rounding; a term that has no record, or no part in the total, at a `share` of the steps.
    Benign: a term that is 0 throughout, which is switched off; terms that are logged less often; few decimal places;
    batches without any region, which small ones may often be; a further term that isn't logged, and moves.
    Fix: log every term unweighted, with its candidates and how often it was computed; remove bare excepts around the
    loss; see that the term requires a gradient.
    Sources: 360CVGroup/FG-CLIP, whose forward returns the total alone, and whose second version passes over exceptions
    in its region and hard-negative losses.
    """
    parts = [one for one in parts_of(run) if len(one.values) >= rows]
    if not parts:
        raise Missing(f"no term of the loss was logged {rows} times")
    dead = [one for one in parts if _constant(one)]
    if len(dead) < len(parts) or len(parts) > 1:
        for one in dead:
            yield _finding(
                one,
                f"{one.name} is {one.values[0]:.6g} at all of its {len(one.values)} records: it trains nothing.",
                "distinct values",
                1,
                "more",
                f"over steps {one.steps.min()} to {one.steps.max()}",
            )
    yield from _swallowed(run, [one for one in parts if one not in dead], share)
    try:
        found = decompose(run)
    except Missing:
        return
    level = float(abs(found.values @ [abs(weight) for weight in found.weights]).mean())
    left = found.constant
    if (
        found.exact
        and not (dead or found.still)
        and abs(left) > max(10 * found.error, 10 * found.resolution, 0.01 * level, 0.01)
    ):
        weights = " + ".join(f"{weight:.4g} {one.name}" for weight, one in zip(found.weights, found.parts, strict=True))
        yield _finding(
            found.total,
            f"{found.total.name} is {weights}, and {left:.4g} more at every step: a term that no gradient comes from.",
            "constant in the total",
            left,
            0.0,
            f"+- {found.error:.2g}, at {len(found.steps)} steps",
        )
    yield from _left_out(found, share)


def _constant(one: Series) -> bool:
    """Whether a term never changes, is not off, and was printed finely enough to tell."""
    import numpy as np

    values = one.values[np.isfinite(one.values)]
    printed = one.resolution or 0.0
    return len(values) > 0 and dynamics.constant(values) and abs(values[0]) > max(2 * printed, 1e-6) and printed <= 1e-3


def _swallowed(run: Run, parts: list[Series], share: float) -> Iterator[Finding]:
    """Terms without a record where the total has one, more often than batches without a region explain."""
    import numpy as np

    try:
        total = total_of(run)
    except Missing:
        return
    anchors = run.number("micro_batch", 0.0) * run.number("regions_per_sample", 1.0) * run.number("accumulation", 1.0)
    for one in parts:
        at = np.unique(total.steps[(total.steps >= one.steps.min()) & (total.steps <= one.steps.max())])
        there = np.isin(at, one.steps)
        gaps = np.diff(np.flatnonzero(there))
        if not anchors or not len(gaps) or there.all() or len(np.unique(gaps)) < 2:
            continue  # none missing, or logged less often
        missing = 1 - float(there.mean())
        if missing >= max(share, 5 * exp(-anchors)) and int((gaps > 1).sum()) >= 3:
            yield _finding(
                one,
                f"{one.name} is missing at {missing:.0%} of the steps at which {total.name} was logged, in "
                f"{int((gaps > 1).sum())} bursts of up to {int(gaps.max()) - 1}.",
                "share of steps without it",
                missing,
                0.0,
                f"{anchors:g} anchors a step leave none at {exp(-anchors):.1g} of the steps",
            )


def _left_out(found: Sum, share: float) -> Iterator[Finding]:
    """Terms that were logged and are yet no part of the total at some steps."""
    import numpy as np

    for place, (one, weight) in enumerate(zip(found.parts, found.weights, strict=True)):
        part = weight * found.values[:, place]
        without = np.abs(found.residuals + part) <= np.maximum(found.resolution, 0.02 * np.abs(part))
        without &= np.abs(part) > 4 * found.resolution
        if without.mean() >= share and without.sum() >= 5:
            yield _finding(
                one,
                f"{one.name} is logged, but no part of {found.total.name} at {without.mean():.0%} of the steps.",
                "share of steps without it",
                float(without.mean()),
                0.0,
                f"by its weight of {weight:.4g} at the others",
            )


def _finding(one: Series, message: str, name: str, value: float, expected: float | str, why: str) -> Finding:
    evidence = Evidence(name=name, value=value, expected=expected, why=why, source=str(one.source))
    return Finding(
        message=message, where=one.name, evidence=(evidence,), explained_by=explaining("FGD507", where=one.name)
    )
