"""FGD504."""

from collections.abc import Iterator
from math import sqrt

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check, dynamics
from fgclip_doctor.progress import courses, stretch
from fgclip_doctor.terms import falling
from fgclip_doctor_checks.causes import explaining


@check("FGD504", "loss-noise-is-sampling", Severity.INFO)
def loss_noise_is_sampling(run: Run, *, least: float = 0.3, points: int = 5) -> Iterator[Finding]:
    """A loss looks as if it oscillated, and is only noisy: each value is the mean of a few anchors.

    Why: a contrastive loss over n anchors has a standard deviation that falls with the root of n alone. With 4 anchors
    and 132 candidates at scale 14.3 it is 0.30 a forward, so 4.5 and 5.5 are neighbours; no optimizer is at work there.
    Evidence: a log with known candidates and scale: the spread of its values since anything happened is at most twice
    the null noise of one forward (regions differ in number), and no less than a third of that of all forwards which one
    value may average, and it doesn't fall; over 16 values, neighbours are no more alike than others; two spreads
    either way are `least` nats.
    Benign: this is the benign reading itself. Slow swings and a growing noise are FGD503.
    Fix: nothing to fix in the optimizer: a lower learning rate or clipping won't calm it. Log means over more steps;
    four times the anchors a step halve it. Accumulation does so too, and adds no negatives.
    Sources: fgclip_doctor.theory derives the null noise; HobbitLong/SupContrast#45 (the loss looks saturated, and the
    evaluation goes on rising).
    """
    import numpy as np

    judged = 0
    for course in courses(run):
        term = course.term
        if term is None or term.scale is None or term.sigmoid:
            continue
        steps, values = stretch(run, course)
        if len(values) < points:
            continue
        judged += 1
        rest = dynamics.detrended(values)
        spread = dynamics.spread(rest) if len(values) >= 16 else float(rest.std(ddof=2))
        noise = term.null.noise
        varying = 1 / sqrt(term.candidates) if term.name == "region" else 0.0
        if 4 * spread < least or not noise / sqrt(term.accumulation) / 3 <= spread <= 2 * noise + varying:
            continue
        if len(rest) >= 16 and float(rest[1:] @ rest[:-1]) > 0.5 * float(rest @ rest):
            continue  # a running mean, or swings
        if falling(values):
            continue  # nobody minds the noise of what gets better
        low, high = np.quantile(values, [0.05, 0.95])
        yield Finding(
            message=f"The {term.name} loss goes up and down by {spread:.2g}, between {low:.2f} and {high:.2f} from "
            f"step {steps[0]} on, as means over {term.anchors:.3g} anchors a forward do: sampling noise.",
            where=term.series.name,
            evidence=(
                Evidence(
                    name="spread of the logged values",
                    value=spread,
                    expected=f"{noise / sqrt(term.accumulation):.3f} to {2 * noise + varying:.3f}",
                    why=f"null noise {noise:.3f} a forward of {term.anchors:.3g} anchors and {term.candidates:.4g} "
                    f"candidates, of which a value may average {term.accumulation}",
                    source=str(term.series.source),
                ),
            ),
            explained_by=explaining("FGD504", where=term.series.name),
        )
    if not judged:
        raise Missing("no loss was logged with known candidates and scale, and often enough")
