"""FGD405."""

from collections.abc import Iterator
from typing import Any

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check, dynamics, schedule
from fgclip_doctor.events import learning_rate
from fgclip_doctor.run import Checkpoint, Fact

NOTHING = 1e-6  # of the peak: a learning rate that no weight notices
FEWEST = 5  # records that tell that a rate stays at 0
WATCHED = 2  # of those of a watched run, which are exact and further apart


@check("FGD405", "schedule-outruns-run", Severity.WARNING)
def schedule_outruns_run(run: Run, *, early: float = 0.1, off: float = 0.05, shortest: int = 50) -> Iterator[Finding]:
    """The learning rate's schedule does not fit the run: a warmup that never ends, or an end that comes too soon.

    Why: a schedule is made for a number of steps. Advanced once per micro-batch or once per rank, it is over after a
    fraction of the run, and the rest trains at a rate of 0; a warmup as long as the run never reaches the peak.
    Evidence: the configured warmup (that of the memory bank, too) and length; a logged rate that rises to the very end
    of the run, or is 0 for `early` of it; the saved scheduler's count beside the trainer's step, where its rate is off
    by `off` of the peak from what the named schedule has at that step. Of a watched run, already in its first steps: a
    warmup whose line reaches the peak after the end of the run; a rate that is where the named schedule is later on,
    or that has come to its end with the scheduler's clock at the run's length and the steps far from it.
    Benign: accelerate's schedulers, which count once per rank by design: their rate is right, so the count is not held
    against them. A warmup of half the run. Restarts. A rate printed as 0.0000. A run that was stopped, or planned for
    fewer than `shortest` steps, as one that tries the settings of a longer run.
    Fix: step the scheduler once per optimizer step, and give it the number of optimizer steps; don't pass it through
    accelerator.prepare unless its length is multiplied too. To multiply a warmup by the number of processes is right
    for accelerate alone, and wrong for transformers' Trainer. warmup_ratio=0.05 keeps the warmup in proportion.
    Sources: huggingface/transformers#24088 (num_processes times too fast); Lightning-AI/pytorch-lightning#1476.
    """
    steps = run.facts.get("max_steps")
    rates = learning_rate(run)
    saved = [one for one in run.checkpoints if one.scheduler and _step(one)]
    if steps is None and rates is None:
        raise Missing("neither the length of the run nor a learning rate is known")
    if steps is not None and rates is not None and len(rates.steps) and rates.steps[-1] > (1 + off) * steps.value:
        steps = None  # the length of something else
    if steps is not None and steps.value < shortest:
        raise Missing(f"a run of {steps.value:g} steps is a try-out of a longer one")
    if steps is not None:
        configured = list(_warmups(run, steps))
        yield from configured
        for one in saved:
            if found := _ahead(run, one, steps, off):
                yield found
                return
        misfit = schedule.misfit(run, steps, off) if not configured else None
        if misfit is not None:
            yield _watched(misfit)
            return
    if rates is not None:
        yield from _logged(run, early)


def _warmups(run: Run, length: Fact) -> Iterator[Finding]:
    """The warmups that are configured to be no shorter than the run."""
    name, clock = run.facts.get("schedule"), run.facts.get("bank_clock")
    forwards = clock is not None and clock.value == "forward"
    unit = run.number("accumulation", 1.0) if forwards else 1.0
    off = "bank_enabled" in run.facts and not run.facts["bank_enabled"].value
    kinds = [("warmup_steps", "The learning rate's warmup", 1.0, name is not None and name.value == "constant")]
    kinds += [("bank_warmup", "The memory bank's warmup", unit, off or run.plan.bank_on is not None)]
    for fact, what, per_step, meant in kinds:
        warmup = run.facts.get(fact)
        if warmup is None or meant or warmup.value <= 0 or warmup.value < per_step * length.value:
            continue
        why = f"the run's length, {length.source}" + (f", at {unit:g} forwards a step" if per_step > 1 else "")
        yield Finding(
            message=f"{what} takes {warmup.value:g} {'forwards' if per_step > 1 else 'steps'}, and the run has "
            f"{per_step * length.value:g}: it is never over.",
            where=warmup.source.key,
            evidence=(
                Evidence(
                    name="warmup",
                    value=warmup.value,
                    expected=f"under {per_step * length.value:g}",
                    why=why,
                    source=str(warmup.source),
                ),
            ),
        )


def _step(checkpoint: Checkpoint) -> int:
    return checkpoint.trainer_step or checkpoint.step or 0


def _ahead(run: Run, checkpoint: Checkpoint, length: Fact, off: float) -> Finding | None:
    """A saved scheduler that has counted more than the steps, and whose learning rate shows it."""
    saved, step = checkpoint.scheduler or {}, _step(checkpoint)
    count, factor = saved.get("last_epoch"), _factor(saved)
    known = run.facts.get("schedule")
    expected = schedule.named(str(known.value) if known else "", step, run.number("warmup_steps", 0.0), length.value)
    if not isinstance(count, int) or factor is None or expected is None or count < 1.5 * step:
        return None
    if abs(factor - expected) <= off:
        return None
    because = schedule.because(run, count / step)
    return Finding(
        message=f"At step {step} of {length.value:g} the schedule is at its step {count}{because}: the "
        f"learning rate is at {factor:.1%} of its peak instead of {expected:.1%}.",
        where=f"{checkpoint.path}: last_epoch",
        evidence=(
            Evidence(
                name="learning rate over its peak",
                value=round(factor, 4),
                expected=round(expected, 4),
                why=f"a {known.value if known else ''} schedule at step {step}; last_epoch is {count}",
                source=checkpoint.path,
                step=step,
            ),
        ),
    )


def _watched(misfit: schedule.Misfit) -> Finding:
    evidence = Evidence(
        name=misfit.name,
        value=misfit.value,
        expected=misfit.expected,
        why=misfit.why,
        source=misfit.source,
        step=misfit.step,
    )
    return Finding(message=misfit.message, where="learning_rate", evidence=(evidence,))


def _factor(saved: Any) -> float | None:
    """The learning rate over its peak, of the first group that has one."""
    peaks, rates = saved.get("base_lrs"), saved.get("_last_lr")
    pairs = zip(peaks, rates, strict=False) if isinstance(peaks, list) and isinstance(rates, list) else []
    return next((rate / peak for peak, rate in pairs if all(isinstance(x, float) for x in (peak, rate)) and peak), None)


def _logged(run: Run, early: float) -> Iterator[Finding]:
    """A rate that rises to the end of the run, or has been 0 for long."""
    import numpy as np

    series = learning_rate(run)
    if series is None:
        return
    steps, values = dynamics.by_step(series.steps, series.values)
    length = max(run.number("max_steps", 0.0), float(steps[-1]) if len(steps) else 0.0)
    if len(values) < (10 if run.recording is None else FEWEST) or values.max() <= 0:
        return
    coarse = (series.resolution or 0.0) > 1e-3 * values.max()  # so a rate that is printed as 0 may be none
    above = np.flatnonzero(values > NOTHING * values.max())
    last, zero = int(steps[above[-1]]), len(values) - 1 - int(above[-1])
    whole = abs(steps[-1] / run.number("max_steps", np.inf) - 1) <= 0.02 and "warmup_steps" not in run.facts
    fewest = FEWEST if run.recording is None else WATCHED + ("max_steps" not in run.facts)
    if not coarse and zero >= fewest and steps[-1] - last >= early * length:
        message = f"The learning rate is 0 after step {last}, and the run goes on to step {steps[-1]}"
        because = schedule.because(run, length / max(last, 1))
        where = Evidence(
            name="last step with a learning rate",
            value=last,
            expected=length,
            why=f"{zero} records at under a millionth of the peak, {values.max():.3g}",
            source=str(series.source),
            step=last,
        )
        yield Finding(message=f"{message}{because}: the rest trains nothing.", where=series.name, evidence=(where,))
    elif whole and (np.diff(values) >= 0).all() and values[-1] >= 2 * values[0] and values[-1] > values[-5]:
        message = f"The learning rate rises to the last of {length:g} steps: its warmup is never over."
        where = Evidence(
            name="highest learning rate",
            value=float(values[-1]),
            expected="before the end",
            why=f"it never falls in {len(values)} records",
            source=str(series.source),
            step=int(steps[-1]),
        )
        yield Finding(message=message, where=series.name, evidence=(where,))
