"""FGD805: ranks that are all given the same samples."""

from collections.abc import Iterator

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check
from fgclip_doctor.ranks import agreement, compared


@check("FGD805", "ranks-see-same-batch", Severity.WARNING)
def ranks_see_same_batch(run: Run, *, steps: int = 3) -> Iterator[Finding]:
    """Every rank trains on the same samples, so all but one of them add nothing.

    Why: Without a sampler that knows the ranks, or with data drawn from one seed on all of them, each computes the same
        gradient. Where features are gathered, every positive stands among the candidates once for each rank, and the
        loss can't fall below the logarithm of their number.
    Evidence: A recording. Each rank writes a hash of what its model is given (up to 1,024 values of each tensor) at the
        first forward of a step that is looked at. It has to be the same on all ranks at every such step, `steps` of
        them or more, and another from step to step.
    Benign: Ranks that hold parts of the parameters share their batch by design (tensor and pipeline parallelism), and
        the check is skipped; so it is where the model gets the same batch at every step.
    Fix: Add a DistributedSampler and call its set_epoch, or seed whatever draws the samples with the rank added.
    Sources: PyTorch, notes on DistributedSampler (each process loads a part of its own that excludes the others');
        pytorch/pytorch#31771 (the order of a sampler on several ranks).
    """
    ranks = compared(run)
    if not all(rank.digests.get("parameters") for rank in ranks):
        raise Missing("each rank holds a part of the parameters, and may be meant to get the batch of the others")
    seen = list(agreement(ranks, "inputs"))
    if len(seen) < steps:
        raise Missing("what the ranks' models were given was compared at too few steps")
    if len({ranks[0].digests["inputs"][step] for step, _ in seen}) < 2:
        raise Missing("the model is given the same batch at every step")
    if not all(same for _, same in seen):
        return
    world = ranks[0].world_size
    yield Finding(
        message=f"All {len(ranks)} recorded ranks train on the same samples: at each of {len(seen)} steps that were "
        f"compared, the model was given the same on every one, so {1 - 1 / world:.0%} of the work is wasted.",
        where="batches",
        evidence=(
            Evidence(
                name="steps at which the ranks' inputs differ",
                value=0,
                expected=len(seen),
                why="hashes of what the model is given at the first forward of a step; they change from step to step",
                source=", ".join(rank.path for rank in ranks),
                step=seen[-1][0],
            ),
        ),
    )
