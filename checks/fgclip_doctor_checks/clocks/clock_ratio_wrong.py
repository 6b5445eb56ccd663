"""FGD402."""

import re
from collections.abc import Iterator
from math import ceil

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check
from fgclip_doctor.bank import forwards

FORWARDS = re.compile(r"forward|fwd|micro", re.IGNORECASE)  # a counter that is meant to count them


@check("FGD402", "clock-ratio-wrong", Severity.WARNING)
def clock_ratio_wrong(run: Run, *, tolerance: float = 0.02) -> Iterator[Finding]:
    """The forwards and the optimizer's steps are not in the ratio of the configured accumulation.

    Why: whatever is timed by a counter of forwards (a bank's warmup, a schedule) then runs in a clock that nobody
    meant. A ratio of 1 counts steps, where forwards were meant; twice the accumulation counts the second forward of
    gradient checkpointing. Where the steps themselves come too soon, the batch of each is smaller than it was meant to
    be, and the schedule shorter.
    Evidence: a recording's own clocks, where both forwards and backward passes are too few for a step; and the model's
    counter over the steps, between the first and the last checkpoint where there are two.
    Benign: an epoch whose last accumulation is short, as far as the sizes allow it; evaluation forwards, up to half as
    many again; an accumulation in progress; a counter of optimizer steps, unless its name or the configuration says
    that it counts forwards. A recording with more forwards or backward passes for a step: several views
    or losses, or steps that a gradient scaler skipped.
    Fix: step once after all micro-batches of an accumulation; count in training mode only, outside of checkpointed
    code, once per forward; or time by the trainer's step.
    Sources: torch.utils.checkpoint (the forward runs again in backward); transformers.Trainer (the last accumulation of
    an epoch may be short).
    """
    accumulation = run.number("accumulation")
    if not accumulation >= 1:
        raise Missing(f"an accumulation of {accumulation:g} makes no sense")
    if (early := _steps_too_soon(run, accumulation, tolerance)) is not None:
        yield early
        return
    counter = run.roles.get("clock.forwards", "")
    seen = [
        (one.trainer_step if one.trainer_step is not None else one.step, count)
        for one in run.checkpoints
        if (count := forwards(run, one)) is not None
    ]
    known = [(step, count) for step, count in seen if step]
    if not known and run.recording and run.recording.first.clocks.get("steps"):
        return
    if not known:
        raise Missing("the model keeps no counter of forwards, or the step isn't known")
    first, last = known[0] if len(known) > 1 and known[0][0] < known[-1][0] else (0, 0), known[-1]
    steps, count = last[0] - first[0], last[1] - first[1]
    ratio = count / steps
    highest = accumulation * (1.5 if any(name.startswith("eval") for name in run.series) else 1 + tolerance)
    slack = accumulation / steps
    if abs(ratio - 1) <= tolerance + 1 / steps and not _meant_as_forwards(run, counter):
        return
    exact = _explanation(run, ratio, accumulation, slack)
    if _lowest(run, accumulation) * (1 - tolerance) - slack <= ratio <= highest + slack or (
        ratio > highest and highest > accumulation * (1 + tolerance) and not exact
    ):
        return
    yield Finding(
        message=f"{counter} counts {ratio:.3g} forwards an optimizer step, where the accumulation is {accumulation:g}"
        f"{': ' + exact if exact else ''}.",
        where=counter,
        evidence=(
            Evidence(
                name="forwards per step",
                value=round(ratio, 3),
                expected=accumulation,
                why=f"{count} forwards in {steps} steps",
                source=str(run.tensors[counter].source) if counter in run.tensors else counter,
                step=last[0],
            ),
        ),
    )


def _meant_as_forwards(run: Run, counter: str) -> bool:
    """Whether its name, or the declared clock of the bank, says so; else one that ticks once a step counts steps."""
    clock = run.facts.get("bank_clock")
    named = FORWARDS.search(counter.rpartition(".")[2]) is not None
    return named or (clock is not None and clock.value == "forward")


def _steps_too_soon(run: Run, accumulation: float, tolerance: float) -> Finding | None:
    """By the clocks of a recording, each of which was counted by itself."""
    clocks = run.recording.first.clocks if run.recording else {}
    steps = clocks.get("steps", 0)
    if run.recording is None or not steps:
        return None
    forwards_seen, backwards = clocks.get("forwards", 0), clocks.get("backwards", 0)
    ratio = max(forwards_seen, backwards) / steps
    if not 0 < ratio < _lowest(run, accumulation) * (1 - tolerance) - accumulation / steps:
        return None
    return Finding(
        message=f"The optimizer steps after {ratio:.3g} forwards, where the accumulation is {accumulation:g}: each "
        f"update sees {ratio / accumulation:.0%} of the samples that it was meant to see.",
        where="optimizer.step",
        evidence=(
            Evidence(
                name="forwards per step",
                value=round(ratio, 3),
                expected=accumulation,
                why=f"{forwards_seen} forwards and {backwards} backward passes in {steps} steps",
                source=run.recording.first.path,
                step=steps,
            ),
        ),
    )


def _lowest(run: Run, accumulation: float) -> float:
    """The least forwards per step that short accumulations at the ends of epochs can explain."""
    if {"dataset_size", "micro_batch"} <= run.facts.keys() and run.number("micro_batch") > 0:
        batches = ceil(run.number("dataset_size") / run.number("micro_batch") / max(run.number("world_size", 1.0), 1.0))
        return batches / ceil(batches / accumulation) if batches else 1.0
    if {"max_steps", "num_epochs"} <= run.facts.keys() and run.number("num_epochs") > 0:
        steps = run.number("max_steps") / run.number("num_epochs")
        return ((steps - 1) * accumulation + 1) / steps if steps > 1 else 1.0
    return (accumulation + 1) / 2  # epochs of unknown length: one accumulation and a batch at least


def _explanation(run: Run, ratio: float, accumulation: float, slack: float) -> str:
    world = run.number("world_size", 1.0)
    told = [(1.0, "it counts optimizer steps"), (2 * accumulation, "gradient checkpointing runs each forward twice")]
    if world > 1:
        told.append((world * accumulation, f"it counts the forwards of all {world:g} ranks"))
        told.append((accumulation / world, f"the accumulation is shared between {world:g} ranks"))
    return next((why for value, why in told if abs(ratio - value) <= 0.01 * value + min(slack, 0.1 * value)), "")
