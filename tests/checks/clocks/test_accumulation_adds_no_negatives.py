from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fgclip_doctor import Missing
from fgclip_doctor_checks.clocks.accumulation_adds_no_negatives import accumulation_adds_no_negatives
from tests.runs import checkpoint, run, series

LOSS = series("loss", np.random.default_rng(0).normal(1.2, 0.1, 60))
WEIGHTS = {"logit_scale": np.array(4.6), "visual_projection.weight": np.ones((64, 32))}
ROLES = {"loss.total": "loss", "scale.global": "logit_scale", "head.image": "visual_projection.weight"}


def averaged(log: bool, **facts: Any) -> int:
    stated = {"dimension": 64, "world_size": 1, **facts}
    made = run(checkpoint(WEIGHTS, 60), facts=stated, roles=ROLES, logged=[LOSS] if log else [])
    return len(list(accumulation_adds_no_negatives(made)))


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize(
    ("micro_batch", "accumulation", "expected"),
    [(4, 16, 1), (4, 8, 1), (4, 7, 0), (16, 8, 1), (17, 8, 0), (256, 64, 0)],
)
def test_many_averages_of_few_candidates(log: bool, micro_batch: int, accumulation: int, expected: int) -> None:
    assert averaged(log, micro_batch=micro_batch, accumulation=accumulation) == expected


def test_ranks_may_gather() -> None:
    assert averaged(False, micro_batch=4, accumulation=16, world_size=8) == 0


def test_a_bank_adds_candidates() -> None:
    roles = {**ROLES, "bank.image_keys": "queue"}
    made = run(checkpoint({**WEIGHTS, "queue": np.ones((64, 512))}, 60), roles=roles)
    made.facts = run(facts={"accumulation": 16, "micro_batch": 4, "world_size": 1}).facts
    with pytest.raises(Missing, match="candidates"):
        list(accumulation_adds_no_negatives(made))


def test_skipped_without_an_accumulation() -> None:
    with pytest.raises(Missing, match="accumulation is not known"):
        averaged(True, micro_batch=4)
