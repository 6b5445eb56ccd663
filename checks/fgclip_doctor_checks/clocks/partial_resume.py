"""FGD406."""

from collections.abc import Iterator

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check
from fgclip_doctor.events import learning_rate
from fgclip_doctor.schedule import begun_again
from fgclip_doctor_checks.causes import explaining


@check("FGD406", "partial-resume", Severity.WARNING)
def partial_resume(run: Run, *, tolerance: float = 0.002) -> Iterator[Finding]:
    """A resume took over some of the training's state and not the rest: Adam's step, the scheduler, the trainer's step.

    Why: a trainer that finds the optimizer without the scheduler, or the reverse, may start both afresh without a word:
    the learning rate is at its peak again, and Adam's moments are gone.
    Evidence: the largest step of Adam's state, last_epoch of the scheduler, and the trainer's global_step, where they
    disagree; a logged learning rate that, on its way down, goes back to what it was at the start, record for record.
    Benign: a scheduler that advances once per process (a whole multiple); a loop whose step counts micro-batches (the
    accumulation's multiple of Adam's, or any where that isn't known); parameters that are updated less often; steps
    that float16 skipped; a scheduler that counts evaluations; weights saved alone. A schedule with restarts, which
    begins again at the end of a cycle and not half-way down; a restart that is planned; a log that starts at step 1
    again, of another run.
    Fix: resume from a checkpoint that holds optimizer, scheduler and trainer state, or start a new run from its weights
    on purpose, with its own warmup. The trainer compares a few arguments on a resume (batch, steps of logging, saving
    and evaluation), and never the rate, the schedule, the losses' weights or the data.
    Sources: transformers.Trainer._load_optimizer_and_scheduler (needs both files); accelerate's AcceleratedScheduler.
    """
    again = begun_again(run)
    try:
        disagreeing = list(_saved(run, tolerance))
    except Missing:
        if learning_rate(run) is None:
            raise
        disagreeing = []
    yield from disagreeing
    if again and not disagreeing:
        yield Finding(
            message=f"The learning rate had come down to {again.before:.3g}, and at step {again.step} it begins again, "
            f"at {again.after:.3g}, and comes to {again.peak:.3g}: the run was resumed without its schedule.",
            where=again.source.key or "learning rate",
            evidence=(
                Evidence(
                    name="learning rate",
                    value=again.after,
                    expected=f"about {again.before:.3g}",
                    why=f"where it had come to; {again.records} records from there on are those of the start",
                    source=str(again.source),
                    step=again.step,
                ),
            ),
        )


def _saved(run: Run, tolerance: float) -> Iterator[Finding]:
    """The clocks of the latest checkpoint, where they disagree."""
    checkpoint = run.checkpoint
    step = checkpoint.trainer_step
    if step is None:
        raise Missing("no trainer state, which would tell the step")
    adam = checkpoint.optimizer.step if checkpoint.optimizer else None
    scheduler = checkpoint.scheduler or {}
    epoch = None if "num_bad_epochs" in scheduler else scheduler.get("last_epoch")
    if isinstance(epoch, bool) or not isinstance(epoch, int):
        epoch = None
    if adam is None and epoch is None:
        raise Missing("neither the optimizer's step nor the scheduler's was saved")
    if adam and _multiple(step, adam, 2, run.number("accumulation", round(step / adam))):
        step = adam
    allowed = max(2, tolerance * step)
    fp16 = "fp16" not in run.facts or bool(run.facts["fp16"].value)  # unknown: it may be
    skipped = max(allowed, 50, 0.1 * step) if fp16 else allowed
    wrong = []
    if adam is not None and not -allowed <= step - adam <= skipped:
        wrong.append(("Adam's step", adam, checkpoint.optimizer.source if checkpoint.optimizer else checkpoint.path))
    if (
        epoch is not None
        and not -allowed <= step - epoch <= skipped
        and not _multiple(epoch, step, allowed, round(epoch / max(step, 1)))
    ):
        wrong.append(("the scheduler's last_epoch", epoch, f"{checkpoint.path}: last_epoch"))
    if wrong:
        yield Finding(
            message=f"The trainer is at step {step}, but "
            + " and ".join(f"{what} is {value}" for what, value, _ in wrong)
            + ": the run was resumed without the rest of its state.",
            where=checkpoint.path,
            evidence=tuple(
                Evidence(name=what, value=value, expected=step, why="global_step", source=str(source), step=step)
                for what, value, source in wrong
            ),
            explained_by=explaining("FGD406"),
        )


def _multiple(count: int, step: int, allowed: float, times: float) -> bool:
    """Whether a counter advanced `times` per step, two or more."""
    return times >= 2 and abs(count - times * step) <= allowed * times
