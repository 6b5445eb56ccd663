"""What Adam's second moment tells of the gradients that the optimizer was given, after clipping.

After t steps ``v = (1 - b2) * sum(b2^(t - i) * g_i^2)``, so ``v / (1 - b2^t)`` is a weighted mean of the squared
gradients (Kingma & Ba 2015, section 3), and its sum over all parameters that of the squared norm: where every gradient
was clipped to a norm of c, its root is c at most.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import isfinite, sqrt
from typing import TYPE_CHECKING

from fgclip_doctor.findings import Evidence
from fgclip_doctor.parts import named, scales, side
from fgclip_doctor.run import Missing, Optimizer, OptimizerGroup, Run, Series

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


def recorded_norms(run: Run) -> Series | None:
    """The norms of what a watched optimizer was given, just before its steps; None where a scaler may be in them."""
    series = run.series.get("grad_norm")
    if run.recording is None or series is None or series.source.path != run.recording.first.path:
        return None
    lone = len(run.recording.first.optimizers) <= 1  # each may have been clipped by itself
    scaled = "fp16" in run.facts and run.facts["fp16"].value
    return series if lone and not scaled else None


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


def observations(run: Run) -> Iterator[Evidence]:
    """How large the gradients of each part were, whether or not anything is wrong with them; and Adam's constants."""
    optimizer = run.optimizer
    whole = norm(optimizer, optimizer.indices)
    if whole is None or not decoupled(optimizer):
        raise Missing("Adam's state doesn't tell how large gradients were")
    threshold, source = run.facts.get("max_grad_norm"), str(optimizer.source)
    yield Evidence(
        name="gradient norm given to the optimizer",
        value=float(f"{whole:.4g}"),
        expected=f"{threshold.value:g} at most" if threshold is not None and threshold.value else None,
        why=f"root mean square, after clipping, by Adam's second moment{_by_part(run)}",
        source=source,
        step=run.step,
    )
    constants = {f"betas {group.options.get('betas')}, eps {group.options.get('eps')}" for group in optimizer.groups}
    yield Evidence(
        name="Adam's constants",
        value="; ".join(sorted(constants)),
        why="CLIP's for a ViT are 0.9, 0.98 and 1e-6 (Radford et al. 2021, table 19), PyTorch's 0.9, 0.999 and 1e-8",
        source=source,
    )
    for index, names in optimizer.names.items():
        rows = alive_rows(optimizer, index) if len(names) == 1 and "token_emb" in names[0] else None
        if rows is not None and not rows.all():
            yield Evidence(
                name=f"rows of {names[0]} without a gradient",
                value=f"{rows.size - int(rows.sum())} of {rows.size}",
                why="tokens that don't occur in the captions, which is as it should be",
                source=source,
            )


def _by_part(run: Run) -> str:
    """The norms of the towers, of all heads and of all scales, as far as it is known which parameter is which."""
    try:
        optimizer = named(run)
    except Missing:
        return ""
    heads = {tensor.name for _, tensor in run.heads()}
    temperatures = {tensor.name for tensor in scales(run).values()}
    parts: dict[str, list[int]] = {}
    for index, names in optimizer.names.items():
        body = f"{which} tower" if (which := side(run, names[0])) else "the rest"
        part = "heads" if names[0] in heads else "scales" if names[0] in temperatures else body
        parts.setdefault(part, []).append(index)
    known = {part: square for part, indices in parts.items() if (square := norm(optimizer, indices)) is not None}
    return ": " + ", ".join(f"{part} {one:.3g}" for part, one in sorted(known.items())) if known else ""
