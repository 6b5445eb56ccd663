from __future__ import annotations

import numpy as np
import pytest

from fgclip_doctor import Missing, Run
from fgclip_doctor.factors import heaviest, jump_by
from tests.runs import run, series

STEPS = np.arange(1, 201)
RNG = np.random.default_rng(0)


def summed(*weights: float) -> Run:
    names = ("global_loss", "region_loss")[: len(weights)]
    terms = [RNG.uniform(1, 3, 200) for _ in weights]
    total = sum(weight * term for weight, term in zip(weights, terms, strict=True))
    logged = [series("loss", total), *(series(name, term) for name, term in zip(names, terms, strict=True))]
    return run(logged=logged, roles={"loss.total": "loss"})


@pytest.mark.parametrize(
    ("weights", "factor"),
    [((8.0, 1.0), 8.0), ((0.125, 0.05), 0.125), ((1.0, 1.0), 0.0), ((7.9, 1.0), 0.0), ((4.0, 4.0), 0.0)],
)
def test_the_factor_of_the_largest_weight(weights: tuple[float, ...], factor: float) -> None:
    assert heaviest(summed(*weights), 8.0, 0.005).factor == factor


def test_the_mean_of_as_many_terms_is_meant() -> None:
    assert heaviest(summed(0.5, 0.5), 2.0, 0.005).factor == 0
    with pytest.raises(Missing):
        heaviest(run(logged=[series("loss", STEPS)], roles={"loss.total": "loss"}), 2.0, 0.005)


@pytest.mark.parametrize(("factor", "found"), [(4.0, True), (0.25, True), (3.0, False)])
def test_a_jump_by_the_accumulation(factor: float, *, found: bool) -> None:
    values = np.where(STEPS < 100, 2.0, 2.0 * factor) * np.exp(RNG.normal(0, 0.02, 200))
    jump = jump_by(run(logged=[series("loss", values)]), "loss", 4.0)
    assert jump is not None
    assert (jump.error > 0) is found
    assert not found or abs(jump.index - 100) <= 2
