"""FGD106."""

from collections.abc import Iterator
from typing import Any

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check
from fgclip_doctor.parts import named
from fgclip_doctor.provenance import half_ulps
from fgclip_doctor.run import OptimizerGroup, ParameterState, Tensor

SAMPLE = 48  # parameters, evenly spread, and the smallest of them; of each at most 16,384 values
COMPENSATED = ("kahan", "stochastic_round", "compensat")


@check("FGD106", "updates-lost-to-rounding", Severity.ERROR)
def updates_lost_to_rounding(run: Run, *, lost: float = 0.5, vanished: float = 0.1) -> Iterator[Finding]:
    """The parameters are kept in 16 bits with no 32-bit copy, and most updates round to nothing.

    Why: bfloat16 has 8 significant bits. An update below half the distance to the next value is lost, and at the
    learning rates of fine-tuning that is nearly all of them; scales and norm gains never move.
    Evidence: the stored type or the exact grid of the weights together with that of Adam's first moment, and the share
    of values for which lr * m / (sqrt(v) + eps), at the peak learning rate, is under half an ulp. In float16, also the
    share of values with a first moment whose second moment has underflowed to 0, so that Adam divides by eps alone.
    Benign: a 16-bit export of a run with 32-bit masters (Adam's state is then in 32 bits), autocast over 32-bit
    parameters, and optimizers that compensate (Kahan, stochastic rounding), as their groups say or as weights show
    that changed where plain rounding forbids it.
    Fix: keep the parameters in float32 and use autocast (bf16=True without model.to(bfloat16)), or an optimizer with
    float32 masters.
    Sources: Micikevicius et al. 2018, section 3.1 (master weights); huggingface/transformers#21312 (Kahan summation);
    openai/CLIP#40 (float16: what is under 2^-24 is 0).
    """
    import numpy as np

    optimizer = named(run)
    if any(
        word in str(key).lower() and value
        for group in optimizer.groups
        for key, value in group.options.items()
        for word in COMPENSATED
    ):
        return
    pairs = [
        (run.tensors[names[0]], optimizer.states[index], optimizer.group_of(index))
        for index, names in optimizer.names.items()
        if index in optimizer.states and names[0] in run.tensors and len(names) == 1
    ]
    if pairs and all(state.exp_avg is None for _, state, _ in pairs):
        yield from _watched(run)
        return
    pairs.sort(key=lambda pair: pair[0].size)
    pairs = pairs[:SAMPLE] + pairs[SAMPLE :: max(1, len(pairs) // SAMPLE)]
    pure = [pair for pair in pairs if _low(pair[0]) and pair[1].exp_avg is not None and _low(pair[1].exp_avg)]
    yield from _underflow(run, [state for _, state, _ in pure], vanished)
    counted = [(pair[0].size, share) for pair in pure if (share := _lost(*pair)) is not None]
    if not counted or _compensated(run, pure):
        return
    sizes, shares = np.array(counted).T
    share = float(np.average(shares, weights=sizes))
    if share < lost:
        return
    first = next(pair for pair in pure if pair[0].size == max(sizes))
    rate = first[2].initial_lr or 0.0
    stuck = sum(one > 0.999 for one in shares)
    yield Finding(
        message=(
            f"{share:.1%} of the updates round to nothing: the parameters and Adam's state are in {_kind(first[0])}, "
            f"and a step of {rate:g} is under half an ulp; {stuck} of {len(shares)} tensors can't move at all."
        ),
        where=first[0].name,
        evidence=(
            Evidence(
                name="updates lost",
                value=round(share, 4),
                expected=f"under {lost:g}",
                why="share of values with lr |m| / (sqrt(v) + eps) under half an ulp, by the type that weights are on",
                source=str(first[0].source),
                step=run.step,
            ),
            Evidence(
                name="type of exp_avg",
                value=_kind(first[1].exp_avg or first[0]),
                expected="float32",
                why="an optimizer with 32-bit parameters or masters keeps 32-bit moments",
                source=str((first[1].exp_avg or first[0]).source),
            ),
        ),
    )


def _underflow(run: Run, states: list[ParameterState], vanished: float) -> Iterator[Finding]:
    """Second moments of 0 beside first ones that are not."""
    there = gone = 0
    worst: tuple[int, Tensor] | None = None
    for state in states:
        mean, square = state.exp_avg, state.exp_avg_sq
        if mean is None or square is None or square.dtype != "float16" or mean.shape != square.shape:
            continue
        moving = _sampled(mean) != 0
        zero = int((moving & (_sampled(square) == 0)).sum())
        there, gone = there + int(moving.sum()), gone + zero
        if worst is None or zero > worst[0]:
            worst = (zero, square)
    if worst is None or not there or gone < vanished * there:
        return
    yield Finding(
        message=f"{gone / there:.1%} of Adam's second moments are 0 in float16, an underflow, beside first moments that"
        " are not: these steps are m / eps, of any size, and no longer bounded by the learning rate.",
        where=worst[1].name,
        evidence=(
            Evidence(
                name="second moments that are 0",
                value=round(gone / there, 4),
                expected=f"under {vanished:g}",
                why="of those with a first moment; float16 has nothing under 2^-24, and moments are squares",
                source=str(worst[1].source),
                step=run.step,
            ),
        ),
    )


def _kind(tensor: Tensor) -> str:
    """The type of the values, whatever type they are stored in."""
    return tensor.dtype if tensor.dtype in ("bfloat16", "float16") else "bfloat16"


def _watched(run: Run, *, still: float = 0.8, looks: int = 5) -> Iterator[Finding]:
    """By a recording: how many values that had a gradient a step left as they were, at no less than a quarter of the
    peak rate. Only of torch's own optimizers, which round to nearest and keep no copies.
    """
    first = run.watched.first
    rates = run.series.get("learning_rate")
    if not first.unchanged or not set(first.optimizers) <= {"Adam", "AdamW", "SGD"} or rates is None:
        raise Missing(
            "Adam's moments are not known, and no parameters in 16 bits were seen to be updated by torch's own"
        )
    peak = max(group.initial_lr or 0.0 for group in run.optimizer.groups)
    known = dict(zip(rates.steps.tolist(), rates.values.tolist(), strict=True))
    shares = [share for step, share in first.unchanged.items() if known.get(step, 0.0) >= 0.25 * peak > 0]
    if len(shares) < looks:
        raise Missing(f"fewer than {looks} steps were looked at once the learning rate was a quarter of its peak")
    share = sum(shares) / len(shares)
    if share >= still:
        yield Finding(
            message=f"{share:.1%} of the values that had a gradient stay as they are in a step: the parameters are "
            f"kept in 16 bits, and a step of {peak:g} is under half an ulp of them.",
            where="parameters in 16 bits",
            evidence=(
                Evidence(
                    name="values that a step left unchanged",
                    value=round(share, 4),
                    expected=f"under {still:g}",
                    why=f"of up to 4,096 of each tensor, at {len(shares)} steps; torch's own optimizers keep no copy",
                    source=first.path,
                ),
            ),
        )


def _low(tensor: Tensor) -> bool:
    """Stored in 16 bits, or in 32 with every value on bfloat16's grid (constants may be there by chance)."""
    if tensor.dtype in ("bfloat16", "float16"):
        return True
    return tensor.dtype == "float32" and tensor.statistics.std > 0 and tensor.statistics.bf16_exact == 1


def _sampled(tensor: Tensor) -> Any:
    values = tensor.values().reshape(-1)
    return values[:: max(1, values.size // 16_384)].astype("float64")


def _lost(weight: Tensor, state: ParameterState, group: OptimizerGroup) -> float | None:
    """The share of values whose update at the peak learning rate is rounded away; None without any update."""
    import numpy as np

    if state.exp_avg is None or state.exp_avg.shape != weight.shape or not group.initial_lr:
        return None
    mean = np.abs(_sampled(state.exp_avg))
    square = _sampled(state.exp_avg_sq) if state.exp_avg_sq is not None else mean**2
    ratio = mean / (np.sqrt(np.maximum(square, 0)) + 1e-30)
    update = group.initial_lr * np.minimum(ratio, 3.2)  # Adam's bound
    there = (mean > 0) & (square > 0)  # a second moment that underflowed bounds nothing
    return float(np.mean((update < half_ulps(_sampled(weight), _kind(weight)))[there])) if there.any() else None


def _compensated(run: Run, pure: list[tuple[Tensor, ParameterState, OptimizerGroup]]) -> bool:
    """Whether values changed between two checkpoints that no single step could have changed by plain rounding."""
    import numpy as np

    before = next((one for one in reversed(run.checkpoints[:-1]) if one.tensors), None)
    immovable = changed = 0
    for weight, state, group in pure if before is not None else ():
        old = before.tensors.get(weight.name) if before is not None else None
        if old is None or old.shape != weight.shape:
            continue
        values = _sampled(old)
        stuck = half_ulps(values, _kind(weight)) > 4 * (group.initial_lr or 0.0)  # Adam's bound is 3.2 lr
        if state.exp_avg_sq is not None and state.exp_avg_sq.shape == weight.shape:
            stuck &= _sampled(state.exp_avg_sq) > 0
        immovable += int(stuck.sum())
        changed += int(np.sum(stuck & (values != _sampled(weight))))
    return changed > 0.01 * immovable
