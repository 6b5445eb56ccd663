"""Where weights come from: how far a run can have moved them, and which still are what their initialiser made.

**Drift.** Adam moves a weight by at most ``lr * max(1, (1 - b1) / sqrt(1 - b2))`` a step (Kingma & Ba 2015, section
2.1) and by hardly more than ``lr`` on average. So the sum of the learning rates bounds how far a run has come, and what
lies further from its initial value than that was there before the run began.

**Origin.** Norm gains start at exactly 1 and norm biases at exactly 0, in every framework. If they are further from
there than the drift allows, the run started from trained weights; if all are within it, from scratch.

**At init.** Random initialisers draw independent values, training does not: it spreads the norms of rows and columns
and lifts singular values out of the bulk. `randomness` tests all of these against what independent values give.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fgclip_doctor.parts import ELDER, FLOATS
from fgclip_doctor.run import Checkpoint, Missing, Optimizer, Run, Scale, Tensor
from fgclip_doctor.scale_forms import form_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

POSITIONS = re.compile(r"pos(?:ition(?:al)?)?_?emb", re.IGNORECASE)
UNPLANNED = 1000.0
LOOKED_AT = (256, 1024)  # the block of a matrix that is tested: a few milliseconds


@dataclass(frozen=True, slots=True)
class Drift:
    """How far a run can have moved a weight: `typical` is the sum of the learning rates, `bound` Adam's hard bound.

    `decay` is the relative shrinkage by decoupled weight decay, the sum of lr * weight_decay.
    """

    typical: float
    bound: float
    decay: float
    steps: int
    why: str

    def reach(self, magnitude: float) -> float:
        """The hard bound for a weight of this magnitude, weight decay included."""
        return self.bound + self.decay * abs(magnitude)


def drift(run: Run, name: str | None = None, *, until: Checkpoint | None = None, planned: bool = False) -> Drift:
    """How far the run has moved the parameter `name` (the fastest one by default) at a checkpoint, at most.

    `planned` asks for the whole planned run instead (`UNPLANNED` steps where its length isn't known). A parameter that
    certainly is in no group does not move.
    """
    checkpoint = until or run.checkpoint
    optimizer = checkpoint.optimizer or run.checkpoint.optimizer
    if optimizer is not None and optimizer.states and not _bounded(optimizer):
        raise Missing("the optimizer is not of Adam's kind, so its learning rates don't bound how far weights moved")
    steps = _steps(run, checkpoint)
    if planned:
        steps = max(steps, int(run.number("max_steps", UNPLANNED)))
    groups = (
        [] if optimizer is None else [one for one in optimizer.groups if _may_be_in(optimizer, one.parameters, name)]
    )
    if optimizer is not None and not groups:
        return Drift(0.0, 0.0, 0.0, steps, "in no group of the optimizer")
    rates = [rate for one in groups if (rate := one.initial_lr) is not None]
    if optimizer is not None and not any(one.initial_lr for one in optimizer.groups):
        rates = []  # where a schedule ended, which says nothing of the rates before
    peak = max(rates) if rates else run.number("learning_rate")
    total, why = _sum_of_rates(run, steps, peak, optimizer, planned)
    first, second = max(
        (_betas(one.options) for one in groups),
        key=lambda betas: (1 - betas[0]) / (1 - betas[1]) ** 0.5,
        default=(0.9, 0.999),
    )
    hard = max(1.0, (1 - first) / (1 - second) ** 0.5)
    decay = max((one.weight_decay for one in groups), default=run.number("weight_decay", 0.0))
    return Drift(total, total * hard, total * decay, steps, why)


def _bounded(optimizer: Optimizer) -> bool:
    """Whether a step is about the learning rate at most: Adam's kind, by its moments or else by its betas."""
    moments = any(one.exp_avg for one in optimizer.states.values())
    return moments or all("betas" in group.options for group in optimizer.groups)


def _may_be_in(optimizer: Optimizer, parameters: Iterable[int], name: str | None) -> bool:
    return name is None or any(name in optimizer.names.get(index, (name,)) for index in parameters)


def _betas(options: Any) -> tuple[float, float]:
    betas = options.get("betas")
    try:
        first, second = (float(beta) for beta in betas)
    except (TypeError, ValueError):
        return 0.9, 0.999
    return (first, second) if 0 <= first < 1 and 0 <= second < 1 else (0.9, 0.999)


def _steps(run: Run, checkpoint: Checkpoint) -> int:
    applied = checkpoint.optimizer.step if checkpoint.optimizer else None
    known = [step for step in (checkpoint.trainer_step, checkpoint.step, applied) if step is not None]
    return max(known) if known else run.step


def _sum_of_rates(run: Run, steps: int, peak: float, optimizer: Optimizer | None, planned: bool) -> tuple[float, str]:
    """The sum of the learning rates over `steps`, from the log where there is one (it is of the first group)."""
    import numpy as np

    logged = run.series.get("learning_rate")
    if planned or logged is None or not logged.steps.size or not np.isfinite(logged.values).all():
        return peak * steps, f"{steps} steps at no more than {peak:g}"
    lead = optimizer.groups[0].initial_lr if optimizer is not None and optimizer.groups else None
    order = np.argsort(logged.steps, kind="stable")
    at, rates = logged.steps[order], np.abs(logged.values[order]) * (peak / lead if lead else 1.0)
    known = int(np.searchsorted(at, steps))  # records before the last step
    edges = np.concatenate(([0], at[:known], [steps]))
    before = np.concatenate(([peak], rates[:known]))  # until the first record: no more than the peak
    after = np.concatenate((rates[:known], rates[[min(known, rates.size - 1)]]))
    total = float(np.sum(np.diff(edges) * np.maximum(before, after)))
    return total, f"{steps} steps, with the learning rates of {logged.source}"


@dataclass(frozen=True, slots=True)
class Origin:
    """Whether the run started from trained weights, told by the norm gains of the first checkpoint."""

    pretrained: bool
    moved: int  # gains that lie further from 1 (and from 0) than the run can have moved them
    gains: int
    furthest: float
    reach: float
    source: str

    @property
    def why(self) -> str:
        return (
            f"{self.moved} of {self.gains} norm gains lie further from their initial 1 than the run can have moved "
            f"them ({self.reach:.2g}; the furthest by {self.furthest:.2g})"
        )


def gains(checkpoint: Checkpoint) -> Iterator[Tensor]:
    """The norm gains: one-dimensional tensors called `weight` (a linear layer's is two-dimensional)."""
    for name, tensor in checkpoint.tensors.items():
        if len(tensor.shape) == 1 and tensor.size >= 8 and name.rpartition(".")[2] == "weight" and is_float(tensor):
            yield tensor


def is_float(tensor: Tensor) -> bool:
    return tensor.dtype in FLOATS


def from_one(gain: Tensor) -> float:
    """How far a norm gain lies from where it started: 1, or 0 where the layer adds the 1 itself."""
    low, high = gain.statistics.minimum, gain.statistics.maximum
    return min(max(high - 1, 1 - low), max(high, -low))


def origin(run: Run, *, widest: float = 0.3, nearest: float = 0.03) -> Origin:
    """Whether the run started from trained weights; `Missing` if the gains can't tell. A base, if given, decides.

    `widest`: gains of trained models lie 0.1 to 1 from their start, so a longer reach can't tell the two apart.
    `nearest`: those of a short pretraining may all lie within 0.1, so with a longer reach none of them is known as new.
    """
    first = next((one for one in (run.base, *run.checkpoints) if one and any(gains(one))), None)
    if first is None:
        raise Missing("no norm gains in the weights, which would tell pretrained weights from new ones")
    found = [gain for gain in gains(first) if gain.statistics.finite]
    moves = 0.0 if first is run.base else drift(run, until=first).reach(1.0)
    reach = moves + half_ulp(1.0, found[0].dtype if found else "float32")
    moved = [gain for gain in found if from_one(gain) > reach]
    answer = Origin(
        pretrained=bool(moved),
        moved=len(moved),
        gains=len(found),
        furthest=max(map(from_one, found), default=0.0),
        reach=reach,
        source=str((moved or found)[0].source) if found else "",
    )
    if reach > (widest if moved else nearest) or 0 < len(moved) < len(found) / 2 or not found:
        raise Missing(f"can't tell pretrained weights from new ones: {answer.why}")
    return answer


MANTISSA = {  # stored bits
    "float8_e5m2": 2,
    "float8_e4m3fn": 3,
    "bfloat16": 7,
    "float16": 10,
    "float32": 23,
    "float64": 52,
}
SMALLEST = {"float8_e5m2": -14, "float8_e4m3fn": -6, "float16": -14}  # exponents of normal numbers; the others' is -126


def half_ulps(values: NDArray[Any], dtype: str) -> NDArray[np.float64]:
    """Half the distance from each value to its neighbours in `dtype`: a smaller update is rounded away."""
    import numpy as np

    sizes = np.abs(np.asarray(values, dtype=np.float64))
    exponents = np.where(sizes == 0, -1000, np.frexp(sizes)[1] - 1)
    exponents = np.maximum(exponents, SMALLEST.get(dtype, -126))  # subnormal below
    return np.asarray(np.ldexp(1.0, exponents - MANTISSA[dtype] - 1))


def half_ulp(value: float, dtype: str) -> float:
    """`half_ulps` of one value."""
    import numpy as np

    return float(half_ulps(np.array(value), dtype))


@dataclass(frozen=True, slots=True)
class Randomness:
    """How a matrix compares with independent values of the same spread (0 is as expected, in standard errors)."""

    std: float
    kurtosis: float
    rows: float  # dispersion of the rows' mean squares
    columns: float
    edge: float  # the largest singular value over the Marchenko-Pastur edge, as a ratio
    independent: bool  # as independent values are
    structured: bool  # far from it; between the two nothing is said

    def __str__(self) -> str:
        return (
            f"std {self.std:.4g}, kurtosis {self.kurtosis:.2f}, row and column norms {self.rows:+.1f} and "
            f"{self.columns:+.1f} standard errors from chance, top singular value at {self.edge:.2f} of the edge"
        )


def randomness_of(tensor: Tensor, moved: float = 0.0) -> Randomness | None:
    """`randomness` of a stored tensor."""
    return tensor.remembered(Randomness, ("randomness", moved), lambda: randomness(tensor.values(), moved))


def randomness(matrix: NDArray[Any], moved: float = 0.0, *, sigmas: float = 8.0) -> Randomness | None:
    """Compare a tensor (first axis: outputs) with independent values; None if it is too small, constant or drifted.

    Independent normal, uniform or truncated normal values have an excess kurtosis between -1.2 and 0; the mean squares
    of a row of n have a relative variance of (kurtosis + 2) / n; and the largest eigenvalue of the m x n Gram matrix
    lies at (sqrt m + sqrt n)^2 within Tracy-Widom fluctuations (Johnstone 2001). `moved` is what training may have
    added to each value: at most moved * sqrt(m n) to a singular value (Weyl), and in proportion to the other figures;
    beyond a quarter of the standard deviation nothing can be said. Independent values fail with a probability of less
    than 1e-3 down to 16 x 64; the tests measure that, and that structured weights are told apart.
    """
    import numpy as np

    if matrix.ndim < 2 or matrix.size < 1024:
        return None
    values = matrix.reshape(matrix.shape[0], -1)
    values = _block(values.T if values.shape[0] > values.shape[1] else values)
    m, n = values.shape
    if m < 16 or m * n < 1024 or not np.isfinite(values).all():
        return None
    mean, std = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    if std == 0 or moved > std / 4:
        return None
    share = moved / std
    single = (values / std).astype(np.float32)
    squares = single**2
    kurtosis = float(np.mean((single - np.float32(mean / std)) ** 4)) - 3

    def dispersion(mean_squares: NDArray[np.float32], length: int) -> float:
        expected = (kurtosis + 2) / length * (1 + 2 * share**2) + share**4
        return float((np.var(mean_squares, dtype=np.float64) / expected - 1) * math.sqrt(mean_squares.size / 2))

    rows, columns = dispersion(squares.mean(1), n), dispersion(squares.mean(0), m)
    plausible = (
        abs(mean) / std <= 6 / math.sqrt(m * n) + share
        and -1.4 - share <= kurtosis <= sigmas * math.sqrt(24 / (m * n)) + share
        and abs(rows) <= sigmas
        and abs(columns) <= sigmas
    )
    if not plausible and max(abs(rows), abs(columns)) > 3 * sigmas:  # the eigenvalues cost the most
        return Randomness(std, kurtosis, rows, columns, math.nan, independent=False, structured=True)
    largest = float(np.linalg.eigvalsh(single @ single.T)[-1])
    width = math.sqrt(m) + math.sqrt(n)
    fluctuation = width * (1 / math.sqrt(m) + 1 / math.sqrt(n)) ** (1 / 3)
    highest = math.sqrt(width**2 + 6 * fluctuation) + share * math.sqrt(m * n)
    independent = plausible and width**2 - 10 * fluctuation <= largest <= highest**2
    structured = largest > highest**2 + 18 * fluctuation or largest < 0.6 * width**2  # orthogonal: a quarter of it
    edge = math.sqrt(largest) / width
    return Randomness(std, kurtosis, rows, columns, edge, independent=independent, structured=structured)


def _block(values: NDArray[Any]) -> NDArray[Any]:
    """At most `LOOKED_AT` of a matrix, evenly spread, without rows that are all zero (padding)."""
    rows, columns = (-(-length // most) for length, most in zip(values.shape, LOOKED_AT, strict=True))
    block = values[::rows, ::columns]
    return block[block.any(axis=1)]


def likeness(one: NDArray[Any], other: NDArray[Any]) -> float:
    """The cosine between two arrays of one shape, taken as vectors."""
    import numpy as np

    ours, theirs = one.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    return float(ours @ theirs) / (float(np.linalg.norm(ours) * np.linalg.norm(theirs)) or 1.0)


def stretched(table: NDArray[Any], length: int) -> NDArray[np.float64] | None:
    """A position table (T, C) stretched four times to `length` rows but for the first ones, which are kept.

    So many are kept as make it fit, 20 of 77 for 248; None where none fit. Between two neighbours come three
    interpolated rows, and behind the last one three that carry on its slope (Zhang et al. 2024, Long-CLIP, 3.2).
    """
    import numpy as np

    keep, rest = divmod(4 * len(table) - length, 3)
    if rest or not 0 <= keep <= len(table) - 2:
        return None
    rows = np.asarray(table, dtype=np.float64)
    tail = rows[keep:]
    slopes = np.concatenate([tail[1:] - tail[:-1], tail[-1:] - tail[-2:-1]])
    quarters = np.arange(4)[:, None] / 4
    return np.concatenate([rows[:keep], (tail[:, None] + quarters * slopes[:, None]).reshape(-1, rows.shape[1])])


def position_tables(tensors: Mapping[str, Tensor], *, largest: int = 1 << 26) -> dict[str, Tensor]:
    """The learnt position tables (T, C) by name."""
    return {
        name: one
        for name, one in tensors.items()
        if POSITIONS.search(name)
        and len(one.shape) == 2
        and min(one.shape) >= 8
        and is_float(one)
        and one.nbytes <= largest
    }


def derived(run: Run, tensors: Mapping[str, Tensor]) -> Iterator[tuple[Tensor, Tensor, NDArray[Any]]]:
    """What start-up code makes of other weights: each such tensor, the one that it is made of, and what it would be.

    A branch head is a copy of its elder, and a table for long texts a stretched one for short texts.
    """
    for role, other in ELDER.items():
        head, elder = (tensors.get(run.roles.get(one, "")) for one in (role, other))
        if head is not None and elder is not None and head.shape == elder.shape and len(head.shape) == 2:
            yield head, elder, elder.values()
    tables = list(position_tables(tensors).values())
    for short in tables:
        for long in tables:
            same = long.name.rpartition(".position")[0] == short.name.rpartition(".position")[0]
            if same and long.shape[1] == short.shape[1] and long.shape[0] > 2 * short.shape[0]:
                values = stretched(short.values(), long.shape[0])
                if values is not None:
                    yield long, short, values


def in_log_space(scale: Scale) -> bool:
    """Whether a scale holds a logarithm, as CLIP's does, and not a temperature or the scale itself.

    Told by its size, beside a name that says temperature: exp(11) is beyond what any loss is computed with.
    """
    name = scale.tensor.name.rpartition(".")[2]
    return scale.last > -11 and form_of(name, scale.last, limit=11) == "logarithm"


def sigmoid(run: Run) -> bool:
    """Whether the losses are SigLIP's: it is stated, or the model has the bias that only they need."""
    stated = run.facts.get("loss_kind")
    saved = run.checkpoint.tensors if run.checkpoints else ()
    return (stated is not None and stated.value == "sigmoid") or any("logit_bias" in name for name in saved)
