"""Planned candidates, and those that were seen."""

from __future__ import annotations

import numpy as np
import pytest

from fgclip_doctor import Missing, Run
from fgclip_doctor.recorded import LossSite, Rank, Recording
from fgclip_doctor.run import Plan
from fgclip_doctor_checks.clocks.candidates_not_as_planned import candidates_not_as_planned
from tests import runs


def recorded(*sites: list[float], plan: Plan | None = None, **facts: float) -> Run:
    """Losses with these candidates, a step each."""
    seen = []
    for number, counts in enumerate(sites):
        steps, values = np.arange(len(counts)), np.ones(len(counts))
        seen.append(
            LossSite(
                *(f"train.py:{number}", "softmax", "diagonal", 0, steps, steps + 1, np.full(len(counts), 4)),
                *(np.array(counts), values, values, values),
            )
        )
    made = runs.run(facts=facts)
    made.recording = Recording((Rank(0, 1, "recording", sites=tuple(seen)),), len(sites[0]))
    made.plan = plan or Plan()
    return made


@pytest.mark.parametrize(
    ("run", "count"),
    [
        (recorded([8.0] * 6, candidates=8), 0),
        (recorded([8.0] * 6, candidates=16), 1),
        (recorded([8.0] * 6, [16.0] * 6, candidates=16), 0),  # one of the losses has them
        (recorded([8.0, 12.0, 16.0], candidates=14), 0),  # a bank that fills up
        (recorded([100.0] * 6, candidates=104), 0),
        (recorded([100.0] * 6, candidates=106), 1),
        (recorded([4.0] * 3 + [132.0] * 3, plan=Plan(candidates={0: 4, 3: 132})), 0),
        (recorded([4.0] * 6, plan=Plan(candidates={0: 4, 3: 132})), 1),
        (recorded([4.0] * 6, plan=Plan(candidates={0: 4, 300: 132})), 0),  # not reached
    ],
)
def test_another_number_than_planned_is_a_finding(run: Run, count: int) -> None:
    assert len(list(candidates_not_as_planned(run))) == count


def test_without_a_plan_or_a_loss_it_is_skipped() -> None:
    with pytest.raises(Missing, match="no candidates were planned"):
        list(candidates_not_as_planned(recorded([8.0])))
    run = recorded([8.0], candidates=8)
    run.recording = Recording((Rank(0, 1, "recording"),), 6)
    with pytest.raises(Missing, match="no contrastive loss was seen"):
        list(candidates_not_as_planned(run))
