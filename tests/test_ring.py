from __future__ import annotations

import numpy as np
import pytest

from fgclip_doctor.ring import pointers, rows_per_forward, rows_per_step, spans
from fgclip_doctor.run import Missing, Run
from tests import features, runs
from tests.features import bank_run, saved

ROWS = features.cone(np.random.default_rng(0), 40, 64)


def test_pointers_are_those_of_the_log() -> None:
    run = bank_run(saved(ROWS, pointer=0, full=True))
    run.series["train/queue_ptr"] = runs.series("train/queue_ptr", [16, 32, 8, np.nan, 24])
    known = pointers(run)
    assert known.steps.tolist() == [1, 2, 3, 5]
    assert known.values.tolist() == [16, 32, 8, 24]
    assert known.turned.tolist() == [False, False, True, True]
    assert known.size == 40


def test_pointers_are_those_of_checkpoints_without_a_log() -> None:
    """One that counts on is taken modulo the size."""
    run = bank_run(saved(ROWS, pointer=16, full=False, step=10), saved(ROWS, pointer=48, full=True, step=20))
    assert pointers(run).values.tolist() == [16, 8]
    assert pointers(run).turned.tolist() == [False, True]


def test_spans_say_which_rows_stood_still() -> None:
    later = (np.concatenate([ROWS[0][:30], -ROWS[0][30:]]), ROWS[1])
    (span,) = spans(bank_run(saved(ROWS, pointer=0, full=True, step=10), saved(later, pointer=0, full=True, step=20)))
    assert span.steps == (10, 20)
    assert np.flatnonzero(~span.kept).tolist() == list(range(30, 40))


@pytest.mark.parametrize("look", [pointers, spans])
def test_one_look_is_too_few(look: object) -> None:
    with pytest.raises(Missing):
        look(bank_run(saved(ROWS, pointer=0, full=True)))  # type: ignore[operator]


def test_a_bank_of_regions_needs_their_number() -> None:
    def run(**facts: float) -> Run:
        return bank_run(saved(ROWS, pointer=0, full=True), micro_batch=4, **facts)

    assert rows_per_forward(run(regions_per_sample=1.5)) == 6
    assert rows_per_step(run(regions_per_sample=1.5, accumulation=2, world_size=8)) == 96
    with pytest.raises(Missing, match="regions_per_sample"):
        rows_per_forward(run())
