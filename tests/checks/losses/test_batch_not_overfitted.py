"""One batch given again and again: learnt, or not."""

from __future__ import annotations

from math import log
from typing import Any

import numpy as np
import pytest

from fgclip_doctor import Missing, Run
from fgclip_doctor.recorded import LossSite, Rank, Recording
from fgclip_doctor_checks.losses.batch_not_overfitted import batch_not_overfitted
from tests import runs

STEPS = 18
LN2 = log(2)


def again(
    learnt: float, *, noise: float = 0.0, rate: float = 1e-3, candidates: float = 8, growth: float = 1.0, **clocks: int
) -> Run:
    """Eighteen steps in which the loss falls from ln 8 by so many bits; `growth` of the scale multiplies margins."""
    steps = np.arange(STEPS)
    bits = 1.0 * growth ** (steps / (STEPS - 1)) + learnt * steps / (STEPS - 1)
    bits = bits + noise * np.random.default_rng(0).standard_normal(STEPS)
    loss, null = log(8) - LN2 * (bits - 1), np.full(STEPS, log(8) + LN2)
    counts, anchors = np.full(STEPS, candidates), np.full(STEPS, 8)
    site = LossSite("train.py:3", "softmax", "diagonal", 0, steps, steps + 1, anchors, counts, loss, null, loss * 0)
    scale = np.linspace(2.0, 2.0 + log(growth), STEPS)
    logged = [runs.series("learning_rate", np.full(STEPS, rate)), runs.series("logit_scale", scale)]
    run, other = runs.run(), runs.run(logged=logged)
    seen: dict[str, Any] = {"replayed": STEPS, "backwards": STEPS, **clocks}
    other.recording = Recording((Rank(0, 1, "recording", sites=(site,), clocks=seen),), STEPS)
    run.overfitted = other
    return run


@pytest.mark.parametrize(
    ("run", "count"),
    [
        (again(0.0), 1),
        (again(-0.5), 1),
        (again(1.0), 0),
        (again(0.2), 1),  # of 3 bits, a twentieth is 0.15, and two thirds of 0.2 show between the outer thirds
        (again(0.25), 0),
        (again(0.0, noise=1.0), 0),  # too noisy to tell
        (again(0.0, growth=1.5), 1),  # sharper, and no better
    ],
)
def test_a_batch_that_is_not_learnt_is_a_finding(run: Run, count: int) -> None:
    assert len(list(batch_not_overfitted(run))) == count


@pytest.mark.parametrize(
    ("run", "why"),
    [
        (runs.run(), "--overfit"),
        (again(0.0, replayed=0), "isn't called as a whole"),
        (again(0.0, replayed=2 * STEPS), "in pieces"),
        (again(0.0, evaluations=STEPS), "in pieces"),
        (again(0.0, rate=1e-4), "learning rates add up to 0.0018"),
        (again(0.0, candidates=40), "without a bank"),
    ],
)
def test_what_tells_nothing_is_skipped(run: Run, why: str) -> None:
    with pytest.raises(Missing, match=why):
        list(batch_not_overfitted(run))
