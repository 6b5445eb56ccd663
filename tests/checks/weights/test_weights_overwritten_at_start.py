from __future__ import annotations

import numpy as np
import pytest

from fgclip_doctor import Missing, Run
from fgclip_doctor.provenance import stretched
from fgclip_doctor_checks.weights.weights_overwritten_at_start import weights_overwritten_at_start
from tests.runs import checkpoint, run

HEAD, COPY = "visual_projection.weight", "roi_projection.weight"
SHORT, LONG = (f"text_model.embeddings.position_embedding{kind}.weight" for kind in ("", "_res"))
ROLES = {"head.image": HEAD, "head.region": COPY}
Weights = dict[str, np.ndarray]


def fresh(seed: int = 0) -> Weights:
    """A plain CLIP with what start-up code makes of it."""
    rng = np.random.default_rng(seed)
    head, short = rng.normal(0, 0.05, (64, 32)), np.cumsum(rng.normal(0, 0.01, (32, 16)), axis=0)
    long = stretched(short, 68)
    assert long is not None
    return {HEAD: head, COPY: head.copy(), SHORT: short, LONG: long}


def trained(weights: Weights, seed: int, step: float = 0.01) -> Weights:
    rng = np.random.default_rng(seed)
    return {name: one + rng.normal(0, step, one.shape) for name, one in weights.items()}


def overwritten(weights: Weights) -> Weights:
    long = stretched(weights[SHORT], 68)
    assert long is not None
    return {**weights, COPY: weights[HEAD].copy(), LONG: long}


LEARNT = trained(fresh(), 1)


def later(now: Weights, before: Weights = LEARNT, *, base: bool = False) -> Run:
    earlier, last = checkpoint(before, 50), checkpoint(now, 100)
    return run(last, base=earlier, roles=ROLES) if base else run(earlier, last, roles=ROLES)


@pytest.mark.parametrize("base", [True, False])
def test_what_was_learnt_and_made_anew_is_named(base: bool) -> None:
    found = list(weights_overwritten_at_start(later(trained(overwritten(LEARNT), 2, 0.004), base=base)))
    assert {one.where for one in found} == {COPY, LONG}


@pytest.mark.parametrize("step", [0.0, 0.003, 0.05])
def test_training_on_is_quiet(step: float) -> None:
    assert not list(weights_overwritten_at_start(later(trained(LEARNT, 3, step))))


def test_a_base_that_has_no_such_parts_is_completed() -> None:
    plain = {name: fresh()[name] for name in (HEAD, SHORT)}
    with pytest.raises(Missing, match="no part"):
        list(weights_overwritten_at_start(later(fresh(), plain, base=True)))


def test_parts_that_had_learnt_nothing_lose_nothing() -> None:
    assert not list(weights_overwritten_at_start(later(trained(fresh(), 4), fresh(), base=True)))


@pytest.mark.parametrize(("way", "expected"), [(0.40, 0), (0.60, 1)])
def test_the_distances_decide(way: float, expected: int) -> None:
    """On a straight line to what would be made anew, 0.7 is reached at 1 / 1.7 of the way."""
    made = overwritten(LEARNT)
    now = {name: (1 - way) * LEARNT[name] + way * made[name] for name in LEARNT}
    assert len(list(weights_overwritten_at_start(later(now)))) == 2 * expected


def test_skipped_with_one_checkpoint() -> None:
    with pytest.raises(Missing, match="only one checkpoint"):
        list(weights_overwritten_at_start(run(checkpoint(LEARNT), roles=ROLES)))
