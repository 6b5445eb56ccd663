"""FGD412."""

from collections.abc import Iterator
from math import isclose

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check


@check("FGD412", "arguments-ignored-on-resume", Severity.WARNING)
def arguments_ignored_on_resume(run: Run, *, relative: float = 0.01) -> Iterator[Finding]:
    """The learning rate that was asked for is not the one that the schedule runs on: a resume brought the old one back.

    Why: optimizer.pt and scheduler.pt hold their peak rates, and restore them over whatever the new arguments say. The
    Trainer compares batch and saving steps when it resumes, and never the learning rate.
    Evidence: two checkpoints whose training_args.bin ask for different rates (by more than the share `relative`), and
    base_lrs in the later scheduler.pt, which is still the earlier one in all groups.
    Benign: groups with rates of their own. An optimizer made by hand, whose rate no argument reaches: from one
    checkpoint the two can't be told apart, so one is never enough.
    Fix: start a new run from the weights, or set the rate in both after loading, in optimizer.param_groups and in
    scheduler.base_lrs. Changing the argument alone does nothing.
    Sources: pytorch/examples#816; NVIDIA/Megatron-LM#1284; huggingface/transformers#23099.
    """
    judged = 0
    before: float | None = None  # the rate that the checkpoint before asked for
    for checkpoint in run.checkpoints:
        asked = checkpoint.facts.get("learning_rate")
        rates = (checkpoint.scheduler or {}).get("base_lrs")
        if asked is None or not isinstance(rates, (list, tuple)) or not rates:
            continue
        judged += 1
        changed = before is not None and not isclose(before, asked.value, rel_tol=relative)
        if before is not None and changed and all(isinstance(r, (int, float)) and isclose(r, before) for r in rates):
            yield Finding(
                message=f"The arguments ask for a learning rate of {asked.value:g}, and the schedule still runs on the "
                f"{before:g} of before: what was restored has won over what was asked for.",
                where="learning_rate",
                evidence=(
                    Evidence(
                        name="base learning rate of the schedule",
                        value=before,
                        expected=asked.value,
                        why=str(asked.source),
                        source=f"{checkpoint.path}: scheduler base_lrs",
                        step=checkpoint.step,
                    ),
                ),
            )
            return
        before = asked.value
    if judged < 2:
        raise Missing("no two checkpoints have both the arguments and the schedule")
