from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fgclip_doctor import Missing, Run
from fgclip_doctor.bank import memory_bank
from fgclip_doctor.recorded import LossSite, Recording
from fgclip_doctor_checks.banks.bank_holds_positives import bank_holds_positives
from tests import features, runs
from tests.features import Pairs, bank_run, saved, unit
from tests.watched_ranks import rank, site

K = 200
CONE = features.cone(np.random.default_rng(0), K, 64)


def repeated(times: int, rows: int = K) -> tuple[Pairs, np.ndarray[Any, Any]]:
    """The first `rows` texts in groups of `times` with the same caption, encoded a little later each; and their ids."""
    ids = np.arange(K)
    ids[:rows] //= times
    later = 1e-4 * np.random.default_rng(1).standard_normal(CONE[1].shape)
    return (unit(CONE[0] + CONE[1][ids]), unit(CONE[1][ids] + later)), ids


def run_of(pairs: Pairs, ids: np.ndarray[Any, Any] | None = None, **facts: Any) -> Run:
    more = {} if ids is None else {"region_caption_queue": runs.tensor("region_caption_queue", ids, "int64")}
    return bank_run(saved(pairs, pointer=0, full=True, more=more), **facts)


def with_candidates(run: Run, brought: float) -> Run:
    """A log of the region loss's candidates: 16, and when the bank is on and full so many more."""
    values = [16.0] * 20 + [16.0 + brought] * 60
    run.series["train/candidates_region"] = runs.series("train/candidates_region", values)
    return run


def watched(*sites: LossSite) -> Run:
    run = run_of(CONE)
    run.recording = Recording((rank(0, *sites),), 20)
    return run


def test_fires_where_nothing_could_mask_the_duplicates() -> None:
    (finding,) = bank_holds_positives(run_of(repeated(2)[0]))
    assert "100% of its rows have another with the same text" in finding.message
    assert "0.69" in str(finding.evidence[0].why)  # ln 2


@pytest.mark.parametrize(("rows", "findings"), [(60, 1), (100, 1), (150, 1), (170, 0)])
def test_fires_where_one_text_is_that_of_many_rows(rows: int, findings: int) -> None:
    """Up to four fifths of them: where all texts are one, it is the encoder that has collapsed."""
    assert len(list(bank_holds_positives(run_of(repeated(rows, rows)[0])))) == findings


def test_fires_where_all_rows_are_candidates_though_ids_are_kept() -> None:
    assert list(bank_holds_positives(with_candidates(run_of(*repeated(2)), K)))
    assert not list(bank_holds_positives(with_candidates(run_of(*repeated(2)), K - 1)))  # one masked an anchor


def test_reads_the_candidates_of_a_bank_that_fills_from_the_first_step_on() -> None:
    def run(brought: float) -> Run:
        run = run_of(*repeated(2))
        filling = np.minimum(16.0 * np.arange(80), brought)
        run.series["train/candidates_region"] = runs.series("train/candidates_region", 16.0 + filling)
        return run

    assert list(bank_holds_positives(run(K)))
    assert not list(bank_holds_positives(run(K - 1)))


def test_fires_where_the_batch_is_in_the_bank_already() -> None:
    again = {"twins": np.ones(20)}
    (finding,) = bank_holds_positives(watched(site("loss.py:3", **again), site("loss.py:4", **again)))
    assert "enqueued before its loss" in finding.message


@pytest.mark.parametrize(("before", "expected"), [(0.0, 1), (1.0, 0)])  # or its captions stand there twice anyway
def test_positives_that_come_with_the_bank_in_one_direction(before: float, expected: int) -> None:
    twins = np.where(np.arange(20) < 10, before, 1.0)
    one = site("loss.py:3", twins=twins)
    one = replace(one, candidates=np.where(np.arange(20) < 10, one.anchors, 9 * one.anchors))
    assert len(list(bank_holds_positives(watched(one)))) == expected


def test_reads_the_candidates_of_a_recording() -> None:
    def run(brought: float) -> Run:
        run = run_of(repeated(2)[0])
        seen = replace(site(), candidates=np.array([8.0] * 5 + [8.0 + brought] * 15))
        run.recording = Recording((rank(0, seen),), 20)
        return run

    assert list(bank_holds_positives(run(K)))
    assert not list(bank_holds_positives(run(K - 1)))


@pytest.mark.parametrize(
    "sites",
    [
        (site("loss.py:3", twins=np.ones(20)), site("loss.py:4", twins=np.zeros(20))),  # captions twice in a batch
        (site("loss.py:3", twins=np.full(20, 0.9)), site("loss.py:4", twins=np.full(20, 0.9))),
        (site("loss.py:3", twins=np.full(20, np.nan)), site("loss.py:4", twins=np.full(20, np.nan))),  # too coarse
    ],
)
def test_quiet_where_a_positive_stands_there_once(sites: tuple[LossSite, ...]) -> None:
    assert not list(bank_holds_positives(watched(*sites)))


@pytest.mark.parametrize("encoder", features.ENCODED)
def test_quiet_on_rows_that_are_merely_close(encoder: Any) -> None:
    rows = encoder(np.random.default_rng(2), K, 64)
    assert not list(bank_holds_positives(run_of(rows)))
    narrow = tuple(unit(one + 200 * one.mean(axis=0)) for one in rows)  # cosines all over 0.999
    assert not list(bank_holds_positives(run_of(narrow)))  # type: ignore[arg-type]


def test_flips_at_the_share_of_anchors() -> None:
    assert list(bank_holds_positives(run_of(repeated(2, 20)[0])))
    assert not list(bank_holds_positives(run_of(repeated(2, 18)[0])))


def test_a_text_tower_that_tells_no_captions_apart_yet_repeats_none() -> None:
    """At the start of a training from scratch many captions lie together, whatever the images are."""
    (images, texts), _ = repeated(20)
    strangers = (np.random.default_rng(4).permutation(images), texts)
    with pytest.raises(Missing, match="no better than by luck"):
        list(bank_holds_positives(run_of(strangers)))
    assert list(bank_holds_positives(run_of((images, texts))))


def test_believes_rows_from_the_bits_on_that_they_tell() -> None:
    (images, texts), _ = repeated(20)
    bits = memory_bank(run_of((images, texts))).retrieval().bits
    assert list(bank_holds_positives(run_of((images, texts)), told=bits - 1e-6))
    with pytest.raises(Missing):
        list(bank_holds_positives(run_of((images, texts)), told=bits + 1e-6))


def test_a_bank_that_holds_half_of_the_data_meets_its_own_anchors() -> None:
    def run(epoch: float, **facts: Any) -> Run:
        return run_of(CONE, steps_per_epoch=epoch, micro_batch=4, accumulation=2, max_steps=1000, **facts)

    (finding,) = bank_holds_positives(run(55.5))  # 444 samples
    assert finding.evidence[0].name == "rows to pairs in the data"
    assert not list(bank_holds_positives(run(55.7)))
    assert not list(bank_holds_positives(run(55.5, num_epochs=1)))  # each sample comes once
    assert not list(bank_holds_positives(with_candidates(run(40.0), K - 1)))  # masked
    assert list(bank_holds_positives(with_candidates(run(40.0), K)))


def test_a_bank_to_be_filled_is_judged_by_the_size_of_the_data() -> None:
    def run(pairs: int) -> Run:
        return bank_run(saved(CONE, pointer=0, full=False), dataset_size=pairs)

    (finding,) = bank_holds_positives(run(444))
    assert "10% of the anchors or more meet their own pair" in finding.message
    assert not list(bank_holds_positives(run(445)))


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (Run("test"), "no checkpoint"),
        (run_of(*repeated(2)), "that would show a mask"),
        (run_of(features.noise(np.random.default_rng(3), K, 64)), "noise"),
        (bank_run(saved(CONE, pointer=0, full=False)), "dataset_size"),
    ],
)
def test_skipped_without_evidence(run: Run, reason: str) -> None:
    with pytest.raises(Missing, match=reason):
        list(bank_holds_positives(run))
