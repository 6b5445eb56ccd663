"""What only a run that is watched tells: who had gradients, where losses are computed, which clock ticked how often.

A recording holds one `Rank` for each process of the training. Whatever is also a number over time (gradient norms,
learning rates, scales, the losses of each site) is in `Run.series` too, so checks of logs read recordings unchanged.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PLACE = re.compile(r"(?P<loss>[^<]+) < (?P<caller>[^<#]+?)(?P<number>(?: #\d+)?)")  # as a recorder names a site
UNHELD = "held by no optimizer"  # parameters, of which a digest is recorded
JOINED = 1.25  # times as many candidates: a smaller change is the last batch of an epoch, or of regions that differ


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of the watched model."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    trainable: bool  # requires_grad, as last seen
    group: int | None  # index of the optimizer group that holds it; None where none does
    gradient: (
        str  # "some", "zero" (only zeros), "none" (None at every optimizer step), "unknown" (sharded, or too early)
    )
    first_gradient: int | None = None  # the optimizer step at which its gradient was first seen not to be zero


@dataclass(frozen=True, slots=True)
class Reach:
    """What of a matrix of logits (anchors, candidates) carries a gradient to more than a scale."""

    anchors: bool
    columns: int  # masked candidates included
    reached: int  # columns whose candidates carry one


@dataclass(frozen=True, slots=True)
class Columns:
    """The shape of a site's logits from a forward on, which is seen of every call, sampled or not."""

    step: int  # optimizer steps done before it
    forward: int
    anchors: int
    columns: int


@dataclass(frozen=True, slots=True)
class LossSite:
    """One place of the code at which a contrastive loss is computed, with what each sampled call of it was given.

    The arrays are of one length, one entry a sampled call. `null` is ``mean(logsumexp(row) - mean(row))``, the exact
    level of these very logits for a positive no better than the average of its row, so ``null - loss`` is what was
    learnt, in nats (see `fgclip_doctor.theory.margins`).
    """

    name: str  # "train.py:131", or what the user calls it
    kind: str  # "softmax" or "sigmoid"
    targets: str  # "diagonal", "shifted" (by `offset` columns), "constant", "other"
    offset: int  # the column of the first anchor's positive
    steps: NDArray[np.int64]  # optimizer steps done before the call
    forwards: NDArray[np.int64]  # forwards done, this one included
    anchors: NDArray[np.int64]
    candidates: NDArray[np.float64]  # per anchor, on average where a mask makes them differ
    loss: NDArray[np.float64]
    null: NDArray[np.float64]
    top1: NDArray[np.float64]
    gradient: bool = True  # whether the logits required a gradient
    twins: NDArray[np.float64] | None = None  # share of anchors whose positive stands among the candidates once more
    reach: Reach | None = None  # of its first call, where there are several ranks
    changes: tuple[Columns, ...] = ()  # its first shape, and each other number of columns

    @property
    def contrastive(self) -> bool:
        """Whether a place tells each anchor's positive; a classifier's loss is no contrastive one."""
        return self.targets != "other" and len(self.loss) > 0


@dataclass(frozen=True, slots=True)
class Gather:
    """One kind of collective by which features cross ranks."""

    name: str  # "torch.distributed.all_gather", ...
    shape: tuple[int, ...]
    needs_gradient: bool  # whether what was given to it required a gradient
    differentiable: bool  # whether what came out of it carries one back
    calls: int


@dataclass(frozen=True, slots=True)
class Unsaved:
    """Something that a model carries from step to step, and that a load of its state dict doesn't bring back."""

    name: str
    kind: str  # "tensor", "list" (of tensors), "number"
    shape: tuple[int, ...]
    bank: bool  # rows or columns of length 1
    counts: bool  # a whole number that rises and never falls
    first: float | None = None  # of a number
    last: float | None = None


@dataclass(frozen=True, slots=True)
class State:
    """What the model was after `step`, beside what saving its state dict and loading it into a copy gave back."""

    step: int
    unsaved: tuple[Unsaved, ...] = ()
    changed: tuple[str, ...] = ()  # parameters and buffers with other bits after the load
    late: tuple[str, ...] = ()  # keys of the state dict that were not there at the start
    failed: str = ""  # what the load raised
    skipped: str = ""  # why some of this is not known


@dataclass(frozen=True, slots=True)
class Rank:
    """What one process of the training was seen to do."""

    rank: int
    world_size: int
    path: str  # of its recording
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    sites: tuple[LossSite, ...] = ()
    gathers: tuple[Gather, ...] = ()
    clocks: Mapping[str, int] = field(default_factory=dict)  # forwards, steps, scheduler_steps, zero_grads, skipped
    evaluating: Mapping[str, int] = field(default_factory=dict)  # modules in eval mode under gradients: forwards so
    evaluating_since: Mapping[str, tuple[int, int]] = field(  # of those that still are: the step, and looks since
        default_factory=dict
    )
    reentrant: tuple[str, ...] = ()  # modules run under reentrant checkpointing with no input that needs a gradient
    digests: Mapping[str, Mapping[int, str]] = field(default_factory=dict)  # "parameters", UNHELD, a bank: step to hash
    optimizers: tuple[str, ...] = ()  # the names of their classes
    unchanged: Mapping[int, float] = field(default_factory=dict)  # by step, of values in 16 bits with a gradient
    state: State | None = None  # of a dry run
    updates_before: int | None = (
        None  # that Adam had applied before the first recorded step: more than 0 of a resumed run
    )

    @property
    def joined(self) -> Columns | None:
        """Where further candidates joined a contrastive loss for the first time, as a bank's rows do."""
        found = [
            one
            for site in self.sites
            if site.contrastive and site.changes
            for one in site.changes[1:]
            if one.columns >= JOINED * site.changes[0].columns and one.columns > one.anchors
        ]
        return min(found, key=lambda one: one.forward, default=None)


@dataclass(frozen=True, slots=True)
class Recording:
    """The ranks of one watched run, in order, and the last optimizer step that any of them reached."""

    ranks: tuple[Rank, ...]
    step: int

    @property
    def first(self) -> Rank:
        return self.ranks[0]


def short_names(places: Iterable[str]) -> dict[str, str]:
    """Each place of a loss, as ``losses.py:44 < losses.py:96 #2``, by the line that alone tells it from the others.

    That is the line of the loss, or where several callers share it that of the caller: ``losses.py:96 #2``.
    """
    found = {place: match for place in places if (match := PLACE.fullmatch(place))}
    callers: dict[str, set[str]] = {}
    for match in found.values():
        callers.setdefault(match["loss"], set()).add(match["caller"])
    short = {
        place: match["loss" if len(callers[match["loss"]]) == 1 else "caller"] + match["number"]
        for place, match in found.items()
    }
    taken = Counter(short.values())
    return {place: name for place, name in short.items() if taken[name] == 1}
