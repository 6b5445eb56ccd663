"""The yardstick: what a contrastive loss means, given its candidates and its scale.

Levels and noise are in nats, learnt bits in bits. `candidates` (N) are the columns of the logits matrix, `anchors` (n)
its rows, `scale` (s) is ``exp(logit_scale)`` and `dimension` (d) the width of the shared embedding.

**The null.** Take unit features that know nothing of each other. The cosine t of two of them has the density
``(1 - t^2)^((d-3)/2)`` on [-1, 1], of mean 0 and variance 1/d, and given an anchor the N logits z = s t of its row are
independent. The loss of the row is ``ln S - z_1``, with ``S = sum_j exp(z_j)`` and z_1 the positive.

**E[ln S], exactly.** For independent standard Gumbel variables G and G_j, ``ln S + G`` has the law of
``max_j (z_j + G_j)``, whose distribution function is a power: ``F(y)^N``, with ``F(y) = E exp(-exp(z - y))``. Setting
it beside a Gumbel law centred at m leaves a smooth integrand that vanishes at both ends, where the trapezoidal rule
converges exponentially::

    E[ln S] = m + I_1,    Var[ln S] = I_2 - I_1^2 - 2 gamma I_1,
    I_k = integral of k (y - m)^(k-1) (exp(-exp(m - y)) - F(y)^N) dy.

Putting one known logit for one factor F gives ``E[ln S | z_1 = z]``, and with it the covariance of ln S with its
positive and the *main effect*, ``Var E[ln S | z_1]``. No log-normal approximation is made: those fail at s = 100, where
the largest logit is the sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import exp, inf, isfinite, log, log1p, log2, sqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

LN2 = log(2)
EULER_GAMMA = 0.5772156649015329

_STEP = 0.4  # of the quadrature over y: the error is about exp(-pi^2 / step) = 2e-11
_TAIL = 9.5  # standard deviations of a logit that the quadrature covers


@dataclass(frozen=True, slots=True)
class Null:
    """InfoNCE of unaligned unit features: its mean, and the standard deviation of one logged value around it."""

    level: float
    noise: float


@dataclass(frozen=True, slots=True)
class _Row:
    """Moments of ln S over one row of independent logits, and of its logits."""

    mean: float  # E[ln S]
    variance: float  # Var[ln S]
    covariance: float  # Cov[ln S, z_1]
    main: float  # Var E[ln S | z_1]
    logit: float  # Var[z_1] = s^2 / d


def chance_level(candidates: float) -> float:
    """The loss when every candidate is as likely as the next, ``ln N``: that of collapsed features, or of scale 0."""
    if candidates < 1:
        raise ValueError(f"{candidates} candidates: at least one is needed")
    return log(candidates)


def chance_top1(candidates: float) -> float:
    """The share of anchors whose positive comes first by luck, ``1 / N``."""
    return 1 / candidates


def smoothing_floor(candidates: float, smoothing: float) -> float:
    """The least loss that label smoothing leaves reachable: the entropy of the smoothed target.

    The target gives every candidate ``smoothing / N`` and the positive the rest, as torch's `cross_entropy` does. The
    null and chance levels don't move: unaligned logits have mean 0 whatever the target weighs.
    """
    other = smoothing / candidates
    positive = 1 - smoothing + other
    return -sum(count * p * log(p) for count, p in ((1, positive), (candidates - 1, other)) if p > 0)


def null(
    *,
    anchors: int,
    candidates: int,
    scale: float,
    dimension: int,
    accumulation: int = 1,
    directions: int = 2,
) -> Null:
    """The null of a loss over `anchors` rows of `candidates` logits, averaged over `accumulation` such batches.

    `directions` is 2 for the mean of image-to-text and text-to-image, whose in-batch logits are the same numbers, with
    or without the rows of a bank behind them; 1 for one direction alone.

    The level is exact to 1e-6. In the noise, rows that share their candidates count as independent: given two anchors
    at cosine r their logits correlate by r, which is 0 on average, so what is left is of order n / d times the part of
    Var[ln S] that no single logit explains. Simulation finds the noise within 5 % up to n = 16 d.
    """
    if anchors < 1 or accumulation < 1 or directions not in (1, 2):
        raise ValueError(f"{anchors} anchors, {accumulation} batches, {directions} directions")
    row = _row(candidates, scale, dimension)
    if candidates == 1:  # the positive is the whole row
        return Null(0.0, 0.0)
    partition = row.variance / anchors
    if directions == 2:  # every row shares exactly one logit with every column
        partition = (partition + row.main) / 2
    variance = partition + (row.logit - 2 * row.covariance) / anchors
    return Null(row.mean, sqrt(max(variance, 0.0) / accumulation))


def yardstick_shift(before: int, after: int, *, scale: float, dimension: int) -> float:
    """How far the null level moves when the candidates go from `before` to `after`: about ``ln(after / before)``."""
    return _row(after, scale, dimension).mean - _row(before, scale, dimension).mean


def learnt_bits(loss: float, *, null_level: float, candidates: float) -> float:
    """Bits of the pairing that the features carry: ``(null - loss) / ln 2``, and never more than ``log2 N``."""
    return min((null_level - loss) / LN2, log2(candidates))


def margins(logits: NDArray[np.floating], positives: NDArray[np.integer]) -> NDArray[np.float64]:
    """``logsumexp(row) - mean(row) - loss`` of each row of `logits` (n, N) whose positive is column `positives` (n,).

    The first two terms are the loss that the row would have if its positive were the average candidate: the null with
    the features' own distribution in place of the uniform one. The logsumexp cancels, and what remains is the margin
    of the positive over its row, in nats; over ln 2, capped at log2 N, its mean is the learnt bits.
    """
    import numpy as np

    positive = np.take_along_axis(logits, positives[:, None], axis=1)[:, 0]
    margin: NDArray[np.float64] = (positive - logits.mean(axis=1)).astype(np.float64)
    return margin


def sigmoid_level(candidates: int, *, scale: float, bias: float, dimension: int | None = None) -> float:
    """The sigmoid (SigLIP) loss per anchor, summed over its row, for unaligned features; with no `dimension`, cosine 0.

    Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-training", section 3.2: s = 10 and bias -10 at init, which
    is 10.19 at 4,096 candidates.
    """
    if dimension is None or scale == 0:
        return _softplus(-bias) + (candidates - 1) * _softplus(bias)
    logits, weights = _logits(scale, dimension)
    pairs = [(float(z), float(w)) for z, w in zip(logits, weights, strict=True)]
    positive = sum(w * _softplus(-(z + bias)) for z, w in pairs)
    return positive + (candidates - 1) * sum(w * _softplus(z + bias) for z, w in pairs)


def sigmoid_chance(candidates: float) -> float:
    """The least sigmoid loss per anchor, summed over its row, without knowledge: ``N H(1 / N)``, about ``ln N + 1``.

    Every logit equal, at the log odds of a match (`sigmoid_best_bias`): 10 at init comes down to this with no learning.
    """
    if candidates < 2:
        return 0.0
    return log(candidates) + (candidates - 1) * log(candidates / (candidates - 1))


def supervised_chance(batch: int, *, temperature: float, base_temperature: float = 0.07) -> float:
    """The chance level of SupCon and of SimCLR as SupContrast has it: ``T / T_base * ln(2 N - 1)`` for N samples.

    Each of the 2 N views is set against the others, 2 N - 1 of them, and however many of these are its positives, equal
    logits give each ln(2 N - 1). The loss is then multiplied by ``temperature / base_temperature``, 0.1 / 0.07 as it is
    run most often: 8.91 with 256 samples, 6.92 with 64 (HobbitLong/SupContrast#3 and #42), 5.56 with 25
    (dewenzeng/positional_cl#5).
    """
    return temperature / base_temperature * log(2 * batch - 1)


def sigmoid_best_bias(candidates: int) -> float:
    """The bias that is best for features that know nothing: the log odds of a pair being a match, ``-ln(N - 1)``."""
    return -log(candidates - 1)


def mean_with_error(values: Sequence[float] | NDArray[np.float64]) -> tuple[float, float]:
    """The mean of a logged series and its standard error, which autocorrelation widens (infinite under 8 values).

    The larger of the plain standard error and that of about sqrt(n) batch means, at least 4 of them.
    """
    import numpy as np

    series = np.asarray(values, dtype=np.float64)
    if len(series) < 8:
        return (float(series.mean()) if len(series) else inf), inf
    count = max(4, int(sqrt(len(series))))
    batches = np.array([batch.mean() for batch in np.array_split(series, count)])
    plain = series.std(ddof=1) / sqrt(len(series))
    return float(series.mean()), float(max(plain, batches.std(ddof=1) / sqrt(count)))


@lru_cache(maxsize=256)
def _row(candidates: int, scale: float, dimension: int) -> _Row:
    """The moments of one row, by the quadrature in the module's docstring."""
    import numpy as np

    if candidates < 1 or dimension < 2 or not (isfinite(scale) and scale >= 0):
        raise ValueError(f"no null for {candidates} candidates, scale {scale} and dimension {dimension}")
    sigma = scale / sqrt(dimension)
    if sigma < 1e-4:  # every logit is 0, but for 1e-4
        return _Row(log(candidates), 0.0, 0.0, 0.0, 0.0)
    logits, weights = _logits(scale, dimension)
    top = min(scale, _TAIL * sigma)
    y = np.arange(-top - 5, top + log(candidates) + 40, _STEP)
    exceed = -np.expm1(-np.exp(np.minimum(logits - y[:, None], 700.0)))  # (Y, Z): P(z + Gumbel > y)
    log_f = np.log1p(-np.minimum(exceed @ weights, 1 - 1e-16))  # (Y,): ln F, exact where F is nearly 1
    centre = log(candidates) + min(sigma**2 / 2, sigma * sqrt(2 * log(candidates)))
    gumbel = np.exp(-np.exp(np.minimum(centre - y, 700.0)))
    first, second = (
        float(_STEP * np.sum(k * (y - centre) ** (k - 1) * (gumbel - np.exp(candidates * log_f)))) for k in (1, 2)
    )
    others = np.exp((candidates - 1) * log_f)
    given = _STEP * ((gumbel - others).sum() + others @ exceed)  # (Z,): E[ln S | z_1 = z] - centre
    return _Row(
        mean=centre + first,
        variance=max(second - first**2 - 2 * EULER_GAMMA * first, 0.0),
        covariance=float(weights @ (logits * given)),
        main=float(weights @ (given - weights @ given) ** 2),
        logit=sigma**2,
    )


def _logits(scale: float, dimension: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Nodes and weights for expectations over one null logit. Exact to rounding for d >= 16, to about 1 % for d = 4."""
    import numpy as np

    sigma = scale / sqrt(dimension)
    top = min(scale, _TAIL * sigma)
    count = int(np.ceil(top / min(_STEP, 0.8 * sigma)))
    logits = np.linspace(-top, top, 2 * count + 1)
    with np.errstate(divide="ignore"):
        density = np.exp((dimension - 3) / 2 * np.log1p(-np.minimum((logits / scale) ** 2, 1.0)))
    density[~np.isfinite(density)] = 0.0
    return logits, density / density.sum()


def _softplus(x: float) -> float:
    return max(x, 0.0) + log1p(exp(-abs(x)))
