from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fgclip_doctor import Finding, Missing, Run
from fgclip_doctor_checks.losses.loss_plateau import loss_plateau
from tests.checks.losses.healthy_logs import Floats, cosine, learning, noisy, run


def found(made: Run, **thresholds: Any) -> list[Finding]:
    return list(loss_plateau(made, **thresholds))


def resting(end: float, count: int = 3000, *, share: float = 0.03) -> Floats:
    return noisy(np.random.default_rng(0), learning(count, 3.4, end, rate=30), share)


def test_says_what_has_stood_still_half_learnt() -> None:
    (finding,) = found(run(resting(2.4)))
    assert "1.5 of 5.0 learnt" in finding.message


@pytest.mark.parametrize(
    "made",
    [
        run(resting(0.8)),  # most of it is learnt
        run(resting(3.45)),  # chance
        run(noisy(np.random.default_rng(0), learning(3000, 3.4, 2.2, rate=3), 0.03)),  # goes on learning
        run(resting(2.4, share=0.9)),  # too noisy to tell
        run(resting(2.4), learning_rate=np.where(np.arange(3000) < 1000, 1e-3, 1e-5)),  # it has decayed
    ],
)
def test_quiet_elsewhere(made: Run) -> None:
    assert not found(made)


def test_a_cosine_is_no_excuse_until_it_has_decayed() -> None:
    assert found(run(resting(2.4), learning_rate=cosine(3000)))


def test_flips_at_the_thresholds() -> None:
    made = run(resting(2.4))
    assert found(made, most=0.32)
    assert not found(made, most=0.3)
    slow = run(resting(2.4) - np.linspace(0, 0.28, 3000))  # 0.05 bits between the quarters of the last half... twice
    assert found(slow, gain=0.12)
    assert not found(slow, gain=0.08)


def test_skipped_without_evidence() -> None:
    with pytest.raises(Missing, match="1000 steps"):
        found(run(resting(2.4, 400)))
    made = run(resting(2.4))
    del made.facts["candidates"], made.facts["world_size"]
    with pytest.raises(Missing, match="known candidates"):
        found(made)
