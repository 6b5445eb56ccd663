"""FGD411: another number of candidates than was planned."""

from collections.abc import Iterator

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check
from fgclip_doctor.terms import sites


@check("FGD411", "candidates-not-as-planned", Severity.WARNING)
def candidates_not_as_planned(run: Run, *, tolerance: float = 0.05) -> Iterator[Finding]:
    """No contrastive loss has as many candidates per anchor as were planned.

    Why: The candidates are what a contrastive loss is read by, and most of what it can teach. A gather that isn't
        there, a bank that stays off or a batch that a launcher has divided changes them without an error.
    Evidence: A recording, and `candidates` as stated (`--fact candidates=N`) or as planned from a step on: in all the
        steps for which a number was planned, no loss that was seen being computed comes within the share `tolerance`
        of it.
    Benign: Several losses, of which one has them: it is enough. A bank that fills up and passes the number. Steps that
        the recording doesn't reach.
    Fix: Count what makes them: samples per forward, ranks that are gathered, rows of the bank. Else correct the plan.
    Sources: openai/CLIP#25 (8 x 32 instead of 256); van den Oord et al. 2018, eq. 5 (the bound ln N).
    """
    planned = dict(run.plan.candidates)
    source = run.plan.source
    if not planned and "candidates" in run.facts:
        planned, source = {0: run.number("candidates")}, str(run.facts["candidates"].source)
    if not planned:
        raise Missing("no candidates were planned; --fact candidates=N states them")
    watched = run.watched
    judged = 0
    starts = sorted(planned)
    for start, end in zip(starts, [*starts[1:], watched.step + 1], strict=True):
        seen = {}
        for site in sites(run):
            inside = site.candidates[(site.steps >= start) & (site.steps < end)]
            if len(inside):
                seen[site.name] = (float(inside.min()), float(inside.max()))
        judged += len(seen)
        wanted = planned[start]
        if not seen or any(low * (1 - tolerance) <= wanted <= high * (1 + tolerance) for low, high in seen.values()):
            continue
        listed = ", ".join(f"{_range(*pair)} at {name}" for name, pair in seen.items())
        yield Finding(
            message=f"From step {start} on, {wanted:g} candidates per anchor were planned, and no loss has as many: "
            f"{listed}.",
            where=next(iter(seen)),
            evidence=tuple(
                Evidence(
                    name=f"candidates at {name}",
                    value=_range(*pair),
                    expected=wanted,
                    why=f"planned in {source}",
                    source=watched.first.path,
                    step=start,
                )
                for name, pair in seen.items()
            ),
        )
    if not judged:
        raise Missing("no contrastive loss was seen in the steps for which candidates were planned")


def _range(low: float, high: float) -> str:
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
