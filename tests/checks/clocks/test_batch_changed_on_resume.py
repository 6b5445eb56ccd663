from __future__ import annotations

import pytest

from fgclip_doctor import Missing, Run
from fgclip_doctor.run import Plan
from fgclip_doctor_checks.clocks.batch_changed_on_resume import batch_changed_on_resume
from tests.runs import checkpoint, run

BEFORE = {"micro_batch": 64, "accumulation": 2, "world_size": 8}


def resumed(**changes: int) -> Run:
    first, second = checkpoint({}, 50, facts=BEFORE), checkpoint({}, 100, facts={**BEFORE, **changes})
    return run(first, second)


@pytest.mark.parametrize(("name", "value"), [("micro_batch", 32), ("accumulation", 4), ("world_size", 4)])
def test_a_change_is_told(name: str, value: int) -> None:
    [finding] = batch_changed_on_resume(resumed(**{name: value}))
    assert (finding.evidence[0].value, finding.evidence[0].expected) == (value, BEFORE[name])


def test_the_same_batch_is_quiet() -> None:
    assert not list(batch_changed_on_resume(resumed()))


def test_a_planned_change_is_quiet() -> None:
    made = resumed(micro_batch=32)
    made.plan = Plan(candidates={60: 256})
    assert not list(batch_changed_on_resume(made))


def test_skipped_with_one_checkpoint() -> None:
    with pytest.raises(Missing, match="fewer than two"):
        list(batch_changed_on_resume(run(checkpoint({}, 50, facts=BEFORE))))
