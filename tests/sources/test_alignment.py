from __future__ import annotations

import numpy as np
import pytest

from fgclip_doctor.sources.alignment import under_names_of
from tests.runs import tensor

PLAIN = ["logit_scale", "text_projection.weight", "vision_model.norm.weight"]


@pytest.mark.parametrize(
    ("base", "run"),
    [
        (PLAIN, [*PLAIN, "roi_projection.weight"]),
        (PLAIN, [*(f"clip.{name}" for name in PLAIN), "logit_scale"]),
        ([f"module.model.{name}" for name in PLAIN], PLAIN),
    ],
    ids=["the same names", "the run wraps the base", "the base was wrapped"],
)
def test_base_takes_the_names_of_the_run(base: list[str], run: list[str]) -> None:
    stored = {name: tensor(name, np.full(2, index), "float32") for index, name in enumerate(base)}
    found = under_names_of(stored, run)
    assert list(found.values()) == list(stored.values())
    assert found.keys() <= set(run)


def test_names_of_another_model_stay() -> None:
    stored = {"a.weight": tensor("a.weight", np.ones(2), "float32")}
    assert under_names_of(stored, ["b.weight"]) == stored
