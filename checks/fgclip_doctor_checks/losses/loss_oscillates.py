"""FGD503."""

from collections.abc import Iterator

from fgclip_doctor import Finding, Missing, Run, Severity, check
from fgclip_doctor.progress import courses, stretch
from fgclip_doctor.swings import growing_noise, swings
from fgclip_doctor_checks.causes import explaining


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
        found = swings(run, steps, values, turns, share, least) or growing_noise(course, steps, values, share, growing)
        if found is not None:
            yield Finding(
                message=f"The {course.name} loss {found[0]}, from step {steps[0]} to {steps[-1]}.",
                where=course.series.name,
                evidence=(found[1],),
                explained_by=explaining("FGD503", where=course.series.name),
            )
    if not judged:
        raise Missing(f"no loss was logged {points} times since the warmup and since the last thing that happened")
