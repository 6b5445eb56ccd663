from __future__ import annotations

from math import log

import numpy as np
import pytest

from fgclip_doctor import Missing, Run, progress
from fgclip_doctor.run import Event, Source
from fgclip_doctor.sums import decompose
from fgclip_doctor.terms import Term, terms
from tests import runs

BANK = {"micro_batch": 4, "world_size": 1, "candidates": 132, "bank_size": 128, "scale": 14.24, "dimension": 512}


def loss(values: np.ndarray, **facts: object) -> Run:
    return runs.run(facts=facts, roles={"loss.total": "loss"}, logged=[runs.series("loss", values)])


def only(run: Run) -> Term:
    (term,) = terms(run)
    assert isinstance(term, Term)
    return term


def test_bits_are_learnt_under_ln_n_and_the_band_holds_them() -> None:
    truth = np.linspace(0, 4, 5000)  # of 5 bits
    values = log(32) - truth * log(2) + 0.2 * np.random.default_rng(0).standard_normal(5000)
    run = loss(values, candidates=32)
    found = progress.learnt(run, only(run))
    assert len(found.steps) == 100
    within = (found.low <= np.interp(found.steps, np.arange(5000), truth)) & (truth[found.steps] <= found.high)
    assert within.mean() > 0.9
    assert (found.high - found.low).mean() == pytest.approx(4 * 0.2 / log(2) / 50**0.5, rel=0.1)


@pytest.mark.parametrize("told", [True, False])
def test_a_bank_that_comes_on_moves_no_bits(told: bool) -> None:
    values = np.where(np.arange(200) < 100, 1.39, 4.88) + 0.02 * np.random.default_rng(0).standard_normal(200)
    run = loss(values, **BANK)
    if told:
        run.events.append(Event("bank-on", 101, "bank enabled", Source("train.log")))
    found = progress.learnt(run, only(run))
    assert np.abs(found.bits).max() < 0.15


def test_bits_follow_the_logged_candidates() -> None:
    counts = np.where(np.arange(60) < 30, 8.0, 64.0)
    run = loss(np.log(counts) - log(2), micro_batch=8, world_size=1)
    run.series["candidates"] = runs.series("candidates", counts)
    assert progress.learnt(run, only(run)).bits == pytest.approx(np.ones(60))


def test_a_sigmoid_loss_has_its_own_chance() -> None:
    run = loss(np.full(50, 4.8), candidates=64, loss_kind="sigmoid")
    term = only(run)
    assert term.chance == pytest.approx(log(64) + 63 * log(64 / 63))
    with pytest.raises(Missing):
        _ = term.null
    assert progress.learnt(run, term).bits[0] == pytest.approx((term.chance - 4.8) / log(2))


def test_nothing_finite_is_no_term() -> None:
    (reason,) = terms(loss(np.full(5, np.nan), candidates=32))
    assert isinstance(reason, Missing)
    assert "no finite value" in str(reason)


def test_a_stretch_is_what_nothing_happened_in() -> None:
    run = loss(np.ones(500), candidates=32, warmup_steps=50)
    run.events.append(Event("resume", 201, "", Source("train.log")))
    (course,) = progress.courses(run)
    steps, _ = progress.stretch(run, course)
    assert (steps[0], steps[-1]) == (201, 500)


def test_terms_come_before_their_total() -> None:
    run = runs.run(
        roles={"loss.total": "loss", "loss.region": "r"},
        logged=[runs.series("loss", [2.0, 1.0]), runs.series("r", [1.0, np.nan])],
    )
    (course,) = progress.courses(run)
    assert (course.name, course.term, course.values.tolist()) == ("region", None, [1.0])
    with pytest.raises(Missing, match="no loss"):
        progress.courses(Run("test"))


def test_a_total_is_taken_apart() -> None:
    rng = np.random.default_rng(0)
    one, two = rng.random(100), rng.random(100)
    named = {"loss": 3 * one + 0.25 * two + 1.0, "loss_a": one, "loss_b": two, "eval_loss": two, "loss_copy": one}
    logged = [runs.series(name, values) for name, values in named.items()]
    found = decompose(runs.run(roles={"loss.total": "loss"}, logged=logged))
    assert [part.name for part in found.parts] == ["loss_a", "loss_b"]
    assert (*found.weights, found.constant) == pytest.approx((3, 0.25, 1.0))
    with pytest.raises(Missing, match="no sum"):
        decompose(runs.run(roles={"loss.total": "loss"}, logged=[*logged[:2], runs.series("loss_b", rng.random(100))]))
    with pytest.raises(Missing, match="fewer than"):
        decompose(runs.run(roles={"loss.total": "loss"}, logged=[logged[0], runs.series("loss_a", one[:10])]))
    with pytest.raises(Missing, match="changes"):
        decompose(runs.run(roles={"loss.total": "loss"}, logged=[logged[0], runs.series("loss_a", np.ones(100))]))
    with pytest.raises(Missing, match="no total"):
        decompose(Run("test"))
