"""FGD401."""

import re
from collections.abc import Iterator
from math import isclose

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check
from fgclip_doctor.bank import forwards, switched_off
from fgclip_doctor.recorded import Rank
from fgclip_doctor.run import Checkpoint
from fgclip_doctor_checks.causes import explaining

FORWARDS = re.compile(r"forward|micro", re.IGNORECASE)


@check("FGD401", "warmup-in-wrong-clock", Severity.WARNING)
def warmup_in_wrong_clock(run: Run, *, rise: float = 0.25, soon: int = 10) -> Iterator[Finding]:
    """The memory bank's warmup is meant in one clock and compared with a counter of another.

    Why: with gradient accumulation a step is several forwards. A warmup of 50 steps that is compared with a counter of
    forwards is over after 50 / accumulation steps, when the features are still moving; the reverse comes too late.
    Evidence: a recording, which saw at which forward and step candidates joined a loss. Else what the model's counter
    counts (its value over the step), beside the warmup and its declared clock; a
    bank that was in use before the step at which its warmup should end, or a loss that rises where it ends in forwards;
    a counter called steps that counts forwards, beside a bank that was never used.
    Benign: a warmup whose clock is declared to be forwards, or that makes sense in them: a whole number of
    accumulations that lasts `soon` steps and half of the learning rate's warmup; a bank that is seen to wait for the
    right step, by its pointer or by the loss rising there; one that fills during its warmup.
    Fix: compare the warmup with the trainer's global_step, or multiply it by the accumulation, and name its clock.
    Sources: transformers.TrainerState.global_step counts optimizer updates; Wang et al. 2020 (XBM's start iteration).
    """
    if switched_off(run):
        raise Missing("the configuration switches the memory bank off")
    if run.recording is not None and run.recording.first.sites:
        yield from _seen(run, run.recording.first, soon)
        return
    warmup, accumulation = run.number("bank_warmup"), run.number("accumulation")
    counts = [(one, step, count) for one in run.checkpoints if (step := one.step) and (count := forwards(run, one))]
    if not counts:
        raise Missing("the model keeps no counter of its own, or the step isn't known")
    if not accumulation >= 2 or not warmup > 0:
        return  # a step is a forward
    clock, counter = run.facts.get("bank_clock"), run.roles["clock.forwards"]
    declared = clock.value if clock else None
    last, step, count = counts[-1]
    ratio = count / step
    if ratio < 1.1 and declared == "forward":
        message = (
            f"The bank's warmup of {warmup:g} forwards is compared with {counter}, which counts optimizer steps: it "
            f"ends at step {warmup:g}, not {warmup / accumulation:g}."
        )
    elif (
        declared == "forward"
        or ratio < (1 + accumulation) / 2
        or (declared is None and not _in_steps(run) and not _odd(run, warmup, accumulation, soon))
        or _waited(run, warmup, rise)
    ):
        return
    elif early := _early(run, warmup):
        message = (
            f"The bank was in use at step {early}, before its warmup of {warmup:g} steps was over: "
            f"the warmup is compared with {counter}, which counts forwards, and ends at step {warmup / accumulation:g}."
        )
    elif _rises(run, warmup / accumulation, rise):
        message = (
            f"The region loss rises at step {warmup / accumulation:g}, as where a bank joins, and not at step "
            f"{warmup:g}: the bank's warmup is compared with {counter}, which counts forwards."
        )
    elif declared is None and _used(run, last):  # the counter may be no more than a statistic
        raise Missing("the bank is in use, but nothing shows since when")
    elif declared is None and not FORWARDS.search(counter):
        message = (
            f"{counter} counts forwards ({ratio:.3g} a step), so the bank's warmup of {warmup:g} steps ends at step "
            f"{warmup / accumulation:g}; {warmup:g} steps are {warmup * accumulation:g} forwards."
        )
    else:
        return
    yield Finding(
        message=message,
        where=counter,
        evidence=(
            Evidence(
                name="counter per optimizer step",
                value=round(ratio, 3),
                expected=accumulation if declared == "forward" else 1,
                why=f"{counter} is {count} at step {step}; the accumulation is {accumulation:g}",
                source=str(last.tensors[counter].source),
                step=step,
            ),
            Evidence(
                name="warmup of the bank",
                value=warmup,
                why=f"clock: {declared or 'not declared'}",
                source=str(run.fact("bank_warmup").source),
            ),
        ),
        explained_by=explaining("FGD401"),
    )


def _seen(run: Run, rank: Rank, soon: int) -> Iterator[Finding]:
    """By the forward and the step at which candidates joined a loss, whatever counts in there."""
    warmup, forwards_done, steps_done = run.number("bank_warmup"), rank.clocks["forwards"], rank.clocks["steps"]
    accumulation = round(forwards_done / steps_done) if steps_done else 1
    if accumulation < 2 or not warmup > 0:
        return  # a step is a forward
    joined, fact = rank.joined, run.fact("bank_warmup")
    if joined is None:
        raise Missing("no candidates have joined a loss so far")
    declared = run.facts["bank_clock"].value if "bank_clock" in run.facts else None
    in_steps = abs(joined.step - warmup) <= 2 + 0.1 * warmup
    in_forwards = abs(joined.forward - warmup) <= accumulation + 1 + 0.02 * warmup
    if in_steps == in_forwards or (declared == "forward") == in_forwards:
        return
    if in_forwards and declared is None and not _in_steps(run) and not _odd(run, warmup, accumulation, soon):
        return
    seen, meant = ("forwards", "steps") if in_forwards else ("steps", "forwards")
    ends = warmup / accumulation if in_forwards else warmup * accumulation
    yield Finding(
        message=f"Candidates joined the loss at step {joined.step}, which is forward {joined.forward}: the bank's "
        f"warmup of {warmup:g} {meant} is counted in {seen}, and ends {accumulation} times too "
        f"{'soon' if in_forwards else 'late'}.",
        where=fact.source.key,
        evidence=(
            Evidence(
                name="step at which candidates joined",
                value=joined.step,
                expected=warmup if in_forwards else warmup / accumulation,
                why=f"it was forward {joined.forward}, and there are {accumulation} a step; a warmup of {warmup:g} "
                f"{seen} ends at {'step' if in_forwards else 'forward'} {ends:g}",
                source=f"{rank.path}: columns",
                step=joined.step,
            ),
            Evidence(
                name="warmup of the bank",
                value=warmup,
                why=f"clock: {declared or 'not declared'}",
                source=str(fact.source),
            ),
        ),
    )


def _in_steps(run: Run) -> bool:
    """Whether the warmup's own name says that it is counted in steps."""
    return "step" in run.fact("bank_warmup").source.key.lower()


def _used(run: Run, checkpoint: Checkpoint) -> bool | None:
    """Whether anything was in the bank, by its pointer and its flags; None where none of them was saved."""
    names = [run.roles.get(f"bank.{role}", "") for role in ("pointer", "full", "enabled")]
    saved = [checkpoint.tensors[name].item() for name in names if name in checkpoint.tensors]
    return any(saved) if saved else None


def _early(run: Run, warmup: float) -> int | None:
    """A step at which the bank was in use: before its warmup was over in steps, after it was over in forwards."""
    used = [(one.step, forwards(run, one)) for one in run.checkpoints if _used(run, one)]
    if any(count is not None and count < warmup for _, count in used):
        return None  # it fills during its warmup
    return next((step for step, _ in used if step is not None and step + 1 < warmup), None)


def _waited(run: Run, warmup: float, rise: float) -> bool:
    """Whether the bank is seen to wait for its warmup in steps: unused after as many forwards, or by the loss."""
    for one in run.checkpoints:
        step, count = one.step, forwards(run, one)
        if _used(run, one) is False and step and count and step < warmup < count:
            return True
    return _rises(run, warmup, rise)


def _rises(run: Run, step: float, rise: float) -> bool:
    """Whether the region loss goes up at `step` by more than `rise` and four times its noise."""
    import numpy as np

    series = run.series.get(run.roles.get("loss.region", ""))
    if series is None:
        return False
    before = series.values[(series.steps <= step) & (series.steps >= step / 2 - 4)][-8:]
    after = series.values[(series.steps > step) & (series.steps <= 1.5 * step + 4)][:8]
    if before.size < 3 or after.size < 3:
        return False
    noise = float(np.sqrt(before.var(ddof=1) / before.size + after.var(ddof=1) / after.size))
    return float(after.mean() - before.mean()) > max(rise, 4 * noise)


def _odd(run: Run, warmup: float, accumulation: float, soon: int) -> bool:
    """Whether the warmup makes no sense in forwards: it ends inside an accumulation, within `soon` steps or half of the
    learning rate's warmup, or it is the schedule's own number.
    """
    schedule, steps = run.number("warmup_steps", 0.0), run.number("max_steps", 0.0)
    if any(isclose(warmup, accumulation * one) for one in (schedule, steps) if one):
        return False
    ends = warmup / accumulation
    return warmup % accumulation != 0 or isclose(warmup, schedule) or ends < max(soon, schedule / 2)
