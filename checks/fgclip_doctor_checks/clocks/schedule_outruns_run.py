"""FGD405."""

from collections.abc import Iterator
from math import cos, pi
from typing import Any

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check, dynamics
from fgclip_doctor.events import learning_rate
from fgclip_doctor.run import Checkpoint, Fact, Series

NOTHING = 1e-6  # of the peak: a learning rate that no weight notices

FEWEST = 5  # records that make a line, or that tell that a rate stays at 0
WATCHED = 2  # of those of a watched run, which are exact and further apart
RUNNING = 3  # records at which a schedule has to be where it is some steps later
NEAR = 0.02  # of the peak
STRAIGHT = 1e-3  # of the last rate


@check("FGD405", "schedule-outruns-run", Severity.WARNING)
def schedule_outruns_run(run: Run, *, early: float = 0.1, off: float = 0.05, shortest: int = 50) -> Iterator[Finding]:
    """The learning rate's schedule does not fit the run: a warmup that never ends, or an end that comes too soon.

    Why: a schedule is made for a number of steps. Advanced once per micro-batch or once per rank, it is over after a
    fraction of the run, and the rest trains at a rate of 0; a warmup as long as the run never reaches the peak.
    Evidence: the configured warmup (that of the memory bank, too) and length; a logged rate that rises to the very end
    of the run, or is 0 for `early` of it; the saved scheduler's count beside the trainer's step, where its rate is off
    by `off` of the peak from what the named schedule has at that step. Of a watched run, already in its first steps: a
    warmup whose line reaches the peak after the end of the run; a rate that is where the named schedule is later on.
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
    if steps is not None and steps.value < shortest:
        raise Missing(f"a run of {steps.value:g} steps is a try-out of a longer one")
    if steps is not None:
        yield from _warmups(run, steps)
        for one in saved:
            if found := _ahead(run, one, steps, off):
                yield found
                return
        if found := _early(run, steps, off):
            yield found
            return
    if rates is not None:
        yield from _logged(run, early)


def _warmups(run: Run, length: Fact) -> Iterator[Finding]:
    """The warmups that are configured to be no shorter than the run."""
    schedule, clock = run.facts.get("schedule"), run.facts.get("bank_clock")
    forwards = clock is not None and clock.value == "forward"
    unit = run.number("accumulation", 1.0) if forwards else 1.0
    off = "bank_enabled" in run.facts and not run.facts["bank_enabled"].value
    kinds = [("warmup_steps", "The learning rate's warmup", 1.0, schedule is not None and schedule.value == "constant")]
    kinds += [("bank_warmup", "The memory bank's warmup", unit, off or run.plan.bank_on is not None)]
    for name, what, per_step, meant in kinds:
        warmup = run.facts.get(name)
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
    schedule = run.facts.get("schedule")
    expected = _named(str(schedule.value) if schedule else "", step, run.number("warmup_steps", 0.0), length.value)
    if not isinstance(count, int) or factor is None or expected is None or count < 1.5 * step:
        return None
    if abs(factor - expected) <= off:
        return None
    ratio = count / step
    return Finding(
        message=f"At step {step} of {length.value:g} the schedule is at its step {count}{_because(run, ratio)}: the "
        f"learning rate is at {factor:.1%} of its peak instead of {expected:.1%}.",
        where=f"{checkpoint.path}: last_epoch",
        evidence=(
            Evidence(
                name="learning rate over its peak",
                value=round(factor, 4),
                expected=round(expected, 4),
                why=f"a {schedule.value if schedule else ''} schedule at step {step}; last_epoch is {count}",
                source=checkpoint.path,
                step=step,
            ),
        ),
    )


def _early(run: Run, length: Fact, off: float) -> Finding | None:
    """Of a watched run, long before its end: a warmup that will not be over by then, or a schedule that runs ahead."""
    import numpy as np

    series = learning_rate(run)
    optimizer = run.checkpoints[-1].optimizer if run.checkpoints else None
    peak = optimizer.groups[0].options.get("initial_lr") if optimizer is not None and optimizer.groups else None
    if run.recording is None or series is None or not isinstance(peak, (int, float)) or not peak > 0:
        return None
    steps, values = dynamics.by_step(series.steps, series.values)
    factors = values / peak
    if len(steps) < FEWEST or steps[-1] > length.value:
        return None
    middle = len(steps) // 2
    slope = (factors[middle] - factors[0]) / (steps[middle] - steps[0])
    line = factors[0] + slope * (steps - steps[0])
    straight = np.abs(line - factors).max() <= STRAIGHT * factors[-1] and (np.diff(factors) > 0).all()
    if straight and factors[-1] < 1 and (over := steps[-1] + (1 - factors[-1]) / slope) >= length.value:
        message = f"By step {steps[-1]} the learning rate has warmed up to {factors[-1]:.1%} of its peak. On this line "
        message += f"it gets there at step {over:.0f}, and the run has {length.value:g}: its warmup is never over."
        why = f"under the run's length, {length.source}: a line through {len(steps)} records"
        return _seen("end of the warmup", round(over), length.value, why, series, message)
    clocks = run.recording.ranks[0].clocks
    pace = clocks.get("scheduler_steps", 0) / max(clocks.get("steps", 0), 1)
    schedule, warmup = run.facts.get("schedule"), run.number("warmup_steps", 0.0)
    name = str(schedule.value) if schedule else ""
    last = [(int(step), float(factor)) for step, factor in zip(steps[-RUNNING:], factors[-RUNNING:], strict=True)]
    meant = [_named(name, step - 1, warmup, length.value) for step, _ in last]
    if pace < 1.5 or not name or any(one is None for one in meant):
        return None
    for (step, factor), one in zip(last, meant, strict=True):
        ends = [_named(name, max(0.0, pace * (step - back)), warmup, length.value) or 0.0 for back in (0, 2)]
        if abs(factor - (one or 0.0)) <= off or not min(ends) - NEAR <= factor <= max(ends) + NEAR:
            return None
    step, factor = last[-1]
    message = f"The schedule advances {pace:.3g} times a step{_because(run, pace)}: at step {step} of {length.value:g} "
    message += f"the learning rate is at {factor:.1%} of its peak instead of {meant[-1] or 0.0:.1%}."
    why = f"a {name} schedule of {length.value:g} steps at step {step}; it is at {pace * step:g}"
    return _seen("learning rate over its peak", round(factor, 4), round(meant[-1] or 0.0, 4), why, series, message)


def _seen(name: str, value: float, expected: float, why: str, series: Series, message: str) -> Finding:
    source, step = str(series.source), int(series.steps[-1])
    evidence = Evidence(name=name, value=value, expected=expected, why=why, source=source, step=step)
    return Finding(message=message, where=series.name, evidence=(evidence,))


def _factor(saved: Any) -> float | None:
    """The learning rate over its peak, of the first group that has one."""
    peaks, rates = saved.get("base_lrs"), saved.get("_last_lr")
    pairs = zip(peaks, rates, strict=False) if isinstance(peaks, list) and isinstance(rates, list) else []
    return next((rate / peak for peak, rate in pairs if all(isinstance(x, float) for x in (peak, rate)) and peak), None)


def _named(schedule: str, step: float, warmup: float, length: float) -> float | None:
    """The learning rate over its peak that a schedule has by its name; None for one that isn't known."""
    if schedule not in ("linear", "cosine") or length <= warmup:
        return None
    if step < warmup:
        return step / warmup
    done = min(1.0, (step - warmup) / (length - warmup))
    return 1 - done if schedule == "linear" else (1 + cos(pi * done)) / 2


def _because(run: Run, ratio: float) -> str:
    """What the ratio of the two clocks is, if it is one that is known."""
    told = (("accumulation", "it advances with every micro-batch"), ("world_size", "it advances once for every rank"))
    known = [why for name, why in told if run.number(name, 1.0) > 1 and abs(ratio / run.number(name) - 1) < 0.05]
    return f" ({known[0]})" if known else ""


def _logged(run: Run, early: float) -> Iterator[Finding]:
    """A rate that rises to the end of the run, or has been 0 for long."""
    import numpy as np

    series = learning_rate(run)
    if series is None:
        return
    steps, values = dynamics.by_step(series.steps, series.values)
    length = run.number("max_steps", float(steps[-1]) if len(steps) else 0.0)
    if len(values) < 10 or values.max() <= 0:
        return
    coarse = (series.resolution or 0.0) > 1e-3 * values.max()  # so a rate that is printed as 0 may be none
    above = np.flatnonzero(values > NOTHING * values.max())
    last, zero = int(steps[above[-1]]), len(values) - 1 - int(above[-1])
    whole = steps[-1] >= 0.98 * run.number("max_steps", np.inf) and "warmup_steps" not in run.facts
    fewest = FEWEST if run.recording is None else WATCHED
    if not coarse and zero >= fewest and steps[-1] - last >= early * max(length, float(steps[-1])):
        message = f"The learning rate is 0 after step {last}, and the run goes on to step {steps[-1]}"
        because = _because(run, length / max(last, 1))
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
