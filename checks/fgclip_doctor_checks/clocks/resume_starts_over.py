"""FGD410: a command that should go on, and starts over."""

from collections.abc import Iterator

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check
from fgclip_doctor.run import Series

CLOCKS = {
    "clock.forwards": "the count of forwards",
    "bank.full": "the flag of a full bank",
    "bank.pointer": "the pointer",
}


@check("FGD410", "resume-starts-over", Severity.ERROR)
def resume_starts_over(run: Run, *, moves: float = 3.0) -> Iterator[Finding]:
    """A run that is resumed starts a clock over: Adam's steps, the learning rate, a scale or the bank.

    Why: The weights go on and what belongs to them does not: the learning rate is at its warmup or its peak again,
        Adam's moments are gone, the bank is empty. The loss jumps at each resume, and the steps until it is back are
        lost.
    Evidence: Two recordings (`gate --resume`): the first step of the second command beside the first command's at the
        step of its checkpoint. A rate or a scale has to be where the first command began, and further off than
        `moves` of its largest steps; a counter has to be less than it was.
    Benign: A constant rate tells nothing. A restart of the schedule that the plan declares. Weights that are loaded on
        purpose as a new run's start: that is no resume.
    Fix: Save and load optimizer, scheduler, step and every buffer of the bank, and load them after they are made.
    Sources: transformers.Trainer._load_optimizer_and_scheduler (without both files it loads neither);
        pytorch.org/tutorials/beginner/saving_loading_models.html (a general checkpoint for resuming).
    """
    if run.resumed is None:
        raise Missing("nothing was resumed; `gate --resume COMMAND` does it")
    before, after = run.watched.first, run.resumed.watched.first
    saved = run.series.get("saved")
    if saved is None:
        raise Missing("no checkpoint was seen to be written")
    step = int(saved.steps[-1])
    if before.updates_before is not None and after.updates_before is not None:
        if before.updates_before < step and not after.updates_before:
            yield _finding("Adam's count of steps", 0, before.updates_before + step, "its state", after.path, step)
        else:
            step = min(max(after.updates_before - before.updates_before, 1), run.watched.step)
    told = [("learning_rate", "the learning rate", step + 1)]
    told += [(name, name, step) for role, name in run.roles.items() if role.startswith("scale.")]
    for name, what, place in told:
        series, other = run.series.get(name), run.resumed.series.get(name)
        if series is None or other is None or (name == "learning_rate" and step in run.plan.restarts):
            continue
        expected, move, value = _at(series, place), _largest_move(series), float(other.values[0])
        began = float(series.values[0])
        if abs(value - expected) > moves * move > 0 and abs(value - began) <= move:
            yield _finding(what, value, expected, f"it began at {began:.4g}", after.path, step)
    for role, what in CLOCKS.items():
        name = run.roles.get(role, "")
        series, other = run.series.get(name), run.resumed.series.get(name)
        if series is None or other is None or (series.values[1:] < series.values[:-1]).any():
            continue  # a ring that has turned round tells nothing
        value, expected = float(other.values[0]), _at(series, step)
        if value < expected and not _may_turn(run, role, series, expected):
            yield _finding(what, value, expected, name, after.path, step)


def _at(series: Series, step: int) -> float:
    """The value at a step, or at the last before it."""
    import numpy as np

    return float(series.values[max(int(np.searchsorted(series.steps, step, side="right")) - 1, 0)])


def _largest_move(series: Series) -> float:
    import numpy as np

    return float(np.abs(np.diff(series.values)).max(initial=0.0))


def _may_turn(run: Run, role: str, series: Series, at: float) -> bool:
    """Whether a pointer may have come round at the next step."""
    rows = [
        length for key in ("bank.image_keys", "bank.text_keys") if run.has_role(key) for length in run.role(key).shape
    ]
    return role == "bank.pointer" and at + 2 * _largest_move(series) >= max(rows, default=0)


def _finding(what: str, value: float, expected: float, why: str, source: str, step: int) -> Finding:
    return Finding(
        message=f"Resumed from step {step}, {what} starts over: it is {value:.4g} where {expected:.4g} was "
        "reached. The steps until it is there again are wasted.",
        where=what,
        evidence=(
            Evidence(
                name=what,
                value=value,
                expected=expected,
                why=f"as the first command had it at step {step}; {why}",
                source=source,
                step=step,
            ),
        ),
    )
