"""FGD305."""

from collections.abc import Iterator
from itertools import pairwise
from math import log

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check, events
from fgclip_doctor.parts import scales
from fgclip_doctor.provenance import drift, half_ulp
from fgclip_doctor.run import Checkpoint, Series, Source, Tensor

PLAIN = {"logit_scale", "logit_bias"}  # the global ones, which are in the model from the start
STARTS = {"ln 100": log(100), "ln(1/0.07)": log(1 / 0.07), "ln 10": log(10)}


@check("FGD305", "logit-scale-reset", Severity.WARNING)
def logit_scale_reset(run: Run, *, times: float = 8.0, records: int = 8) -> Iterator[Finding]:
    """The scale of a branch was set again at a start, and what it had learnt is gone.

    Why: start-up code that makes the branch's scale anew (from the global one, or at ln 100) runs after the weights
    were loaded, on a resume too. The branch then trains at a temperature that it had left, until it finds back.
    Evidence: a scale that is where start-up code puts it, the global scale or a usual start, and further than the
    learning rates can have moved it from its value in the base or in the checkpoint before; in a log, a jump to there
    that is `times` its usual step; a loader's line in a log, that a saved scale was not taken, where the run has one of
    that name.
    Benign: a base whose branch scales have learnt nothing (equal to its global one, or at a start themselves); a base
    without such scales; a clamp.
    Fix: make the scale in the model's __init__, so that it is loaded like any weight, and set it only where the weights
    do not have it.
    Sources: 360CVGroup/FG-CLIP, train_fgclip.py (logit_scale_finegraind is made anew after from_pretrained).
    """
    compared = 0
    found: dict[str, Finding] = {}
    saved = [one for one in run.checkpoints if one.tensors]
    pairs = list(pairwise(saved))
    if run.base is not None and saved:
        pairs.insert(0, (run.base, saved[0]))
    branches = {r: t.name for r, t in scales(run).items() if r != "scale.global"} if saved else {}
    for before, after in pairs:
        for name in branches.values():
            if name in before.tensors and name in after.tensors:
                compared += 1
                if finding := _between(run, name, before, after):
                    found.setdefault(name, finding)
    logged = events.scales(run)
    plainest = min(logged, key=lambda one: len(one.name), default=None)
    for series in logged:
        if plainest is not None and series is not plainest and len(series.values) >= records:
            compared += 1
            if finding := _jump(series, plainest, times, records):
                found.setdefault(series.name, finding)
    unexpected = run.said("not-taken") if run.base is None and not found else None
    here = {name.rpartition(".")[2] for name in (*branches.values(), *(series.name for series in logged))}
    left = [one for one in unexpected.names if one.rpartition(".")[2] in here - PLAIN] if unexpected else []
    if unexpected and left:
        found[left[0]] = Finding(
            message=f"The loader did not take {', '.join(left)} from the checkpoint, and the run has made it anew: "
            "what was learnt of it is gone.",
            where=left[0],
            evidence=(
                Evidence(
                    name="saved scales that were not taken",
                    value=len(left),
                    expected=0,
                    why="the model that was loaded did not have it yet, and has it now",
                    source=str(unexpected.source),
                ),
            ),
        )
    elif not compared:
        raise Missing("no branch has a scale in two checkpoints, in a base and a checkpoint, or in a log")
    yield from found.values()


def _between(run: Run, name: str, before: Checkpoint, after: Checkpoint) -> Finding | None:
    """A scale that moved further than it can have learnt, to a place where code puts it."""
    old, new = before.tensors[name], after.tensors[name]
    until, since = drift(run, name, until=after), None if before is run.base else drift(run, name, until=before)
    reach = until.reach(new.item()) - (since.reach(new.item()) if since else 0.0)
    reach += half_ulp(old.item(), old.dtype) + half_ulp(new.item(), new.dtype)
    places = dict(STARTS)
    if global_scale := before.tensors.get(run.roles.get("scale.global", "")):
        places = {"the global scale": global_scale.item(), **places}
    if before is run.base and any(abs(old.item() - value) <= 1e-3 for value in places.values()):
        return None  # it had learnt nothing
    if old.item() > STARTS["ln 100"]:
        del places["ln 100"]  # it was clamped
    place = next((what for what, value in places.items() if abs(new.item() - value) <= reach), None)
    if abs(new.item() - old.item()) <= 1.5 * reach or place is None:
        return None
    return _finding(name, old.item(), new.item(), place, before.path, reach, until.why, new, after.step)


def _finding(
    name: str, old: float, new: float, place: str, before: str, reach: float, why: str, tensor: Tensor, step: int | None
) -> Finding:
    return Finding(
        message=f"{name} was {old:.4f} in {before}, and is {new:.4f}, as {place}: it was set again after loading.",
        where=name,
        evidence=(
            Evidence(
                name="logit scale",
                value=round(new, 5),
                expected=round(old, 5),
                why=f"it can have moved by {reach:.2g} at most: {why}",
                source=str(tensor.source),
                step=step,
            ),
        ),
    )


def _jump(series: Series, plainest: Series, times: float, records: int) -> Finding | None:
    """A logged scale that jumps to where the global one is, or to a start, from a place that it had come to."""
    import numpy as np

    steps, values = events.log_scale(series)
    others, level = events.log_scale(plainest)
    if len(values) < records or not len(level):
        return None
    moves, gaps = np.abs(np.diff(values)), np.maximum(np.diff(steps), 1)
    each = float(np.percentile(moves / gaps, 90))  # step: a recording's looks become rarer
    moved = np.flatnonzero(moves > 1e-6)  # a scale that never has can lose nothing: its stage of the run begins
    for at in np.flatnonzero(moves > times * np.maximum(each * gaps, max(series.resolution or 0.0, 1e-6))).tolist():
        usual = max(each * float(gaps[at]), series.resolution or 0.0, 1e-6)
        if at == moved[0]:
            continue
        reference = float(np.interp(steps[at + 1], others, level))
        places = {"the global scale": reference, **STARTS}
        near = next((what for what, value in places.items() if abs(values[at + 1] - value) <= 2 * usual), None)
        if near is not None:
            return _logged(
                series.name, float(values[at]), float(values[at + 1]), near, int(steps[at + 1]), usual, series.source
            )
    return None


def _logged(name: str, old: float, new: float, place: str, step: int, usual: float, source: Source) -> Finding:
    return Finding(
        message=f"{name} jumps from {old:.4f} to {new:.4f}, as {place}, at step {step}: it was set again.",
        where=name,
        evidence=(
            Evidence(
                name="logit scale",
                value=round(new, 5),
                expected=round(old, 5),
                why=f"from one record to the next it moves by {usual:.2g} at most, but for one in ten",
                source=str(source),
                step=step,
            ),
        ),
    )
