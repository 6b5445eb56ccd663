from __future__ import annotations

import numpy as np
import pytest

from fgclip_doctor import Missing, Run
from fgclip_doctor.recorded import Recording
from fgclip_doctor_checks.banks.bank_rank_local import bank_rank_local
from tests import features, runs
from tests.features import bank_run, saved
from tests.watched_ranks import SAME, rank

CONE = features.cone(np.random.default_rng(0), 1000, 64)
FACTS = {"micro_batch": 4, "regions_per_sample": 2, "accumulation": 1, "world_size": 2}


def filling(rows: int, **facts: object) -> Run:
    """A bank of which `rows` were written from step 10 to step 40."""
    stated = {**FACTS, "bank_warmup": 10, "bank_clock": "step", **facts}
    return bank_run(saved(CONE, pointer=rows, full=False, step=40), **stated)


def logged(rows_a_step: int, steps: int = 200, size: int = 1000) -> Run:
    """The log of a pointer, every second step."""
    run = bank_run(saved(CONE, pointer=0, full=True, step=steps), **FACTS)
    at = np.arange(2, steps, 2)
    run.series["train/bank_pointer"] = runs.series("train/bank_pointer", at * rows_a_step % size, at)
    return run


def ranks(*banks: str, parameters: str = "pppppp") -> Run:
    run = bank_run(saved(CONE, pointer=0, full=True))
    hashed = {"region_image_queue": dict(enumerate(banks[0])), "parameters": SAME}
    other = {"region_image_queue": dict(enumerate(banks[1])), "parameters": dict(enumerate(parameters, start=1))}
    hashed["parameters"] = dict.fromkeys(range(1, 7), "p")
    run.recording = Recording((rank(0, digests=hashed), rank(1, digests=other)), 20)
    return run


def test_fires_where_a_filling_bank_has_the_rows_of_one_rank() -> None:
    (finding,) = bank_rank_local(filling(240))
    assert "advances by 8 rows a step, those of one rank, and not by 16" in finding.message


def test_fires_on_a_logged_pointer_through_its_turns() -> None:
    (finding,) = bank_rank_local(logged(8))
    assert finding.evidence[0].value == 8
    assert not list(bank_rank_local(logged(16)))


def test_fires_on_two_checkpoints() -> None:
    looks = [saved(CONE, pointer=pointer, full=True, step=step) for pointer, step in ((900, 100), (60, 120))]
    assert list(bank_rank_local(bank_run(*looks, **FACTS)))
    looks[1] = saved(CONE, pointer=220, full=True, step=120)
    assert not list(bank_rank_local(bank_run(*looks, **FACTS)))


def test_fires_where_the_ranks_hold_different_rows() -> None:
    (finding,) = bank_rank_local(ranks("aabcd", "aawxy"))
    assert "differ at 3 of the steps" in finding.message


@pytest.mark.parametrize("other", ["aabcd", "aaxyd", "aabxy"])  # alike; alike in the end; two steps only
def test_quiet_where_the_ranks_hold_the_same_rows(other: str) -> None:
    assert not list(bank_rank_local(ranks("aabcd", other)))


def test_flips_at_the_tolerance() -> None:
    assert list(bank_rank_local(filling(240 * 114 // 100)))
    assert not list(bank_rank_local(filling(240 * 116 // 100)))
    assert not list(bank_rank_local(filling(480)))


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (filling(240, world_size=1), "one rank only"),
        (filling(240, accumulation=2), "one forward of each step"),
        (filling(0), "more than once"),
        (bank_run(saved(CONE, pointer=240, full=False)), "world_size"),
        (ranks("aabcd", "aawxy", parameters="pqrstu"), "so do their banks"),
        (Run("test"), "world_size"),
    ],
)
def test_skipped_without_evidence(run: Run, reason: str) -> None:
    with pytest.raises(Missing, match=reason):
        list(bank_rank_local(run))
