"""`Run`: everything observed about one training run, whatever it came from, and so everything that a check may read.

Sources fill it in, checks read it. Nothing here touches a file: a tensor is its name, shape and two callables that the
source left behind. What isn't known raises `Missing`, which skips the check with that reason; it is never guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import isclose
from typing import TYPE_CHECKING, Any, TypeVar

from fgclip_doctor.annotations import Annotations
from fgclip_doctor.recorded import Recording

if TYPE_CHECKING:  # numpy costs 0.1 s; `rules`, `explain` and `--help` read checks and never a tensor
    import numpy as np
    from numpy.typing import NDArray

R = TypeVar("R")
MAX_VALUES_BYTES = 1 << 30  # a check may ask for the values of a tensor up to this size, as stored


class Missing(Exception):  # noqa: N818 - not an error: the reason for which a check is skipped
    """The evidence that a check needs is not there."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where something was read: a file, and in it a key or a line."""

    path: str
    key: str = ""
    line: int | None = None

    def __str__(self) -> str:
        place = self.path if self.line is None else f"{self.path}:{self.line}"
        return f"{place}: {self.key}" if self.key else place


@dataclass(frozen=True, slots=True)
class Fact:
    """One configuration fact, under the doctor's own name for it (see `FACTS`), with its provenance."""

    name: str
    value: Any
    source: Source


# The facts that checks may ask for. Sources map the names of each trainer onto these.
FACTS: dict[str, str] = {
    "micro_batch": "samples per forward and rank",
    "batch_in_use": "samples per forward and process, as the trainer says that it used them",
    "accumulation": "micro-batches per optimizer step",
    "world_size": "ranks",
    "max_steps": "optimizer steps that the run was planned for",
    "num_epochs": "passes over the data that the run was planned for",
    "global_step": "optimizer steps done, as the trainer counts them",
    "epochs_done": "passes over the data that were done, or begun, when the checkpoint was saved",
    "skipped_steps": "optimizer steps that were skipped, as the trainer counts them",
    "dataset_size": "samples in the training set",
    "steps_per_epoch": "optimizer steps in one pass over the data, as the trainer counts its epochs",
    "regions_per_sample": "region captions per image, on average",
    "candidates": "candidates per anchor; `candidates.region` and so on where the terms differ",
    "bank_size": "rows per modality in the memory bank",
    "bank_enabled": "whether the configuration asks for a memory bank",
    "bank_warmup": "how long the bank waits, in the unit of `bank_clock`",
    "bank_clock": "'step' or 'forward': what `bank_warmup` is counted in, where it is said",
    "scale": "exp(logit_scale)",
    "dimension": "width of the shared embedding",
    "learning_rate": "peak learning rate; `learning_rate.KEY` for each further one that is configured, by its key",
    "weight_decay": "decoupled weight decay",
    "max_grad_norm": "clipping threshold; 0 is off",
    "clipping_asked": "clipping threshold in the trainer's arguments, where another configuration sets the one in use",
    "warmup_steps": "learning-rate warmup in optimizer steps",
    "warmup_ratio": "learning-rate warmup as a share of the run",
    "schedule": "the name of the learning-rate schedule",
    "bf16": "autocast to bfloat16 was asked for",
    "fp16": "autocast to float16 was asked for",
    "gradient_checkpointing": "layers are computed again in the backward pass",
    "cut_off": "torch warned that none of the inputs of what is checkpointed requires a gradient",
    "reentrant": "gradient checkpointing of the reentrant kind was asked for",
    "label_smoothing": "label smoothing of the contrastive targets",
    "logit_scale_init": "the configured start of the global logit_scale, in log space",
    "hidden_act": "activation of the towers",
    "started_from": "the name of the weights that the run started from",
    "loss_kind": "'softmax' or 'sigmoid'",
    "adapter_rank": "rank of low-rank adapters",
    "adapter_alpha": "alpha of low-rank adapters; their output is scaled by alpha / rank",
    "adapter_targets": "the modules that have adapters",
}


@dataclass(frozen=True, slots=True)
class Statistics:
    """What one streaming pass over a tensor tells. Moments are over the finite values, in float64."""

    count: int
    mean: float
    std: float  # population standard deviation
    norm: float
    minimum: float
    maximum: float
    nans: int
    infs: int
    zeros: int
    bf16_exact: float  # share of the finite values that bfloat16 represents exactly
    fp16_exact: float

    @property
    def finite(self) -> bool:
        return self.nans == 0 and self.infs == 0


class Tensor:
    """One stored tensor. Statistics come from one streamed pass, values are read only when a check asks for them."""

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: str,
        source: Source,
        *,
        measure: Callable[[], Statistics],
        read: Callable[[], NDArray[Any]],
        digest: Callable[[], str],
        nbytes: int,
    ) -> None:
        self.name = name
        self.shape = shape
        self.dtype = dtype  # numpy's name, or "bfloat16", "float8_e4m3fn", "float8_e5m2"
        self.source = source
        self.nbytes = nbytes
        self._measure = measure
        self._read = read
        self._digest = digest

    def __repr__(self) -> str:
        return f"Tensor({self.name!r}, {self.shape}, {self.dtype})"

    @property
    def size(self) -> int:
        """Number of elements."""
        count = 1
        for length in self.shape:
            count *= length
        return count

    @cached_property
    def statistics(self) -> Statistics:
        return self._measure()

    @cached_property
    def digest(self) -> str:
        """A hash of dtype, shape and bytes: equal digests are bit-identical tensors. Costs a pass of its own."""
        return self._digest()

    def values(self) -> NDArray[Any]:
        """The values with the tensor's shape: floats as float32 (float64 stays), integers and bools as they are."""
        if self.nbytes > MAX_VALUES_BYTES:
            raise Missing(f"{self.name} is too large to be read whole ({self.nbytes:,} bytes)")
        return self._read()

    def remembered(self, kind: type[R], what: Sequence[object], compute: Callable[[], R | None]) -> R | None:
        """A dataclass of numbers that `compute` takes from the values, which an earlier audit may have kept.

        `what` says all that it depends on besides them.
        """
        return compute()

    def item(self) -> float:
        """The value of a tensor of one element, as a float (a scale, a pointer, a flag)."""
        if self.size != 1:
            raise Missing(f"{self.name} has {self.size} elements where one was expected")
        return float(self.values().reshape(()))


@dataclass(frozen=True, slots=True)
class ParameterState:
    """The optimizer's state of one parameter. None where the optimizer keeps no such thing."""

    index: int
    step: int | None = None
    exp_avg: Tensor | None = None
    exp_avg_sq: Tensor | None = None


@dataclass(frozen=True, slots=True)
class OptimizerGroup:
    """One parameter group as saved. `options` holds lr, weight_decay, betas, eps and whatever else was there."""

    index: int
    parameters: tuple[int, ...]
    options: Mapping[str, Any]

    @property
    def lr(self) -> float | None:
        return _number(self.options.get("lr"))

    @property
    def initial_lr(self) -> float | None:
        """The peak learning rate, which a scheduler leaves in the group; `lr` where there was no scheduler.

        None where neither is known: a schedule that is set by hand leaves what it came to in `lr`, a number with more
        digits than anybody types.
        """
        if "initial_lr" in self.options:
            return _number(self.options["initial_lr"])
        rate = self.lr
        return rate if rate is None or isclose(rate, float(f"{rate:.3g}"), rel_tol=1e-6) else None

    @property
    def weight_decay(self) -> float:
        return _number(self.options.get("weight_decay")) or 0.0


@dataclass(frozen=True, slots=True)
class Optimizer:
    """Optimizer state by parameter index, and what is known of which parameter has which index.

    `names` maps an index to its candidates: one name where it is certain, several where equal shapes leave it open. An
    index that is not in it could not be matched at all. `naming` says in words how the names were found.
    """

    source: Source
    groups: tuple[OptimizerGroup, ...]
    states: Mapping[int, ParameterState]
    names: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    naming: str = ""

    @property
    def indices(self) -> tuple[int, ...]:
        return tuple(index for group in self.groups for index in group.parameters)

    @property
    def step(self) -> int | None:
        """The largest step count of any parameter: how many updates the optimizer has applied."""
        return max((state.step for state in self.states.values() if state.step is not None), default=None)

    def group_of(self, index: int) -> OptimizerGroup:
        return next(group for group in self.groups if index in group.parameters)

    def index_of(self, name: str) -> int | None:
        """The index that certainly belongs to the parameter `name`, or None."""
        return next((index for index, names in self.names.items() if names == (name,)), None)

    def may_hold(self, name: str) -> bool:
        """True unless it is certain that no index belongs to `name`."""
        if not self.names or set(self.indices) - set(self.names):
            return True  # an unmatched index could be anybody's
        return any(name in names for names in self.names.values())


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What was saved at one step."""

    path: str
    step: int | None
    tensors: Mapping[str, Tensor]
    optimizer: Optimizer | None = None
    scheduler: Mapping[str, Any] | None = None
    trainer_step: int | None = None  # as the trainer counts; `step` is the best known, from a folder's name if need be
    partial: str = ""  # why `tensors` aren't the whole model, if they aren't
    facts: Mapping[str, Fact] = field(default_factory=dict)  # what was configured when it was saved


@dataclass(frozen=True, slots=True)
class Series:
    """One named scalar over the run, in the order in which it was logged. `steps` counts optimizer steps."""

    name: str
    steps: NDArray[np.int64]
    values: NDArray[np.float64]
    source: Source
    forwards: NDArray[np.int64] | None = None
    resolution: float | None = None  # the last decimal place printed: "0.000" may stand for anything up to 0.0005
    walls: NDArray[np.float64] | None = None  # seconds since the epoch

    @property
    def legs(self) -> tuple[slice, ...]:
        """The stretches of steps that don't go back: one, unless the run was restarted from an earlier step."""
        import numpy as np

        starts = [0, *(np.flatnonzero(self.steps[1:] < self.steps[:-1]) + 1).tolist()]
        return tuple(slice(start, end) for start, end in zip(starts, [*starts[1:], len(self.steps)], strict=True))

    @property
    def standing(self) -> Series:
        """The records that still stand, in order of step: without those that a restart from an earlier step redid."""
        import numpy as np

        if len(self.legs) == 1:
            return self
        kept = np.ones(len(self.steps), dtype=bool)
        for leg in self.legs[1:]:
            kept[: leg.start] &= self.steps[: leg.start] < self.steps[leg.start]
        rest = {name: part[kept] for name in ("forwards", "walls") if (part := getattr(self, name)) is not None}
        return replace(self, steps=self.steps[kept], values=self.values[kept], **rest)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened at a step: the bank switched on, the run resumed, the candidates changed."""

    kind: str  # "bank-on", "resume", "candidates"
    step: int
    detail: str
    source: Source
    value: float | None = None


@dataclass(frozen=True, slots=True)
class Remark:
    """What a program of the training said in words: all lines of one log that say it."""

    kind: str  # one of `fgclip_doctor.sources.remarks.REMARKS`
    source: Source  # the first of the lines
    names: tuple[str, ...]  # what they name: tensors, a number
    steps: NDArray[np.int64]  # optimizer steps done at each of them, as far as the log counts them


@dataclass(frozen=True, slots=True)
class Scale:
    """One logit scale: its role, the tensor that holds it, and its last value in log space."""

    role: str
    tensor: Tensor
    last: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What the user declared to be intended, so that no check takes it for a fault. Steps are optimizer steps."""

    bank_on: int | None = None  # the step at which the bank switches on
    frozen: tuple[str, ...] = ()  # patterns (fnmatch) of parameters that are meant not to train
    scale_at_cap: bool = False  # the scales are meant to rest at their cap
    restarts: tuple[int, ...] = ()  # steps at which the learning rate starts over
    candidates: Mapping[int, float] = field(default_factory=dict)  # from a step on, candidates per anchor
    source: str = ""  # the file that declares it; empty where nothing was declared


@dataclass
class Run:
    """Everything observed about one training run.

    `checkpoints` are in order of step, the last one being what most checks read. `base` holds the weights that the run
    started from, where the user gave them. `roles` maps a role of design (``bank.image_keys``, ``scale.region``,
    ``loss.region``) to the name of the tensor or the series that plays it. `problems` are the files that could not be
    read. `recording` is what was seen of the run while it went on, `plan` what the user declared to be intended, `data`
    what the annotations hold that it is trained on.
    """

    subject: str
    checkpoints: tuple[Checkpoint, ...] = ()
    base: Checkpoint | None = None
    facts: dict[str, Fact] = field(default_factory=dict)
    series: dict[str, Series] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)
    roles: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what was chosen while reading, where there was a choice
    recording: Recording | None = None
    repeated: Recording | None = None  # of the same command, started a second time
    resumed: Run | None = None  # of a command that goes on from what this one saved
    overfitted: Run | None = None  # of the same command, given its first batch again and again
    plan: Plan = field(default_factory=Plan)
    data: Annotations | None = None

    @property
    def annotations(self) -> Annotations:
        """What the annotations that it is trained on hold."""
        if self.data is None:
            raise Missing("no annotations of images; `--data FILE` reads them")
        return self.data

    @property
    def watched(self) -> Recording:
        """What was recorded of the run while it went on."""
        if self.recording is None:
            raise Missing("the run was not recorded; `fgclip-doctor watch -- COMMAND` does it")
        return self.recording

    @property
    def checkpoint(self) -> Checkpoint:
        """The latest checkpoint."""
        if not self.checkpoints:
            raise Missing("no checkpoint")
        return self.checkpoints[-1]

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The tensors of the latest checkpoint."""
        if not self.checkpoint.tensors:
            raise Missing("no weights in the checkpoint")
        return self.checkpoint.tensors

    @property
    def whole_model(self) -> Mapping[str, Tensor]:
        """`tensors`, for a check that something isn't among them: `Missing` where they are a part of the model."""
        if self.checkpoint.partial:
            raise Missing(self.checkpoint.partial)
        return self.tensors

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer state of the latest checkpoint."""
        if self.checkpoint.optimizer is None:
            raise Missing("no optimizer state")
        return self.checkpoint.optimizer

    def fact(self, name: str) -> Fact:
        if name not in self.facts:
            raise Missing(f"{name} is not known ({FACTS.get(name, 'configuration')}); --fact {name}=VALUE states it")
        return self.facts[name]

    def number(self, name: str, default: float | None = None) -> float:
        """A fact as a number. Without `default`, an unknown fact raises `Missing`."""
        if name not in self.facts and default is not None:
            return default
        value = _number(self.fact(name).value)
        if value is None:
            raise Missing(f"{name} is not a number: {self.fact(name).value!r}")
        return value

    def role(self, role: str, checkpoint: Checkpoint | None = None) -> Tensor:
        """The tensor that plays `role` in `checkpoint` (the latest one by default)."""
        tensors = self.tensors if checkpoint is None else checkpoint.tensors
        name = self.roles.get(role)
        if name is None or name not in tensors:
            raise Missing(f"nothing was found that plays the role {role}; [tool.fgclip-doctor.roles] can name it")
        return tensors[name]

    def has_role(self, role: str) -> bool:
        return self.roles.get(role) in (self.checkpoint.tensors if self.checkpoints else {})

    def loss(self, term: str) -> Series:
        """The logged series of the loss term `term` (total, global, region or hard), without what a restart redid."""
        name = self.roles.get(f"loss.{term}")
        if name is None or name not in self.series:
            raise Missing(f"no {term} loss was logged")
        return self.series[name].standing

    def scales(self) -> Iterator[Scale]:
        """The logit scales of the latest checkpoint, in log space."""
        roles = [role for role in self.roles if role.startswith("scale.") and self.has_role(role)]
        if not roles:
            raise Missing("no logit scale was found in the weights")
        for role in roles:
            tensor = self.role(role)
            yield Scale(role, tensor, tensor.item())

    def heads(self) -> Iterator[tuple[str, Tensor]]:
        """The projection heads of the latest checkpoint, by role."""
        for role in self.roles:
            if role.startswith("head.") and self.has_role(role):
                yield role, self.role(role)

    def said(self, kind: str) -> Remark | None:
        """What the logs say in words of one kind: the log that says it most often, as several may be one's copies."""
        return max((one for one in self.remarks if one.kind == kind), key=lambda one: len(one.steps), default=None)

    @property
    def step(self) -> int:
        """Optimizer steps done at the latest checkpoint: the trainer's own count, or that of the folder's name."""
        checkpoint = self.checkpoint
        applied = checkpoint.optimizer.step if checkpoint.optimizer else None
        for step in (checkpoint.trainer_step, checkpoint.step, applied):
            if step is not None:
                return step
        return int(self.number("global_step"))


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
