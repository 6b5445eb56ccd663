from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import ArrayLike

from fgclip_doctor import Missing, Run
from fgclip_doctor.run import Plan
from fgclip_doctor_checks.gradients.freeze_list_not_kept import freeze_list_not_kept
from tests.runs import checkpoint, run

WEIGHTS: dict[str, ArrayLike] = {
    "visual.weight": np.ones((4, 4)),
    "visual.norm.running_mean": np.ones(4),
    "text.weight": np.ones((4, 4)),
}


def later(changed: str, *patterns: str, dtype: str = "float32") -> Run:
    now = {name: np.asarray(one) * (1.001 if name == changed else 1) for name, one in WEIGHTS.items()}
    made = run(checkpoint(WEIGHTS, 50), checkpoint(now, 100, dtype=dtype))
    made.plan = Plan(frozen=patterns, source="plan.toml")
    return made


@pytest.mark.parametrize("pattern", ["visual.*", "visual", "*.weight"])
def test_a_frozen_tensor_that_changed(pattern: str) -> None:
    [finding] = freeze_list_not_kept(later("visual.weight", pattern))
    assert finding.where == pattern
    assert finding.message.startswith("visual.weight is declared")


def test_a_pattern_that_matches_nothing() -> None:
    [finding] = freeze_list_not_kept(later("", "vision_model.*"))
    assert finding.evidence[0].value == 0


@pytest.mark.parametrize(
    "quiet",
    [
        later("text.weight", "visual.*"),
        later("visual.norm.running_mean", "visual.*"),
        later("visual.weight", "visual.*", dtype="float16"),
    ],
    ids=["something else changed", "statistics of a norm", "another type"],
)
def test_quiet(quiet: Run) -> None:
    assert not list(freeze_list_not_kept(quiet))


def test_skipped_where_nothing_is_declared() -> None:
    with pytest.raises(Missing, match="nothing is declared"):
        list(freeze_list_not_kept(later("visual.weight")))
