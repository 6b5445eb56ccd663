"""The drift of a run, the origin of its weights, and the test for independent values, against simulation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fgclip_doctor import Missing
from fgclip_doctor.core.text import stretched_positions
from fgclip_doctor.provenance import derived, drift, half_ulp, half_ulps, origin, randomness, stretched
from tests.runs import adam, checkpoint, group, optimizer, run, series, state

DRAWS = {
    "normal": lambda rng, shape: rng.normal(0, 0.02, shape),
    "uniform": lambda rng, shape: rng.uniform(-0.05, 0.05, shape),
    "truncated": lambda rng, shape: np.clip(rng.normal(0, 0.02, shape), -0.04, 0.04),
}


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize(("shape", "trials"), [((16, 64), 1000), ((32, 32), 1000), ((48, 192), 200), ((128, 512), 20)])
def test_independent_values_are_recognised(draw: str, shape: tuple[int, int], trials: int) -> None:
    """At less than 1 miss in 1,000, a thousand trials see more than four once in 270 times; none was seen in 36,000."""
    rng = np.random.default_rng(0)
    looks = [randomness(DRAWS[draw](rng, shape)) for _ in range(trials)]
    assert sum(look is None or not look.independent for look in looks) <= 4 * trials // 1000


@pytest.mark.parametrize("moved", [1e-3, 3e-3])
def test_what_a_run_can_have_added_is_allowed_for(moved: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        aligned = np.sign(rng.normal(size=(64, 1))) * np.sign(rng.normal(size=(1, 256)))  # the most that it can do
        look = randomness(rng.normal(0, 0.02, (64, 256)) + moved * aligned, moved)
        assert look is not None
        assert look.independent


def low_rank(rng: np.random.Generator) -> NDArray[np.float64]:
    return rng.normal(size=(64, 256)) + 0.4 * rng.normal(size=(64, 8)) @ rng.normal(size=(8, 256))


STRUCTURED: dict[str, Any] = {
    "a few strong directions": low_rank,
    "LoRA merged": lambda rng: rng.normal(size=(64, 256)) + 3 * np.outer(rng.normal(size=64), rng.normal(size=256)) / 4,
    "rows of unequal size": lambda rng: rng.normal(size=(64, 256)) * np.exp(rng.normal(0, 0.3, (64, 1))),
    "columns of unequal size": lambda rng: rng.normal(size=(64, 256)) * np.exp(rng.normal(0, 0.3, 256)),
    "heavy tails": lambda rng: rng.standard_t(4, (64, 256)),
    "orthogonal": lambda rng: np.linalg.qr(rng.normal(size=(256, 64)))[0].T,
    "a mean": lambda rng: rng.normal(0.2, 1, (64, 256)),
    "smooth rows": lambda rng: np.cumsum(rng.normal(size=(64, 256)), axis=0) / 8,
}


@pytest.mark.parametrize("kind", STRUCTURED)
def test_structure_is_not_taken_for_independent_values(kind: str) -> None:
    rng = np.random.default_rng(0)
    looks = [randomness(STRUCTURED[kind](rng)) for _ in range(50)]
    assert not any(look is None or look.independent for look in looks)


def test_nothing_is_said_of_what_is_small_constant_broken_or_drifted() -> None:
    values = np.random.default_rng(0).normal(0, 0.02, (64, 64))
    assert randomness(values[:8]) is None
    assert randomness(np.zeros((64, 64))) is None
    assert randomness(np.where(values > 0.05, np.nan, values)) is None
    assert randomness(values, moved=0.006) is None


def test_drift_is_the_sum_of_the_learning_rates_times_the_bound_of_adam() -> None:
    weights = checkpoint({"w": np.ones((2, 2))}).tensors
    state = adam(weights, lr=1e-3, weight_decay=0.1, betas=(0.9, 0.999))
    seen = drift(run(checkpoint(weights, 100, optimizer=state)))
    assert seen.typical == pytest.approx(0.1)
    assert seen.bound == pytest.approx(0.1 * 0.1 / 0.001**0.5)
    assert seen.reach(2.0) == pytest.approx(seen.bound + 0.1 * 0.1 * 2)


def test_drift_follows_the_logged_schedule() -> None:
    """Between records the larger neighbour counts, and before the first one the peak."""
    weights = checkpoint({"w": np.ones((2, 2))}).tensors
    logged = series("learning_rate", [1e-3, 5e-4, 0.0], [10, 50, 100])
    case = run(checkpoint(weights, 100, optimizer=adam(weights, lr=1e-3)), logged=[logged])
    assert drift(case).typical == pytest.approx(1e-3 * 10 + 1e-3 * 40 + 5e-4 * 50)


def test_adam_stays_within_its_drift() -> None:
    """Adam itself, on gradients of constant sign, of noise, and of rare bursts."""
    rng = np.random.default_rng(0)
    gradients = np.stack([np.ones(500), rng.normal(size=500), (rng.uniform(size=500) < 0.02) * 1.0])
    mean = square = position = np.zeros(3)
    for step in range(1, 501):
        gradient = gradients[:, step - 1]
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        hat = (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-12)
        position = position - 1e-3 * hat
    weights = checkpoint({"w": np.ones((2, 2))}).tensors
    assert np.all(np.abs(position) <= drift(run(checkpoint(weights, 500, optimizer=adam(weights, lr=1e-3)))).bound)


def test_drift_of_groups_and_of_what_no_group_holds() -> None:
    weights = checkpoint({"fast": np.ones(4), "slow": np.ones(4), "frozen": np.ones(4)}).tensors
    groups = [group(0, [0], lr=1e-3), group(1, [1], lr=1e-5)]
    states = [state(index, 10, np.ones(4), np.ones(4)) for index in (0, 1)]
    case = run(checkpoint(weights, 10, optimizer=optimizer(groups, states, {0: "fast", 1: "slow"})))
    assert drift(case, "fast").typical == pytest.approx(1e-2)
    assert drift(case, "slow").typical == pytest.approx(1e-4)
    assert drift(case, "frozen").bound == 0
    assert drift(case).typical == pytest.approx(1e-2)


def test_drift_is_unknown_for_other_optimizers_and_without_a_learning_rate() -> None:
    weights = checkpoint({"w": np.ones(4)}).tensors
    momentum = optimizer([group(0, [0])], [state(0, 10)], {0: "w"})
    with pytest.raises(Missing, match="Adam"):
        drift(run(checkpoint(weights, 10, optimizer=momentum)))
    with pytest.raises(Missing, match="learning_rate"):
        drift(run(checkpoint(weights, 10)))


@pytest.mark.parametrize(("spread", "pretrained"), [(0.2, True), (1e-4, False)])
@pytest.mark.parametrize("start", [1.0, 0.0])
def test_origin_by_the_norm_gains(spread: float, start: float, *, pretrained: bool) -> None:
    rng = np.random.default_rng(0)
    gains = {f"blocks.{block}.norm.weight": start + spread * rng.uniform(-1, 1, 64) for block in range(4)}
    assert origin(run(checkpoint(gains), facts={"learning_rate": 1e-5})).pretrained is pretrained


def test_origin_can_not_be_told_where_learning_rates_reach_as_far() -> None:
    gains = {"norm.weight": np.random.default_rng(0).normal(1, 0.2, 64)}
    with pytest.raises(Missing, match="can't tell"):
        origin(run(checkpoint(gains, 10_000), facts={"learning_rate": 1e-3}))


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        (1.0, "bfloat16", 2**-8),
        (2.66, "bfloat16", 2**-7),
        (1.99, "float32", 2**-24),
        (1e-6, "float16", 2**-25),
        (4.6, "float8_e4m3fn", 2**-2),
        (1e-6, "float8_e4m3fn", 2**-10),
        (4.6, "float8_e5m2", 2**-1),
        (1e-6, "float8_e5m2", 2**-17),
    ],
)
def test_half_an_ulp(value: float, dtype: str, expected: float) -> None:
    assert half_ulp(value, dtype) == expected
    assert half_ulps(np.array([value, 0.0]), dtype)[1] > 0


@pytest.mark.parametrize(("rows", "length", "keep"), [(77, 248, 20), (32, 68, 20), (10, 40, 0), (10, 16, 8)])
def test_a_stretched_table_is_that_of_the_model(rows: int, length: int, keep: int) -> None:
    table = np.random.default_rng(0).normal(size=(rows, 8))
    found = stretched(table, length)
    assert found is not None
    assert np.allclose(found, stretched_positions(torch.from_numpy(table), keep).numpy())


@pytest.mark.parametrize("length", [41, 39, 13, 10])
def test_a_table_that_cannot_be_stretched_to_a_length(length: int) -> None:
    assert stretched(np.ones((10, 4)), length) is None


def test_what_start_up_code_makes_of_other_weights() -> None:
    head, short = np.arange(72.0).reshape(9, 8), np.ones((32, 8))
    names = {"a.position_embedding.weight": short, "a.position_embedding_res.weight": np.ones((68, 8))}
    tensors = checkpoint({"visual.weight": head, "roi.weight": head, "b.position_embedding.weight": head, **names})
    roles = {"head.image": "visual.weight", "head.region": "roi.weight"}
    made = list(derived(run(roles=roles), tensors.tensors))
    assert [(part.name, source.name) for part, source, _ in made] == [
        ("roi.weight", "visual.weight"),
        ("a.position_embedding_res.weight", "a.position_embedding.weight"),
    ]
    assert [values.shape for _, _, values in made] == [(9, 8), (68, 8)]


def test_drift_is_unknown_where_a_schedule_set_by_hand_has_ended() -> None:
    ended = optimizer([group(0, [0], lr=0.0, betas=(0.9, 0.999))], [state(0, 100)], {0: "weight"})
    made = run(checkpoint({"weight": np.ones((4, 4))}, 100, optimizer=ended))
    with pytest.raises(Missing, match="learning_rate"):
        drift(made, "weight")
