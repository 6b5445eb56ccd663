from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fgclip_doctor import Missing, Run
from fgclip_doctor_checks.banks.bank_wraparound import bank_wraparound
from tests import features, runs
from tests.features import Pairs, bank_run, saved

RNG = np.random.default_rng(0)
OLD, NEW = features.cone(RNG, 100, 64), features.cone(RNG, 100, 64)
FORWARD = {"micro_batch": 4, "regions_per_sample": 2}


def joined(first: Pairs, second: Pairs, at: int, until: int = 100) -> Pairs:
    """`second` in the rows [at, until) of `first`."""
    one, other = (np.concatenate([a[:at], b[at:until], a[until:]]) for a, b in zip(first, second, strict=True))
    return one, other


def looks(now: Pairs, pointer: int) -> Run:
    return bank_run(
        saved(OLD, pointer=30, full=True, step=100), saved(now, pointer=pointer, full=True, step=200), **FORWARD
    )


def logged(pointers: Any, size: int = 100, **facts: Any) -> Run:
    run = bank_run(saved(tuple(rows[:size] for rows in NEW), pointer=0, full=True), **facts)  # type: ignore[arg-type]
    run.series["queue_ptr"] = runs.series("queue_ptr", pointers)
    return run


def turning(rows: Any, size: int = 100, *, resets: bool) -> list[int]:
    """The pointer after each enqueue of `rows`."""
    pointer, seen = 0, []
    for count in rows:
        pointer = 0 if resets and pointer + count >= size else (pointer + count) % size
        seen.append(pointer)
    return seen


VARYING = np.random.default_rng(1).integers(5, 12, 120)


def test_fires_where_the_end_of_the_ring_stands_still() -> None:
    (finding,) = bank_wraparound(looks(joined(OLD, NEW, 0, 90), pointer=40))
    assert "never replaces its last 10 of 100 rows" in finding.message


@pytest.mark.parametrize(
    ("first", "last", "pointer", "expected"),
    [(0, 90, 40, 1), (0, 90, 90, 0), (30, 90, 90, 0), (0, 90, 95, 0)],  # behind itself; it fills; it is in there
)
def test_a_ring_that_keeps_no_flag_has_turned_where_it_wrote_behind_its_pointer(
    first: int, last: int, pointer: int, expected: int
) -> None:
    both = ((OLD, 30, 100), (joined(OLD, NEW, first, last), pointer, 200))
    kept = [saved(pairs, pointer=at, full=None, step=step) for pairs, at, step in both]
    assert len(list(bank_wraparound(bank_run(*kept, **FORWARD)))) == expected


def test_fires_where_pointers_are_multiples_of_what_does_not_divide_the_ring() -> None:
    (finding,) = bank_wraparound(logged(turning([8] * 60, resets=True)))
    assert "multiples of 8 only" in finding.message
    assert "4 of 104 rows are dropped" in finding.message


def test_fires_on_two_checkpoints_with_the_rows_of_a_forward_known() -> None:
    assert list(bank_wraparound(looks(NEW, pointer=64))) == []  # the other pointer is 30
    looked = [(OLD, 48), (NEW, 64)]
    eights = [saved((one[:99], other[:99]), pointer=at, full=True, step=at) for (one, other), at in looked]
    assert list(bank_wraparound(bank_run(*eights, **FORWARD)))
    zeros = [saved((one[:99], other[:99]), pointer=0, full=True, step=at) for (one, other), at in looked]
    assert list(bank_wraparound(bank_run(*zeros, **FORWARD, accumulation=1)))
    assert not list(
        bank_wraparound(bank_run(*zeros, micro_batch=200, regions_per_sample=1))
    )  # more than the ring holds
    assert not list(bank_wraparound(bank_run(*eights)))  # by luck once in 14 times
    assert not list(bank_wraparound(bank_run(*eights, **FORWARD, accumulation=62)))  # 16 steps bring 16 modulo 99


def test_fires_where_every_turn_ends_at_row_0() -> None:
    (finding,) = bank_wraparound(logged(turning(VARYING, resets=True)))
    assert "though steps bring 5 to 11 rows" in finding.message


def test_fires_on_a_full_bank_with_empty_rows_at_its_end() -> None:
    zeros = (np.zeros_like(OLD[0]), np.zeros_like(OLD[1]))
    (finding,) = bank_wraparound(bank_run(saved(joined(NEW, zeros, 96), pointer=8, full=True)))
    assert "leaves its last 4 of 100 rows empty" in finding.message


@pytest.mark.parametrize(
    "run",
    [
        logged(turning([8] * 60, resets=False)),  # goes on where it started over
        logged(turning(VARYING, resets=False)),
        logged(turning([10] * 60, resets=True)),  # divides the ring
        looks(joined(OLD, NEW, 30, 100), pointer=0),  # written from the pointer to the end
        looks(joined(OLD, NEW, 0, 90), pointer=90),  # the pointer has come just so far
        looks(joined(OLD, NEW, 30, 80), pointer=80),
        looks(NEW, pointer=31),
    ],
)
def test_quiet_on_a_ring_that_turns(run: Run) -> None:
    assert not list(bank_wraparound(run))


def test_flips_at_the_share_of_lost_rows() -> None:
    run = logged(turning([8] * 60, resets=True))
    assert list(bank_wraparound(run, share=0.04))
    assert not list(bank_wraparound(run, share=0.041))


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (Run("test"), "no checkpoint"),
        (bank_run(saved(OLD, pointer=30, full=False)), "at one step only"),
    ],
)
def test_skipped_without_evidence(run: Run, reason: str) -> None:
    with pytest.raises(Missing, match=reason):
        list(bank_wraparound(run))
