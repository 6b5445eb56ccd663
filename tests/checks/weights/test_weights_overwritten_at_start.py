from __future__ import annotations

import numpy as np
import pytest

from fgclip_doctor import Missing, Run
from fgclip_doctor.provenance import stretched
from fgclip_doctor_checks.weights.weights_overwritten_at_start import weights_overwritten_at_start
from tests.runs import adam, checkpoint, run, tensor

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


def beyond(apart: dict[str, float], rate: float = 1e-4) -> list[str]:
    """Of 20 matrices, which `apart` gives the distance from the base of, after 100 steps of Adam; 0.001 by default."""
    rng = np.random.default_rng(0)
    before = {f"m{place}.weight": rng.normal(0, 0.05, (16, 24)) for place in range(20)}
    after = {name: one + rng.normal(0, apart.get(name, 0.001), one.shape) for name, one in before.items()}
    stored = {name: tensor(name, one) for name, one in after.items()}
    now = checkpoint(stored, 100, optimizer=adam(stored, lr=rate))
    found = list(weights_overwritten_at_start(run(now, base=checkpoint(before, 0), roles={})))
    return [one.where for one in found]


def test_what_adam_can_not_have_moved_so_far_was_overwritten() -> None:
    assert beyond({"m7.weight": 0.07}) == ["m7.weight"]
    assert beyond({"m7.weight": 0.014}) == []  # under 1.5 times the bound of 100 steps at 1e-4
    assert beyond({"m7.weight": 0.07}, rate=1e-3) == []
    assert beyond({f"m{place}.weight": 0.07 for place in range(20)}) == []  # another base, or not all steps


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
