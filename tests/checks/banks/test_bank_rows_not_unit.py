from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fgclip_doctor import Missing, Run
from fgclip_doctor_checks.banks.bank_rows_not_unit import bank_rows_not_unit
from tests import features
from tests.features import bank_run, saved

RNG = np.random.default_rng(0)
IMAGES, TEXTS = features.cone(RNG, 256, 64)


def messages(run: Run, **thresholds: Any) -> list[str]:
    return [finding.message for finding in bank_rows_not_unit(run, **thresholds)]


def scaled(length: float, rows: int = 256) -> features.Pairs:
    images = IMAGES.copy()
    images[:rows] *= length
    return images, TEXTS


def test_fires_on_normal_vectors() -> None:
    drawn = RNG.standard_normal((256, 64)).astype(np.float32)
    (message,) = messages(bank_run(saved((drawn, TEXTS), pointer=3, full=True)))
    assert "sqrt(64), a normal vector's" in message


def test_fires_on_a_zero_row_among_the_written() -> None:
    images = IMAGES.copy()
    images[7] = 0
    (message,) = messages(bank_run(saved((images, TEXTS), pointer=3, full=True)))
    assert "1 are zero" in message


def test_fires_on_rows_that_are_not_numbers() -> None:
    (message,) = messages(bank_run(saved(scaled(float("nan"), 5), pointer=3, full=True)))
    assert "5 aren't of length 1" in message


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_quiet_on_unit_rows(dtype: str) -> None:
    assert not messages(bank_run(saved((IMAGES, TEXTS), pointer=3, full=True, dtype=dtype)))


@pytest.mark.parametrize("full", [False, None])
def test_quiet_on_what_was_never_written(full: bool | None) -> None:
    images, texts = IMAGES.copy(), TEXTS.copy()
    images[100:], texts[100:] = 0, 3
    assert not messages(bank_run(saved((images, texts), pointer=100, full=full)))


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (bank_run(saved((IMAGES, TEXTS), pointer=0, full=False)), "no rows yet"),
        (bank_run(saved((IMAGES * 0, TEXTS * 0), pointer=0, full=None)), "ever written"),
        (bank_run(saved((IMAGES * 3, TEXTS), pointer=0, full=None), bank_enabled=False), "ever written"),
        (Run("test"), "no checkpoint"),
    ],
)
def test_skipped_without_evidence(run: Run, reason: str) -> None:
    with pytest.raises(Missing, match=reason):
        messages(run)


def test_flips_at_the_thresholds() -> None:
    def fires(pairs: features.Pairs, dtype: str = "float32") -> bool:
        return bool(messages(bank_run(saved(pairs, pointer=3, full=True, dtype=dtype))))

    assert not fires(scaled(1.009))
    assert fires(scaled(1.011))
    assert not fires(scaled(1.017), "float16")
    assert fires(scaled(1.023), "float16")
    assert not fires(scaled(2.0, rows=2))  # under 1 % of 256
    assert fires(scaled(2.0, rows=3))
