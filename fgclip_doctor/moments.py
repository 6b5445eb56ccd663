"""What Adam's second moment tells of the gradients that the optimizer was given, after clipping.

After t steps ``v = (1 - b2) * sum(b2^(t - i) * g_i^2)``, so ``v / (1 - b2^t)`` is a weighted mean of the squared
gradients (Kingma & Ba 2015, section 3), and its sum over all parameters that of the squared norm: where every gradient
was clipped to a norm of c, its root is c at most.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite, sqrt
from typing import TYPE_CHECKING

from fgclip_doctor.run import Optimizer, OptimizerGroup

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LARGEST = 1 << 28  # bytes of a table whose rows are looked at


def mean_square(optimizer: Optimizer, index: int) -> float | None:
    """The weighted mean of the squared gradient norms of one parameter; None where Adam's state doesn't tell."""
    state, beta = optimizer.states.get(index), second_beta(optimizer.group_of(index))
    if state is None or state.exp_avg_sq is None or not state.step or beta is None:
        return None
    seen = state.exp_avg_sq.statistics
    total = seen.mean * seen.count / (1 - beta**state.step)
    return total if seen.finite and isfinite(total) and total >= 0 else None


def norm(optimizer: Optimizer, indices: Iterable[int]) -> float | None:
    """The root of the mean squared gradient norm of some parameters together; None where none of them tells."""
    known = [square for index in indices if (square := mean_square(optimizer, index)) is not None]
    return sqrt(sum(known)) if known else None


def second_beta(group: OptimizerGroup) -> float | None:
    """Adam's beta2, if the group has one that makes sense."""
    betas = group.options.get("betas")
    beta = betas[1] if isinstance(betas, (list, tuple)) and len(betas) == 2 else None
    return beta if isinstance(beta, float) and 0 <= beta < 1 else None


def decoupled(optimizer: Optimizer) -> bool:
    """Whether no weight decay is in the gradients that the moments are of, as it is in Adam's but not in AdamW's."""
    return all(not group.weight_decay or group.options.get("decoupled_weight_decay") for group in optimizer.groups)


def alive_rows(optimizer: Optimizer, index: int) -> NDArray[np.bool_] | None:
    """Which rows of a matrix ever had a gradient; None where Adam's state doesn't tell."""
    import numpy as np

    state = optimizer.states.get(index)
    if state is None or state.exp_avg_sq is None or len(state.exp_avg_sq.shape) != 2:
        return None
    if state.exp_avg_sq.nbytes > LARGEST or not state.exp_avg_sq.statistics.finite:
        return None
    return np.asarray((state.exp_avg_sq.values() > 0).any(axis=1))
