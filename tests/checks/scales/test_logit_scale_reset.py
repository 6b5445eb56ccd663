from __future__ import annotations

from math import log

import numpy as np
import pytest

from fgclip_doctor import Missing, Run
from fgclip_doctor.run import Remark, Source
from fgclip_doctor_checks.scales.logit_scale_reset import logit_scale_reset
from tests.runs import adam, checkpoint, run, series

ROLES = {"scale.global": "logit_scale", "scale.region": "logit_scale_finegraind"}
STEPS, RATE = 50, 1e-4  # and so a reach of 0.005


def saved(region: float, whole: float = 3.5, step: int = STEPS) -> dict[str, float]:
    return {"logit_scale": whole, "logit_scale_finegraind": region}


def from_base(now: float, base: float, base_global: float = 3.5, whole: float = 3.5) -> Run:
    weights = checkpoint(saved(now, whole), STEPS).tensors
    state = adam(weights, step=STEPS, lr=RATE, betas=(0.9, 0.98))
    return run(checkpoint(weights, STEPS, optimizer=state), base=checkpoint(saved(base, base_global), 0), roles=ROLES)


@pytest.mark.parametrize(
    ("now", "expected"),
    [(3.5, 1), (3.504, 1), (3.506, 0), (log(100), 1), (log(1 / 0.07), 1), (3.8, 0), (3.804, 0), (3.7, 0)],
)
def test_a_learnt_scale_of_the_base_that_is_at_a_start_again(now: float, expected: int) -> None:
    found = list(logit_scale_reset(from_base(now, base=3.8)))
    assert len(found) == expected
    assert all(one.where == "logit_scale_finegraind" for one in found)


@pytest.mark.parametrize("base", [3.5, log(100)])
def test_a_base_that_has_learnt_nothing_loses_nothing(base: float) -> None:
    assert not list(logit_scale_reset(from_base(log(1 / 0.07), base=base)))


def test_a_clamp_is_no_reset() -> None:
    assert not list(logit_scale_reset(from_base(log(100), base=4.9, base_global=4.95, whole=log(100))))


@pytest.mark.parametrize(("later", "expected"), [(3.5, 1), (3.8, 0), (3.795, 0)])
def test_between_two_checkpoints(later: float, expected: int) -> None:
    first, second = checkpoint(saved(3.8), STEPS), checkpoint(saved(later), 2 * STEPS)
    state = adam(second.tensors, step=2 * STEPS, lr=RATE, betas=(0.9, 0.98))
    both = run(first, checkpoint(second.tensors, 2 * STEPS, optimizer=state), roles=ROLES)
    assert len(list(logit_scale_reset(both))) == expected


def logged(jump: float, *, at: int = 60) -> Run:
    steps = np.arange(120)
    whole = 3.5 - 2e-4 * steps
    region = 3.5 + 1e-3 * steps
    region[at:] += jump * (whole[at] - region[at])  # one is all the way
    return run(logged=[series("logit_scale", whole), series("logit_scale_finegraind", region)])


@pytest.mark.parametrize(("jump", "expected"), [(0.0, 0), (0.5, 0), (1.0, 1), (0.99, 1)])
def test_a_jump_in_a_log(jump: float, expected: int) -> None:
    found = list(logit_scale_reset(logged(jump)))
    assert [one.evidence[0].step for one in found] == [61] * expected


def test_skipped_without_anything_to_compare() -> None:
    with pytest.raises(Missing, match="no branch"):
        list(logit_scale_reset(run(checkpoint(saved(3.5)), roles=ROLES)))


def loaded(*names: str, scale: str = "logit_scale_region", base: bool = False) -> Run:
    """A log of a run with two scales, and what its loader did not take."""
    one = run(
        base=checkpoint({"logit_scale": np.array(4.0)}, None) if base else None,
        logged=[series("logit_scale", [4.6] * 4), series(scale, [4.6] * 4)],
    )
    one.remarks = [Remark("not-taken", Source("train.log", line=5), names, np.zeros(1))]
    return one


def test_a_loader_says_that_it_did_not_take_a_scale() -> None:
    [finding] = logit_scale_reset(loaded("vision_head.bias", "model.logit_scale_region"))
    assert finding.where == "model.logit_scale_region"
    assert finding.evidence[0].source == "train.log:5"


@pytest.mark.parametrize(
    "case",
    [
        loaded("text_model.embeddings.position_ids"),
        loaded("logit_scale_region", scale="logit_scale_hard"),
        loaded("logit_scale"),
        loaded("logit_scale_region", base=True),
    ],
    ids=["no scale", "a scale that this model does without", "the global one", "a base that tells more"],
)
def test_what_else_a_loader_leaves(case: Run) -> None:
    with pytest.raises(Missing, match="no branch"):
        list(logit_scale_reset(case))


def test_a_scale_that_is_looked_at_ever_more_rarely_does_not_jump() -> None:
    """Both rise alike, and from step 80 to 400 by forty times what they do from 40 to 50."""
    steps = [1, 2, 3, 5, 10, 15, 20, 30, 40, 50, 60, 80, 400]
    rising = log(1 / 0.07) + 5e-4 * np.array(steps)
    pair = {name: series(name, rising, steps=steps) for name in ("logit_scale", "logit_scale_region")}
    assert not list(logit_scale_reset(run(logged=list(pair.values()))))
    pair["logit_scale_region"].values[:8] += 0.3  # and within ten steps it is the other again
    assert list(logit_scale_reset(run(logged=list(pair.values()))))


def test_a_scale_that_begins_to_learn_has_lost_nothing() -> None:
    still = np.full(12, log(1 / 0.07))
    whole, region = (
        series(name, [*still, still[0] + 0.06, still[0] + 0.06]) for name in ("logit_scale", "logit_scale_region")
    )
    assert not list(logit_scale_reset(run(logged=[whole, region])))
