"""FGD507."""

from collections.abc import Iterator

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check
from fgclip_doctor.run import Series
from fgclip_doctor.sums import bursts, decompose, left_out, never_changes, parts_of, unlogged_constant
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
    batches without any region, which small ones may often be; a further term that isn't logged, and moves; a term with
    a weight of 0, which is logged to be watched (whether a head goes without gradients by it, its weights tell).
    Fix: log every term unweighted, with its candidates and how often it was computed; remove bare excepts around the
    loss; see that the term requires a gradient.
    Sources: 360CVGroup/FG-CLIP, whose forward returns the total alone, and whose second version passes over exceptions
    in its region and hard-negative losses.
    """
    parts = [one for one in parts_of(run) if len(one.values) >= rows]
    if not parts:
        raise Missing(f"no term of the loss was logged {rows} times")
    dead = [one for one in parts if never_changes(one)]
    for one in dead if len(parts) > 1 else ():
        why = f"over steps {one.steps.min()} to {one.steps.max()}"
        message = f"{one.name} is {one.values[0]:.6g} at all of its {len(one.values)} records: it trains nothing."
        yield _finding(one, message, "distinct values", 1, "more", why)
    for gaps in bursts(run, [one for one in parts if one not in dead], share):
        message = (
            f"{gaps.part.name} is missing at {gaps.share:.0%} of the steps at which {gaps.total.name} was logged, in "
        )
        message += f"{gaps.count} bursts of up to {gaps.longest}."
        why = f"{gaps.anchors:g} anchors a step leave none at {gaps.by_chance:.1g} of the steps"
        yield _finding(gaps.part, message, "share of steps without it", gaps.share, 0.0, why)
    try:
        found = decompose(run)
    except Missing:
        return
    constant = None if dead else unlogged_constant(found)
    if constant is not None:
        sums = " + ".join(f"{weight:.4g} {one.name}" for weight, one in zip(found.weights, found.parts, strict=True))
        message = (
            f"{found.total.name} is {sums}, and {constant:.4g} more at every step: a term that no gradient comes from."
        )
        why = f"+- {found.error:.2g}, at {len(found.steps)} steps"
        yield _finding(found.total, message, "constant in the total", constant, 0.0, why)
    for one, weight, without in left_out(found, share):
        message = f"{one.name} is logged, but no part of {found.total.name} at {without:.0%} of the steps."
        why = f"by its weight of {weight:.4g} at the others"
        yield _finding(one, message, "share of steps without it", without, 0.0, why)


def _finding(one: Series, message: str, name: str, value: float, expected: float | str, why: str) -> Finding:
    evidence = Evidence(name=name, value=value, expected=expected, why=why, source=str(one.source))
    return Finding(
        message=message, where=one.name, evidence=(evidence,), explained_by=explaining("FGD507", where=one.name)
    )
