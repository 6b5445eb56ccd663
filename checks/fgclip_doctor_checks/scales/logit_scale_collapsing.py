"""FGD304."""

from collections.abc import Iterator
from math import exp, log
from typing import TYPE_CHECKING

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check, dynamics
from fgclip_doctor.events import log_scale, scales
from fgclip_doctor.provenance import in_log_space, sigmoid
from fgclip_doctor.terms import Term, terms
from fgclip_doctor_checks.causes import explaining

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Course = tuple[str, NDArray[np.int64], NDArray[np.float64], str]


@check("FGD304", "logit-scale-collapsing", Severity.WARNING)
def logit_scale_collapsing(run: Run, *, low: float = 5.0, fall: float = 2.0, near: float = 0.1) -> Iterator[Finding]:
    """A logit scale falls towards 1, and the loss goes to chance with it.

    Why: where a model can't tell the pairs apart, the cheapest way down is to soften the softmax: at scale 1 every loss
    is ln N. The scale is the symptom; pairs that don't match, or a learning rate too high, the usual cause.
    Evidence: a log of the scale, or several checkpoints: under `low`, at least `fall` times lower than it was, and not
    rising; where the loss is known too, no more than `near` of ln N under it. Where it isn't, half of `low`.
    Benign: a scale that falls from 100 in fine-tuning; one that settles between 5 and 15, as label noise makes it; the
    sigmoid loss, which starts at 10 with a bias; a loss that is far under chance.
    Fix: don't clamp or raise the scale, which only multiplies the noise. See why the loss is at chance; then lower the
    learning rate.
    Sources: mlfoundations/open_clip#815 (from 14.28 to 1 with a flat loss; a lower learning rate ends at 6 to 8).
    """
    if sigmoid(run):
        raise Missing("the scale of a sigmoid loss may be low")
    courses = list(_courses(run))
    if not courses:
        raise Missing("no logit scale was logged, nor saved more than once")
    above = _above_chance(run, near)
    for name, steps, values, source in courses:
        steps, values = dynamics.condensed(steps, values)
        size = max(1, len(values) // 10)
        start, now = float(values.max()), float(values[-size:].mean())
        limit = log(low) if above is not None else log(low / 2)
        recent = values[-max(2, len(values) // 4) :]
        if now >= limit or start - now < log(fall) or recent[-1] > recent[0] + 0.05 or above is False:
            continue
        loss = "the loss is at chance" if above else "no loss was logged that could acquit it"
        yield Finding(
            message=f"{name} has fallen from {start:.3g} to {now:.3g}, a scale of {exp(now):.3g}, and {loss}.",
            where=name,
            evidence=(
                Evidence(
                    name="scale",
                    value=exp(now),
                    expected=f"over {exp(limit):.3g}",
                    why=f"it was {exp(start):.4g}, and softening is what is left where pairs can't be told apart",
                    source=source,
                    step=int(steps[-1]),
                ),
            ),
            explained_by=explaining("FGD304"),
        )


def _courses(run: Run) -> Iterator["Course"]:
    """Name, steps, logarithms and place of every scale that is known more than once."""
    import numpy as np

    logged = scales(run)
    for one in logged:
        steps, values = log_scale(one)
        if len(values) > 1:
            yield one.name, steps, values, str(one.source)
    if logged or len(run.checkpoints) < 2:
        return
    for scale in run.scales():
        held = [one for one in run.checkpoints if scale.tensor.name in one.tensors]
        if in_log_space(scale) and len(held) > 1:
            values = np.array([one.tensors[scale.tensor.name].item() for one in held])
            yield scale.tensor.name, np.array([one.step or 0 for one in held]), values, str(scale.tensor.source)


def _above_chance(run: Run, near: float) -> bool | None:
    """Whether the last tenth of any loss term is at chance, or within the share `near` of it; None if none is known."""
    known: list[bool] = []
    try:
        for term in terms(run):
            if isinstance(term, Term):
                values = dynamics.finite(term.series.steps, term.series.values)[1]  # some, or it would be no term
                known.append(bool(values[-max(3, len(values) // 10) :].mean() >= (1 - near) * term.chance))
    except Missing:
        return None
    return any(known) if known else None
