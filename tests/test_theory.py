"""The yardstick against simulation, and against the closed forms where there are any."""

from __future__ import annotations

from math import log, log2, sqrt

import numpy as np
import pytest
from numpy.typing import NDArray

from fgclip_doctor import theory


def unit(rng: np.random.Generator, rows: int, dimension: int) -> NDArray[np.float64]:
    features = rng.standard_normal((rows, dimension))
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def cross_entropy(logits: NDArray[np.float64]) -> float:
    """Mean InfoNCE of the rows of `logits`, the positive of row i being column i."""
    top = logits.max(axis=1)
    return float((top + np.log(np.exp(logits - top[:, None]).sum(axis=1)) - logits.diagonal()).mean())


def simulated(
    rng: np.random.Generator, anchors: int, candidates: int, scale: float, dimension: int, directions: int
) -> float:
    images, texts = unit(rng, candidates, dimension), unit(rng, candidates, dimension)
    losses = [scale * images[:anchors] @ texts.T, scale * texts[:anchors] @ images.T][:directions]
    return float(np.mean([cross_entropy(logits) for logits in losses]))


# (anchors, candidates, scale, dimension, directions); a bank where there are more candidates than anchors
CASES = [
    (4, 4, 14.24, 512, 1),
    (4, 4, 14.24, 512, 2),
    (4, 132, 14.24, 512, 2),
    (4, 4, 100.0, 512, 1),
    (4, 4, 100.0, 512, 2),
    (4, 132, 100.0, 512, 2),
    (32, 32, 100.0, 256, 2),
    (1, 11, 100.0, 512, 1),
    (64, 64, 30.0, 32, 2),
    (16, 16, 1.0, 16, 2),
]


@pytest.mark.parametrize(("anchors", "candidates", "scale", "dimension", "directions"), CASES)
def test_null_against_simulation(anchors: int, candidates: int, scale: float, dimension: int, directions: int) -> None:
    rng = np.random.default_rng(candidates + directions)
    losses = [simulated(rng, anchors, candidates, scale, dimension, directions) for _ in range(700)]
    null = theory.null(anchors=anchors, candidates=candidates, scale=scale, dimension=dimension, directions=directions)
    assert abs(np.mean(losses) - null.level) < 4.5 * null.noise / sqrt(len(losses))
    assert np.std(losses) == pytest.approx(null.noise, rel=0.11)  # the simulation's own error is 2.7 %


@pytest.mark.parametrize(
    ("candidates", "scale", "level", "noise"),
    [(4, 14.24, 1.528, 0.278), (132, 14.24, 5.079, 0.313), (4, 100.0, 4.747, 2.12), (132, 100.0, 12.115, 2.26)],
)
def test_null_of_four_anchors_in_512_dimensions(candidates: int, scale: float, level: float, noise: float) -> None:
    null = theory.null(anchors=4, candidates=candidates, scale=scale, dimension=512)
    assert null.level == pytest.approx(level, abs=1e-3)
    assert null.noise == pytest.approx(noise, abs=5e-3)


def test_accumulation_divides_the_noise_and_leaves_the_level() -> None:
    one = theory.null(anchors=4, candidates=4, scale=14.24, dimension=512)
    eight = theory.null(anchors=4, candidates=4, scale=14.24, dimension=512, accumulation=8)
    assert eight.level == one.level
    assert eight.noise == pytest.approx(one.noise / sqrt(8))


def test_null_without_scale_is_chance() -> None:
    assert theory.null(anchors=4, candidates=64, scale=0.0, dimension=512) == theory.Null(log(64), 0.0)
    assert theory.null(anchors=4, candidates=64, scale=0.01, dimension=512).level == pytest.approx(log(64), abs=1e-6)


def test_null_of_one_candidate_is_zero() -> None:
    assert theory.null(anchors=4, candidates=1, scale=100.0, dimension=64) == theory.Null(0.0, 0.0)


def test_null_of_many_candidates_is_that_of_a_normal_logit() -> None:
    """With so many candidates that their sum doesn't fluctuate, ln S is ln N + ln E[exp z] = ln N + s^2 / 2 d."""
    null = theory.null(anchors=1, candidates=10_000_000, scale=14.0, dimension=1024, directions=1)
    assert null.level == pytest.approx(log(1e7) + 14.0**2 / 2048, abs=1e-4)
    assert null.noise == pytest.approx(14.0 / 32, rel=1e-4)  # only the positive is left


@pytest.mark.parametrize("wrong", [{"anchors": 0}, {"candidates": 0}, {"scale": float("nan")}, {"dimension": 1}])
def test_null_refuses_what_is_no_loss(wrong: dict[str, float]) -> None:
    arguments = {"anchors": 4, "candidates": 4, "scale": 14.0, "dimension": 512} | wrong
    with pytest.raises(ValueError, match=r"candidates|anchors"):
        theory.null(**arguments)  # type: ignore[arg-type]


def test_yardstick_shift_is_about_the_log_ratio() -> None:
    assert theory.yardstick_shift(4, 132, scale=14.24, dimension=512) == pytest.approx(log(33), abs=0.06)
    assert theory.yardstick_shift(4, 132, scale=100.0, dimension=512) == pytest.approx(7.369, abs=1e-3)  # not 3.5


def test_chance() -> None:
    assert theory.chance_level(11) == pytest.approx(2.398, abs=1e-3)
    assert theory.chance_top1(11) == pytest.approx(0.0909, abs=1e-4)
    with pytest.raises(ValueError, match="at least one"):
        theory.chance_level(0)


@pytest.mark.parametrize(("candidates", "floor"), [(11, 0.514), (128, 0.804), (1024, 1.017), (4096, 1.157)])
def test_smoothing_floor_is_reached_by_torch(candidates: int, floor: float) -> None:
    torch = pytest.importorskip("torch")
    assert theory.smoothing_floor(candidates, 0.1) == pytest.approx(floor, abs=5e-4)
    other = 0.1 / candidates
    best = torch.full((1, candidates), log(other), dtype=torch.float64)
    best[0, 3] = log(0.9 + other)
    loss = torch.nn.functional.cross_entropy(best, torch.tensor([3]), label_smoothing=0.1)
    assert theory.smoothing_floor(candidates, 0.1) == pytest.approx(float(loss), abs=1e-5)
    assert theory.smoothing_floor(candidates, 0.0) == 0.0


def test_learnt_bits() -> None:
    assert theory.learnt_bits(5.0 - 2 * log(2), null_level=5.0, candidates=132) == pytest.approx(2.0)
    assert theory.learnt_bits(0.0, null_level=12.1, candidates=132) == log2(132)
    assert theory.learnt_bits(5.1, null_level=5.0, candidates=132) < 0


def test_margins_are_the_null_of_the_row_minus_its_loss() -> None:
    rng = np.random.default_rng(0)
    logits, positives = rng.standard_normal((6, 9)) * 5, np.array([3, 0, 8, 1, 1, 4])
    log_sum = np.log(np.exp(logits).sum(axis=1))
    loss = log_sum - logits[np.arange(6), positives]
    np.testing.assert_allclose(theory.margins(logits, positives), log_sum - logits.mean(axis=1) - loss, rtol=1e-10)


def test_sigmoid_level_at_init() -> None:
    assert theory.sigmoid_level(4096, scale=10.0, bias=-10.0) == pytest.approx(10.186, abs=1e-3)


@pytest.mark.parametrize(("scale", "dimension"), [(10.0, 64), (100.0, 64), (100.0, 512)])
def test_sigmoid_level_against_simulation(scale: float, dimension: int) -> None:
    rng = np.random.default_rng(3)
    logits = scale * (unit(rng, 400, dimension) @ unit(rng, 400, dimension).T) - 4.0
    row = np.logaddexp(0, logits).mean() * 63 + np.logaddexp(0, -logits).mean()
    assert theory.sigmoid_level(64, scale=scale, bias=-4.0, dimension=dimension) == pytest.approx(row, rel=0.02)


def test_sigmoid_best_bias_is_best() -> None:
    best = theory.sigmoid_best_bias(128)
    assert best == pytest.approx(-4.844, abs=1e-3)
    losses = [theory.sigmoid_level(128, scale=10.0, bias=best + off) for off in (-0.05, 0.0, 0.05)]
    assert losses[1] == min(losses)


def test_mean_with_error_sees_autocorrelation() -> None:
    """Over many AR(1) series, the mean misses by about as much as its error says; the plain error is 3 times less."""
    rng = np.random.default_rng(1)
    ratios = []
    for _ in range(300):
        noise = rng.standard_normal(400)
        series = np.zeros(400)
        for i in range(1, 400):
            series[i] = 0.8 * series[i - 1] + noise[i]
        mean, error = theory.mean_with_error(series)
        ratios.append(mean / error)
    assert 0.8 < np.std(ratios) < 1.5
    assert theory.mean_with_error([1.0] * 7)[1] == float("inf")
    assert theory.mean_with_error([]) == (float("inf"), float("inf"))
    assert theory.mean_with_error([0.5] * 8) == (0.5, 0.0)


@pytest.mark.parametrize("candidates", [2, 16, 4096])
def test_the_sigmoid_chance_is_the_least_of_any_constant_logit(candidates: int) -> None:
    best = theory.sigmoid_best_bias(candidates)
    levels = [theory.sigmoid_level(candidates, scale=0.0, bias=best + shift) for shift in (-0.1, 0.0, 0.1)]
    assert theory.sigmoid_chance(candidates) == pytest.approx(levels[1])
    assert levels[1] < min(levels[0], levels[2])
    assert theory.sigmoid_chance(1) == 0.0


def test_equal_logits_give_the_supervised_chance_whatever_counts_as_positive() -> None:
    """A plain writing-out of SupCon: the mean over its positives of each view's log-probabilities."""
    batch, temperature = 25, 0.1
    logits = np.zeros((2 * batch, 2 * batch))
    other = ~np.eye(2 * batch, dtype=bool)
    labels = np.tile(np.arange(batch) // 3, 2)
    log_probabilities = logits - np.log((np.exp(logits) * other).sum(axis=1, keepdims=True))
    positives = (labels[:, None] == labels) & other
    loss = -(log_probabilities * positives).sum(axis=1) / positives.sum(axis=1)
    assert theory.supervised_chance(batch, temperature=temperature) == pytest.approx(temperature / 0.07 * loss.mean())
