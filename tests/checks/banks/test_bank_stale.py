from __future__ import annotations

import numpy as np
import pytest

from fgclip_doctor import Missing, Run
from fgclip_doctor_checks.banks.bank_stale import bank_stale
from tests import features
from tests.features import Pairs, bank_run, saved, unit

RNG = np.random.default_rng(0)
BOTH = features.cone(RNG, 256, 64)
OLD, NEW = (BOTH[0][:128], BOTH[1][:128]), (BOTH[0][128:], BOTH[1][128:])
FACTS = {"micro_batch": 4, "regions_per_sample": 2, "accumulation": 1}


def drifting(shift: float, rows: int = 128) -> Pairs:
    """Images whose mean moved by `shift` half way, texts that stayed."""
    images, texts = features.aligned(np.random.default_rng(1), rows, 64)
    images[: rows // 2, 0] += shift
    return unit(images), texts


def turned(kept: int, steps: int = 40) -> Run:
    """The first `kept` of 128 rows are those of 40 steps ago, each of which brings 8."""
    now = tuple(np.concatenate([old[:kept], new[kept:]]) for old, new in zip(OLD, NEW, strict=True))
    looks = saved(OLD, pointer=0, full=True, step=100), saved(now, pointer=0, full=True, step=100 + steps)  # type: ignore[arg-type]
    return bank_run(*looks, **FACTS)


def test_fires_where_rows_outlive_a_turn() -> None:
    (finding,) = bank_stale(turned(64))
    assert finding.message.startswith("50% of the rows")
    assert finding.explained_by == ("FGD205", "FGD208")


def test_flips_at_the_share_of_rows_and_at_the_turns() -> None:
    assert list(bank_stale(turned(32)))
    assert not list(bank_stale(turned(31)))
    assert list(bank_stale(turned(64, steps=24)))  # 192 rows are a turn and a half
    assert not list(bank_stale(turned(64, steps=23)))


def test_fires_where_the_older_half_lies_elsewhere() -> None:
    (finding,) = bank_stale(bank_run(saved(drifting(1.5), pointer=0, full=True)))
    assert finding.where == "region_image_queue"


def test_age_is_told_from_the_pointer() -> None:
    """With the pointer a quarter on, either half of the ring holds as many old rows as new ones."""
    assert not list(bank_stale(bank_run(saved(drifting(1.5), pointer=32, full=True))))


def test_flips_at_the_drift() -> None:
    run = bank_run(saved(drifting(1.5), pointer=0, full=True))
    share = next(bank_stale(run)).evidence[0].value
    assert isinstance(share, float)
    assert list(bank_stale(run, drift=share - 0.01))
    assert not list(bank_stale(run, drift=share + 0.01))


def test_flips_at_the_end_of_the_start() -> None:
    def run(step: int, **facts: float) -> Run:
        return bank_run(saved(drifting(1.5), pointer=0, full=True, step=step), **facts)

    assert list(bank_stale(run(50)))
    for early in (run(49), run(199, warmup_steps=200), run(99, max_steps=2000)):
        with pytest.raises(Missing, match="at its start"):
            list(bank_stale(early))


@pytest.mark.parametrize("encoder", features.ENCODED)
def test_quiet_on_rows_of_one_encoder(encoder: object) -> None:
    rows = encoder(np.random.default_rng(2), 128, 64)  # type: ignore[operator]
    assert not list(bank_stale(bank_run(saved(rows, pointer=40, full=True))))
    assert not list(bank_stale(bank_run(saved(rows, pointer=100, full=False))))


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (Run("test"), "no checkpoint"),
        (bank_run(saved(OLD, pointer=0, full=False)), "no rows yet"),
        (bank_run(saved(OLD, pointer=31, full=False)), "too few"),
        (bank_run(saved(OLD, pointer=None, full=True)), "no age"),
    ],
)
def test_skipped_without_evidence(run: Run, reason: str) -> None:
    with pytest.raises(Missing, match=reason):
        list(bank_stale(run))
