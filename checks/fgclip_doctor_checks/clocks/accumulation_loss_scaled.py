"""FGD404."""

from collections.abc import Iterator
from math import exp

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check, dynamics
from fgclip_doctor.factors import first_values, heaviest, jump_by
from fgclip_doctor.terms import terms


@check("FGD404", "accumulation-loss-scaled", Severity.WARNING)
def accumulation_loss_scaled(run: Run, *, tolerance: float = 0.005, start: float = 0.15) -> Iterator[Finding]:
    """The loss, and the gradient with it, is off by the number of accumulated micro-batches.

    Why: a micro-batch's loss that is not divided by the accumulation makes every gradient that many times too large,
    and one that is divided twice that much too small: the clipping threshold, Adam's eps and every comparison with
    another run mean something else. Nothing raises.
    Evidence: a log. The largest weight of a term in the total is the accumulation itself, or one over it, to
    `tolerance`; or the loss jumps by just that factor; or the first values are that many times what features that know
    nothing give, to the share `start`, with candidates and scale known.
    Benign: the shuffled captions of a high scale, whose loss is over the null level by no such factor; a bank that came
    on; a sudden drop of the loss, which the gradient doesn't follow by that factor; an accumulation of 1.
    Fix: divide by the accumulation once. With transformers' Trainer a compute_loss_func, or a forward that takes
    **kwargs, has to do it itself; compare the first logged loss at accumulation 1 and k.
    Sources: huggingface/transformers#34191, #35438 and #37766 (the loss times the accumulation, and no error).
    """
    count = run.number("accumulation")
    if count < 2:
        raise Missing("nothing is accumulated")
    judged = 0
    try:
        found = heaviest(run, count, tolerance)
    except Missing:
        found = None  # no total that is the sum of its terms
    judged += found is not None
    if found is not None and found.factor:
        yield _finding(
            found.total.name,
            f"{found.total.name} counts {found.name} {found.weight:.4g} times with an accumulation of {count:g}: "
            f"{'not divided by it' if found.factor > 1 else 'divided by it twice'}.",
            Evidence(
                name=f"weight of {found.name} in the total",
                value=found.weight,
                expected=1.0,
                why=f"fitted at {found.rows} steps; the accumulation is {count:g}",
                source=str(found.total.source),
            ),
        )
    for name in dict.fromkeys(name for role, name in run.roles.items() if role.startswith("loss.")):
        if name in run.series and (jump := jump_by(run, name, count)) is not None:
            judged += 1
            if jump.error:
                yield _jumped(run, name, jump, count)
    for term in terms(run):
        if isinstance(term, Missing) or term.scale is None or term.sigmoid or term.assumed:
            continue
        first = first_values(term)
        judged += first is not None
        if first is not None and first > 1.5 * term.null.level:
            low, high = (1 - start) * term.chance, (1 + start) * term.null.level
            if low <= first / count <= high:
                yield _finding(
                    term.series.name,
                    f"The first {term.name} losses are {first:.2f}, {count:g} times the {term.chance:.2f} to "
                    f"{term.null.level:.2f} that features give which know nothing: not divided by the accumulation.",
                    Evidence(
                        name="first loss",
                        value=first,
                        expected=f"{term.chance:.3f} to {term.null.level:.3f}",
                        why=f"chance and null level: {term.counted}; the accumulation is {count:g}",
                        source=str(term.series.source),
                    ),
                )
    if not judged:
        raise Missing("no loss was logged with its terms, or with known candidates and scale")


def _jumped(run: Run, name: str, jump: dynamics.Shift, count: float) -> Finding:
    return _finding(
        name,
        f"{name} goes from {exp(jump.before):.3f} to {exp(jump.after):.3f} at step {jump.index}, by the "
        f"accumulation of {count:g}: it is scaled differently from there on.",
        Evidence(
            name="ratio of the levels",
            value=exp(abs(jump.size)),
            expected=1.0,
            why=f"+- {jump.error:.2g} of it; the accumulation is {count:g}",
            source=str(run.series[name].source),
            step=jump.index,
        ),
    )


def _finding(where: str, message: str, evidence: Evidence) -> Finding:
    return Finding(message=message, where=where, evidence=(evidence,))
