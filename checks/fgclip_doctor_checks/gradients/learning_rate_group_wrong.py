"""FGD107."""

from collections.abc import Iterator
from math import isclose

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check
from fgclip_doctor.events import learning_rate
from fgclip_doctor.parts import ADAPTER, planned_frozen, scales, side
from fgclip_doctor.run import Optimizer, OptimizerGroup

ROUND = 0.05  # a zero printed to fewer decimal places than this, as "0" or "0.0", is one; "0.0000" may be 1e-5


@check("FGD107", "learning-rate-group-wrong", Severity.WARNING)
def learning_rate_group_wrong(run: Run, *, records: int = 10) -> Iterator[Finding]:
    """A head, a scale or everything has a learning rate of 0, or the rate that was configured for a part is unused.

    Why: groups are made by matching names. A pattern that matches nothing leaves a part at another's rate, and a rate
    of 0 is a frozen part that costs memory and time as a trained one does.
    Evidence: the peak rates of the optimizer's groups, beside the rates that the arguments configure for parts (such
    as text_model_lr). Without an optimizer, a logged rate that is 0 in all of `records` records or more.
    Benign: a rate of 0 at the first step of a warmup, or at the end of a schedule; a tower at a rate of 0 below a head
    that learns; a part that is frozen, as declared or in no group, whose rate is not needed; a rate printed as 0.0000.
    Fix: print each group's rate with the names in it before the first step. In FG-CLIP's trainer the rate of the text
    model does not reach text_projection and text_filip_projection, whose names don't match.
    Sources: 360CVGroup/FG-CLIP, CLIPTrainer.create_optimizer; torch.optim, per-parameter options.
    """
    if not run.checkpoints or run.checkpoint.optimizer is None:
        yield from _logged(run, records)
        return
    optimizer = run.optimizer
    rates = [group.initial_lr for group in optimizer.groups]
    known = all("initial_lr" in group.options for group in optimizer.groups)  # else they are where a schedule is now
    if rates and known and not any(rates):
        evidence = Evidence(name="learning rates", value=0.0, expected="over 0", source=str(optimizer.source))
        message = f"The learning rate is 0 in all {len(rates)} groups of the optimizer: nothing is trained."
        yield Finding(message=message, where=str(optimizer.source), evidence=(evidence,))
    elif any(rates):
        yield from (_zero(run, optimizer, group) for group in optimizer.groups if _parts_in(run, optimizer, group))
        if known:
            yield from _unused(run, optimizer)


def _parts_in(run: Run, optimizer: Optimizer, group: OptimizerGroup) -> list[str]:
    """Heads, scales and adapters in a group with a learning rate of 0."""
    if group.initial_lr != 0:
        return []
    parts = {tensor.name for _, tensor in run.heads()} | {tensor.name for tensor in scales(run).values()}
    names = [names[0] for index in group.parameters if len(names := optimizer.names.get(index, ())) == 1]
    return [one for one in names if (one in parts or ADAPTER.search(one)) and not planned_frozen(run, one)]


def _zero(run: Run, optimizer: Optimizer, group: OptimizerGroup) -> Finding:
    names = _parts_in(run, optimizer, group)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return Finding(
        message=f"The learning rate of {', '.join(names[:3])}{more} is 0, while other groups learn.",
        where=names[0],
        evidence=(
            Evidence(
                name="learning rate",
                value=0.0,
                expected=max(one.initial_lr or 0.0 for one in optimizer.groups),
                why="the highest of the other groups",
                source=f"{optimizer.source}: group {group.index}",
            ),
        ),
    )


def _unused(run: Run, optimizer: Optimizer) -> Iterator[Finding]:
    """The rates that are configured for a part whose parameters all are at the general rate."""
    general = run.facts.get("learning_rate")
    for name, fact in run.facts.items():
        if general is None or not name.startswith("learning_rate.") or isclose(fact.value, general.value, rel_tol=1e-3):
            continue
        groups = [
            group
            for group in optimizer.groups
            if any(_is_of(run, name, optimizer.names.get(index, ())) for index in group.parameters)
        ]
        at_general = [group for group in groups if isclose(group.initial_lr or 0.0, general.value, rel_tol=1e-3)]
        used = any(isclose(group.initial_lr or 0.0, fact.value, rel_tol=1e-3) for group in optimizer.groups)
        if groups and len(at_general) == len(groups) and not used:
            key = name.partition(".")[2]
            yield Finding(
                message=f"{key} is {fact.value:g}, and no group has that rate: what it is meant for is in a group at "
                f"{general.value:g}.",
                where=key,
                evidence=(
                    Evidence(
                        name="learning rate",
                        value=general.value,
                        expected=fact.value,
                        why=f"{fact.source}; the groups have {_listed(optimizer)}",
                        source=f"{optimizer.source}: group {groups[0].index}",
                    ),
                ),
            )


def _is_of(run: Run, key: str, names: tuple[str, ...]) -> bool:
    """Whether a configured rate is meant for a parameter, by the words in its key."""
    key = key.partition(".")[2].lower()
    heads, temperatures = {one.name for _, one in run.heads()}, {one.name for one in scales(run).values()}
    if "scale" in key or "temperature" in key:
        return bool(names) and temperatures.issuperset(names)
    if "proj" in key or "head" in key:
        return bool(names) and heads.issuperset(names)
    which = "text" if "text" in key else "image"
    return bool(names) and all(side(run, name) == which and name not in heads | temperatures for name in names)


def _listed(optimizer: Optimizer) -> str:
    return ", ".join(f"{rate:g}" for rate in sorted({group.initial_lr or 0.0 for group in optimizer.groups}))


def _logged(run: Run, records: int) -> Iterator[Finding]:
    series = learning_rate(run)
    if series is None:
        raise Missing("no optimizer state, and no learning rate was logged")
    exact = series.resolution is None or series.resolution >= ROUND or series.resolution <= 1e-9
    if len(series.values) < records or not exact or (series.values != 0).any():
        return
    evidence = Evidence(
        name="learning rate",
        value=0.0,
        expected="over 0",
        why=f"in all of {len(series.values)} records",
        source=str(series.source),
        step=int(series.steps[-1]),
    )
    message = (
        f"The logged learning rate is 0 from step {series.steps[0]} to {series.steps[-1]}: nothing is trained, or "
        "nothing of the one group that is logged."
    )
    yield Finding(message=message, where=series.name, evidence=(evidence,))
