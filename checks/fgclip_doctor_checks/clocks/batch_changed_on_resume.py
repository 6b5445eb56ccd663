"""FGD409."""

from collections.abc import Iterator
from itertools import pairwise

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check

COUNTED = {"micro_batch": "samples a forward", "accumulation": "forwards a step", "world_size": "ranks"}


@check("FGD409", "batch-changed-on-resume", Severity.INFO)
def batch_changed_on_resume(run: Run) -> Iterator[Finding]:
    """The run went on with another batch, accumulation or number of ranks than it had before.

    Why: with another micro-batch or number of ranks an anchor has other candidates, and the loss another level; with
    another whole batch the same step is another place in the data and in the schedule, so samples are seen again or
    left out. Losses before and after are not comparable.
    Evidence: what was configured in two checkpoints of the run.
    Benign: a change that is meant, as to another machine: this is no warning. Ranks and accumulation changed against
    each other leave the whole batch as it was.
    Fix: compare learnt bits, not losses, across the change; declare it in the plan (candidates); start a new run from
    the weights where the schedule should fit the new batch.
    Sources: transformers.Trainer (compare_trainer_and_checkpoint_args); huggingface/accelerate#2823.
    """
    known = [one for one in run.checkpoints if "micro_batch" in one.facts]
    if len(known) < 2:
        raise Missing("fewer than two checkpoints say what batch was configured")
    for before, after in pairwise(known):
        changed = [
            (what, before.facts[name].value, after.facts[name])
            for name, what in COUNTED.items()
            if name in before.facts and name in after.facts and before.facts[name].value != after.facts[name].value
        ]
        if changed and not any((before.step or 0) <= step <= (after.step or 0) for step in run.plan.candidates):
            listed = ", ".join(f"{what} from {old:g} to {fact.value:g}" for what, old, fact in changed)
            yield Finding(
                message=f"Between {before.path} and {after.path} the run went on with other {listed}.",
                where=after.path,
                evidence=tuple(
                    Evidence(name=what, value=fact.value, expected=old, source=str(fact.source), step=after.step)
                    for what, old, fact in changed
                ),
            )
