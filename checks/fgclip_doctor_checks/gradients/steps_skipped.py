"""FGD113."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check, dynamics
from fgclip_doctor.run import Series
from fgclip_doctor_checks.causes import explaining

COUNT = re.compile(
    r"(?:.*[/_.])?(?:skipped(?:_(?:steps?|iters?|iterations?|updates?))?|(?:num_)?overflows?)", re.IGNORECASE
)
SCALE = re.compile(r"(?:.*[/_.])?(?:loss|grad|amp|scaler)[/_.]scale", re.IGNORECASE)
FELL = 256.0  # times as low as it was: eight halvings


@dataclass(frozen=True, slots=True)
class _Skipped:
    """Steps that were skipped, of how many: late in the run, or in all but what calibrates the scale."""

    count: float
    of: float
    what: str
    source: str


@check("FGD113", "steps-skipped", Severity.WARNING)
def steps_skipped(run: Run, *, share: float = 0.05, calibrating: int = 20) -> Iterator[Finding]:
    """Many optimizer steps are skipped, as their float16 gradients overflow: those batches teach nothing.

    Why: a dynamic loss scale skips a step at each overflow and halves. If gradients are not finite whatever the scale,
    it comes down to 1 and every step is skipped, while the loss is logged and the step is counted as ever.
    Evidence: a recording's count of skipped steps, or the one that DeepSpeed saves; a count in the log, as DeepSpeed
    prints it, or its lines that say so, over the second half of the run; of two float16 checkpoints, what Adam's step
    falls behind the trainer's between them; a logged loss scale that has come down to 1.
    Benign: the first `calibrating` skips, that find the scale (16 halvings from 2^16); one skip for each time that the
    scale grows, every 100 to 2,000 steps; a loss scale that is 1 throughout, as in bfloat16; a trainer whose step
    counts micro-batches, a whole multiple of Adam's.
    Fix: use bfloat16; else look for what overflows: a logit scale over 100, a norm without an epsilon, parameters that
    are float16 themselves. A larger initial scale or a longer window only skips more.
    Sources: microsoft/DeepSpeed#697 (reduced to 1, nothing is learnt), #931; torch.amp.GradScaler (growth_interval).
    """
    seen = [*_counts(run, calibrating), *_logged(run, calibrating), *_between(run)]
    scales = [one for name, one in run.series.items() if SCALE.fullmatch(name) and len(one.values) > 4]
    if not seen and not scales:
        raise Missing("nothing counts skipped steps, and no loss scale of float16 was logged")
    for one in seen:
        if one.count > share * one.of:
            yield _finding(one)
            return
    for series in scales:
        _, values = dynamics.finite(series.steps, series.values)
        if len(values) > 4 and values.max() >= FELL and values[-(len(values) // 4 + 1) :].max() <= 1:
            yield Finding(
                message=f"float16's loss scale has come down from {values.max():g} to {values[-1]:g}: gradients "
                "overflow at any scale, and each overflow costs a step.",
                where=series.name,
                evidence=(
                    Evidence(
                        name="loss scale",
                        value=float(values[-1]),
                        expected="well over 1",
                        why="it halves at each overflow, and small gradients are lost at 1",
                        source=str(series.source),
                        step=int(series.steps[-1]),
                    ),
                ),
                explained_by=explaining("FGD113"),
            )


def _finding(one: _Skipped) -> Finding:
    return Finding(
        message=f"{one.count:g} of {one.of:g} optimizer steps {one.what} were skipped: their batches taught nothing.",
        where="optimizer steps",
        evidence=(
            Evidence(
                name="skipped steps",
                value=one.count,
                expected="about one in 1,000",
                why="a dynamic loss scale overflows each time that it grows, and seldom else",
                source=one.source,
            ),
        ),
        explained_by=explaining("FGD113"),
    )


def _counts(run: Run, calibrating: int) -> Iterator[_Skipped]:
    """What gradient scalers skipped in all, as a recording counted, or DeepSpeed when it saved."""
    told = f"(without the first {calibrating})"
    for rank in run.recording.ranks[:1] if run.recording else ():
        if skipped := rank.clocks.get("skipped", 0):
            yield _Skipped(max(skipped - calibrating, 0), rank.clocks.get("steps", 0) + skipped, told, rank.path)
    if run.checkpoints and (fact := run.checkpoint.facts.get("skipped_steps")) and run.step:
        yield _Skipped(max(fact.value - calibrating, 0), run.step, told, str(fact.source))


def _logged(run: Run, calibrating: int) -> Iterator[_Skipped]:
    """The second half of the run, by a count or by lines."""
    import numpy as np

    bfloat16 = "bf16" in run.facts and run.facts["bf16"].value
    for name, series in run.series.items() if not bfloat16 else ():
        if COUNT.fullmatch(name) and len(series.values) > 4:
            yield from _counted(series)
    said = run.said("step-skipped")
    last = max((int(one.steps[-1]) for one in run.series.values() if len(one.steps)), default=0)
    if said and last:
        late = int(np.count_nonzero(said.steps > last / 2)) if len(said.steps) > calibrating else 0
        yield _Skipped(min(late, last - last // 2), last - last // 2, f"after step {last // 2}", str(said.source))


def _counted(series: Series) -> Iterator[_Skipped]:
    import numpy as np

    steps, values = dynamics.finite(series.standing.steps, series.standing.values)
    half = int(np.searchsorted(steps, (steps[0] + steps[-1]) / 2)) if len(steps) > 4 else 0
    if half and (np.diff(values) >= 0).all():  # counted from the start of the run on
        count, of = float(values[-1] - values[half]), float(steps[-1] - steps[half])
        if count <= of:  # else it counts something else, as samples
            yield _Skipped(count, of, f"after step {steps[half]}", str(series.source))


def _between(run: Run) -> Iterator[_Skipped]:
    """What Adam falls behind the trainer from one checkpoint to the next, in float16."""
    if "fp16" not in run.facts or not run.facts["fp16"].value:
        return
    known = [
        (one.trainer_step, one.optimizer.step, one.path)
        for one in run.checkpoints
        if one.trainer_step is not None and one.optimizer is not None and one.optimizer.step is not None
    ]
    for (step, adam, _), (later, adam_later, path) in pairwise(known):
        times = round(later / max(adam_later, 1))  # of a trainer that counts micro-batches
        multiple = times > 1 and abs(later - times * adam_later) <= max(2, 0.01 * later)
        if adam <= adam_later and step < later and adam <= step and not multiple:
            yield _Skipped(max(later - step - (adam_later - adam), 0), later - step, f"after step {step}", path)
