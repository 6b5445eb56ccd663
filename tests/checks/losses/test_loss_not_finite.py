"""FGD506 fires on what is not finite, seen or hidden, and knows the values that only look so."""

from __future__ import annotations

from typing import NoReturn

import numpy as np
import pytest

from fgclip_doctor import Missing
from fgclip_doctor_checks.losses.loss_not_finite import loss_not_finite
from tests import runs
from tests.watched_ranks import rank, site, watched

SOUND = np.linspace(2, 1, 20)
ROLES = {"loss.total": "loss"}


def logged(loss: np.ndarray, norms: np.ndarray | None = None) -> list[object]:
    series = [runs.series("loss", loss), *([] if norms is None else [runs.series("grad_norm", norms)])]
    return list(loss_not_finite(runs.run(logged=series, roles=ROLES)))


def ending(values: np.ndarray, last: float, count: int) -> np.ndarray:
    return np.concatenate([values[: len(values) - count], np.full(count, last)])


def test_fires_on_weights_that_are_not_finite() -> None:
    weights = {"a.weight": np.array([1.0, np.nan, np.inf]), "b.weight": np.ones(4)}
    (finding,) = loss_not_finite(runs.run(runs.checkpoint(weights)))
    assert finding.where == "a.weight"
    assert finding.evidence[0].value == 2


def test_an_attention_mask_holds_infinities_on_purpose() -> None:
    mask = np.triu(np.full((4, 4), -np.inf), 1)
    assert list(loss_not_finite(runs.run(runs.checkpoint({"attn_mask": mask, "w": np.ones(4)})))) == []
    nan = np.full((4, 4), np.nan)
    assert list(loss_not_finite(runs.run(runs.checkpoint({"attn_mask": nan}))))


@pytest.mark.parametrize(("count", "expected"), [(2, 0), (3, 1)])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_flips_at_the_third_record_in_a_row(value: float, count: int, expected: int) -> None:
    assert len(logged(ending(SOUND, value, count))) == expected


@pytest.mark.parametrize(("count", "expected"), [(2, 0), (3, 1)])
def test_a_clean_zero_beside_a_gradient_norm_that_is_not_finite(count: int, expected: int) -> None:
    found = logged(ending(SOUND, 0.0, count), ending(SOUND, np.nan, count))
    assert len(found) == expected


@pytest.mark.parametrize(("count", "expected"), [(2, 0), (3, 1)])
def test_a_recorded_loss_that_is_not_finite(count: int, expected: int) -> None:
    """A recording has no values of large weights, and yet those of its losses."""
    loss = ending(SOUND, np.nan, count)
    run = watched(rank(0, site(loss=loss, calls=20)))
    run.series["loss at loss.py:12"] = runs.series("loss at loss.py:12", loss)
    weights = runs.checkpoint({"w": np.ones(4)})
    weights.tensors["w"]._measure = unknown
    run.checkpoints = (weights,)
    assert len(list(loss_not_finite(run))) == expected


def unknown() -> NoReturn:
    raise Missing("the recording holds no values of w")


def test_a_true_zero_has_a_finite_gradient_norm() -> None:
    assert logged(ending(SOUND, 0.0, 5), SOUND) == []
    assert logged(ending(SOUND, 0.0, 5)) == []


def test_records_without_a_value_and_early_overflows_are_healthy() -> None:
    gaps = SOUND.copy()
    gaps[[3, 7, 12]] = np.nan
    assert logged(gaps) == []
    overflows = np.concatenate([np.full(4, np.inf), SOUND[4:]])
    assert logged(SOUND, overflows) == []


def test_skipped_without_weights_and_log() -> None:
    with pytest.raises(Missing):
        list(loss_not_finite(runs.run()))
