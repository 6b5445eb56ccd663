"""FGD703."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check
from fgclip_doctor.provenance import derived, drift
from fgclip_doctor.run import Checkpoint, Tensor
from fgclip_doctor.untrained import overwritten
from fgclip_doctor_checks.causes import explaining

if TYPE_CHECKING:
    from numpy.typing import NDArray


@check("FGD703", "weights-overwritten-at-start", Severity.ERROR)
def weights_overwritten_at_start(run: Run, *, closer: float = 0.7, apart: float = 0.1) -> Iterator[Finding]:
    """Trained heads or position tables were made anew at a start: copied or stretched from others over what they were.

    Why: what a plain CLIP lacks is copied from its heads and stretched from its positions. The same code on weights
    that have these parts throws away what they had learnt, at the start of a run or at every resume, and the run looks
    fine.
    Evidence: two checkpoints, or the base and a checkpoint: the tensor lies under `closer` of its own distance from
    where it was to what that code makes of the weights before. In so many dimensions no training walks there. With the
    base and Adam's groups: a matrix that is further from the base than the learning rates can have moved it, where
    hardly any other is, whatever it was overwritten with. Without the weights before, nothing tells.
    Benign: a part that the base does not have, or that was still (`apart` of its distance) what the code makes of it;
    weights that are all too far, which come from another base, or of whose steps only the last are counted.
    Fix: run the code only for parts that the weights do not have (look at the missing keys), and not by a flag; start
    again from the weights before.
    Sources: 360CVGroup/FG-CLIP, scripts/train.sh (from_openai True with a base of its own), resize_postion_embeding.
    """
    saved = [one for one in (run.base, *run.checkpoints) if one is not None and one.tensors and not one.partial]
    if len(saved) < 2:
        raise Missing("only one checkpoint and no --base: nothing to compare with")
    compared = 0
    told: set[str] = set()
    for before, after in pairwise(saved):
        for part, source, made in derived(run, before.tensors):
            now = after.tensors.get(part.name)
            if now is None or now.shape != part.shape or part.name in told:
                continue
            compared += 1
            own, values = part.values(), now.values()
            walked, from_made = _distance(values, own), _distance(values, made)
            if _distance(own, made) > apart * walked and from_made < closer * walked:
                told.add(part.name)
                yield _finding(part.name, source.name, before, after, walked, from_made, str(now.source))
    beyond = _beyond(run)
    for tensor, walked, reach in beyond or ():
        if tensor.name not in told:
            yield _too_far(run, tensor, walked, reach)
    if not compared and beyond is None:
        raise Missing("no part in these weights is one that start-up code makes of others")


def _beyond(run: Run) -> list[tuple[Tensor, float, float]] | None:
    """Those that Adam can't have moved so far from the base; None where its learning rates aren't known."""
    try:
        return overwritten(run)
    except Missing:
        return None


def _too_far(run: Run, tensor: Tensor, walked: float, reach: float) -> Finding:
    return Finding(
        message=f"{tensor.name} is {walked:.2g} from the base (root mean square), and Adam can have moved it by "
        f"{reach:.2g} at most: it was overwritten at the start, and what it had learnt is lost.",
        where=tensor.name,
        evidence=(
            Evidence(
                name="distance to the base",
                value=round(walked, 5),
                expected=f"up to {reach:.4g}",
                why=f"{drift(run, tensor.name).why}; nearly all other matrices are nearer than that",
                source=str(tensor.source),
                step=run.checkpoint.step,
            ),
        ),
        explained_by=explaining("FGD703", where=tensor.name),
    )


def _finding(
    name: str, source: str, before: Checkpoint, after: Checkpoint, walked: float, from_made: float, place: str
) -> Finding:
    return Finding(
        message=f"{name} was made anew from {source} after {before.path}: it is {from_made:.2g} from what start-up "
        f"code makes of those weights, and {walked:.2g} from what it had learnt, which is lost.",
        where=name,
        evidence=(
            Evidence(
                name="distance to a fresh copy",
                value=round(from_made, 5),
                expected=f"over {walked:.4g}",
                why=f"root mean square, to what is made of {source} in {before.path}; to itself it is {walked:.4g}",
                source=place,
                step=after.step,
            ),
        ),
        explained_by=explaining("FGD703", where=name),
    )


def _distance(one: NDArray[Any], other: NDArray[Any]) -> float:
    """The root mean square difference."""
    import numpy as np

    return float(np.sqrt(np.mean((one.astype(np.float64) - other) ** 2)))
