"""FGD802: ranks that train different models."""

from collections.abc import Iterator

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check
from fgclip_doctor.ranks import agreement, compared


@check("FGD802", "ranks-diverge", Severity.ERROR)
def ranks_diverge(run: Run, *, steps: int = 3) -> Iterator[Finding]:
    """The parameters differ between ranks, so each trains a model of its own, and one of them is saved.

    Why: Gradients are averaged by what wraps the model. Whoever calls the module inside (`model.module.encode_image`)
        goes around it, no error says so, and the work of all ranks but the one that saves is lost.
    Evidence: A recording. Each rank writes a hash of its parameters, of up to 1,024 values of each, whenever it looks
        at a step: in a sound run the same on all of them, to the bit. They have to differ at `steps` of these steps or
        more, the last ones, without a single agreement in between.
    Benign: Ranks that hold parts of the parameters (FSDP, ZeRO-3, tensor or pipeline parallelism) have nothing to
        compare, and the check is skipped. Ranks that average their models every so many steps agree there; between
        two such steps that were not looked at, ignore this rule.
    Fix: Call the wrapper: move the loss, or all that it needs of the towers, into the model's own forward. Where ranks
        differ from the start, seed them alike or load the same weights on each.
    Sources: Long-CLIP 4e6f5da, repaired in ed8ccfb (`model.module.encode_image`); PyTorch, notes on
        DistributedDataParallel (gradients are synchronised for calls through the wrapper alone).
    """
    ranks = compared(run)
    seen = list(agreement(ranks, "parameters"))
    if len(seen) < steps:
        raise Missing("the ranks' parameters were compared at too few steps, or each rank holds only a part of them")
    last = max((step for step, same in seen if same), default=None)
    apart = [step for step, same in seen if last is None or step > last]
    if len(apart) < steps:
        return
    bypassed = max(rank.clocks.get("bypassed", 0) for rank in ranks)
    since = f"since step {apart[0]}" if last is not None else "from the start"
    yield Finding(
        message=f"The parameters of the {len(ranks)} recorded ranks differ {since}: each trains a model of its own, "
        f"and the steps of all but the one that is saved are wasted ({1 - 1 / ranks[0].world_size:.0%} of the work).",
        where="parameters",
        evidence=(
            Evidence(
                name="steps at which the ranks differ",
                value=len(apart),
                expected=0,
                why=f"of {len(seen)} at which every rank wrote a hash; the last with equal ones is {last}",
                source=", ".join(rank.path for rank in ranks),
                step=apart[0],
            ),
            Evidence(
                name="forwards around the wrapper",
                value=bypassed,
                expected=0,
                why="passes of the module inside what averages gradients, where it is called as a whole",
                source=ranks[0].path,
            ),
        ),
    )
