"""FGD209."""

from collections.abc import Iterator

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check
from fgclip_doctor.momentum import Follower, alike, follower
from fgclip_doctor.parts import planned_frozen
from fgclip_doctor.recorded import UNHELD, Rank
from fgclip_doctor.run import Checkpoint

SHOWS = (1e-3, 0.1)  # of a drift: a momentum of 0.9999 moves 32 bits by it, and one of 0.98 moves 16
MOVED = 0.5  # of the trained matrices: fewer that stay alike have moved


@check("FGD209", "momentum-encoder-idle", Severity.WARNING)
def momentum_encoder_idle(run: Run, *, apart: int = 20, patience: int = 200) -> Iterator[Finding]:
    """A momentum encoder is never updated, or is no other than the encoder that it should follow.

    Why: the keys of a bank have to come from one encoder that moves slowly. One that stands still makes keys that are
    further behind with every step; one that is a copy gives what the trained encoder would, jumps included.
    Evidence: matrices of the momentum encoder (found by name and shape) that are bit-identical in two checkpoints at
    least `apart` steps from each other, or to the base's encoder, while those that it follows have moved. Or, after
    `patience` steps, matrices that are bit-identical to those that they follow, which have moved since. Of a watched
    run, a sample of what no optimizer holds, that is the same at looks at least `apart` steps from each other, while
    the trained encoder drifted so far that no rounding hides it.
    Benign: an encoder that doesn't train, or is planned to be frozen, with its copy. The start, where averages are
    begun as copies. Teachers and targets, by name, which may be meant to stand still.
    Fix: call the update in every step, after the optimizer's, with a momentum of 0.99 to 0.999, on parameters of a deep
    copy; keep it in 32 bits, where small steps aren't rounded away.
    Sources: He et al. 2020, "Momentum Contrast", section 3.2 and table 3 (a momentum of 0 fails to train); Li et al.
    2021 (ALBEF), section 3.2.
    """
    pair = follower(run.tensors)
    if pair is None:
        raise Missing("no momentum encoder was found in the weights")
    if all(planned_frozen(run, name) for name in pair.names):
        raise Missing("the plan declares the momentum encoder as frozen")
    if run.recording is not None and (first := _stands_still(run, run.recording.first, pair, apart)) is not None:
        message = f"The momentum encoder ({pair.modules}) is never updated: no value of it has moved since step {first}"
        yield _finding(pair, run.checkpoint, f"{message}, and the encoder that it follows has.", "as watched")
        return
    now, earlier = run.checkpoint, [one for one in (run.base, *run.checkpoints[:-1]) if one is not None]
    moved = [old for old in earlier if _below(alike(pair.trained(old), pair.trained(now)))]
    if not moved:
        raise Missing("no earlier weights, or a base, from which the encoder has moved")
    for old in moved:
        if since := _never_updated(run, pair, old, now, apart):
            message = f"The momentum encoder ({pair.modules}) is never updated: it is bit for bit what it was {since}, "
            yield _finding(pair, now, f"{message}while the encoder that it follows has moved.", old.path)
            return
    if run.step >= patience and alike(pair.copies(now), pair.trained(now)) == 1:
        message = f"The momentum encoder ({pair.modules}) does not lag: after {run.step} steps it is bit for bit the "
        yield _finding(pair, now, f"{message}encoder that it should follow slowly.", now.path)


def _stands_still(run: Run, seen: Rank, pair: Follower, apart: int) -> int | None:
    """The step since which a watched run has moved nothing that no optimizer holds, the momentum encoder among it."""
    digests = seen.digests.get(UNHELD, {})
    followers = [one for name in pair.names if (one := seen.parameters.get(name)) is not None]
    trained = [one for name in pair.names.values() if (one := seen.parameters.get(name)) is not None]
    if not len(pair.names) == len(followers) == len(trained) or any(one.group is not None for one in followers):
        return None
    if any(one.gradient != "some" for one in trained) or len(set(digests.values())) != 1:
        return None
    first, last = min(digests), max(digests)
    least = SHOWS["16" in followers[0].dtype]
    return first if last - first >= apart and _drift(run, pair, first, last) >= least else None


def _drift(run: Run, pair: Follower, first: int, last: int) -> float:
    """How far the trained encoder's parts went from step to step, in sum, as a share of their size; the median part."""
    import numpy as np

    drifts = []
    for name, one in run.series.items():
        kind, _, part = name.partition("/")
        if kind == "update ratio" and any(own.startswith(f"{part}.") for own in pair.names.values()):
            there = (one.steps > first) & (one.steps <= last)
            drifts.append(float((one.values[there] * np.diff(one.steps, prepend=0)[there]).sum()))
    return float(np.median(drifts)) if drifts else 0.0


def _below(share: float | None) -> bool:
    return share is not None and share < MOVED


def _never_updated(run: Run, pair: Follower, old: Checkpoint, now: Checkpoint, apart: int) -> str | None:
    """Since when the copies stand still, in words; None if they moved."""
    if old is run.base:
        same = 1 in (alike(pair.copies(now), pair.copies(old)), alike(pair.copies(now), pair.trained(old)))
        return "in the base" if same and run.step >= apart else None
    steps = (now.step or 0) - (old.step or 0)
    return f"at step {old.step}" if steps >= apart and alike(pair.copies(now), pair.copies(old)) == 1 else None


def _finding(pair: Follower, now: Checkpoint, message: str, source: str) -> Finding:
    evidence = Evidence(
        name="matrices that are bit-identical",
        value=len(pair.names),
        expected=0,
        why=f"of {len(pair.names)} that were compared: {next(iter(pair.names))} and its like",
        source=f"{now.path}, {source}",
        step=now.step,
    )
    return Finding(message=message, where=pair.modules, evidence=(evidence,))
