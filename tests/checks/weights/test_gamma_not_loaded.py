from __future__ import annotations

import numpy as np
import pytest

from fgclip_doctor import Missing, Run
from fgclip_doctor.run import Remark, Source
from fgclip_doctor_checks.weights.gamma_not_loaded import gamma_not_loaded
from tests.runs import adam, checkpoint, run

TRAINED = np.random.default_rng(0).normal(0.3, 0.1, 64)


def tuned(ours: object, base: object = TRAINED, name: str = "vision_model.layers.0.ls1.gamma", lr: float = 1e-5) -> Run:
    weights = checkpoint({name: np.asarray(ours)}, 100).tensors
    return run(
        checkpoint(weights, 100, optimizer=adam(weights, step=100, lr=lr)),
        base=checkpoint({name: np.asarray(base)}, None),
        facts={"learning_rate": lr},
    )


@pytest.mark.parametrize("start", [1e-5, 1.0])
def test_a_layer_scale_at_its_start(start: float) -> None:
    moved = np.random.default_rng(1).uniform(-5e-4, 5e-4, 64)
    [finding] = gamma_not_loaded(tuned(start + moved))
    assert finding.where.endswith("gamma")
    assert "is lost" in finding.message


@pytest.mark.parametrize(
    "case",
    [tuned(TRAINED + 1e-4), tuned(np.full(64, 0.1), np.full(64, 0.1)), tuned(np.full(64, 0.3), lr=1e-2)],
    ids=["loaded", "never trained", "within reach"],
)
def test_what_was_loaded(case: Run) -> None:
    assert not list(gamma_not_loaded(case))


@pytest.mark.parametrize(("lr", "expected"), [(2e-5, 1), (1e-3, 0)])
def test_flips_where_the_rates_can_have_moved_it(lr: float, expected: int) -> None:
    assert len(list(gamma_not_loaded(tuned(np.full(64, 0.3), lr=lr)))) == expected


def told(*unused: str) -> Run:
    one = run()
    new = ("blocks.0.ls1.gamma", "classifier.weight")
    one.remarks = [
        Remark("new-weights", Source("train.log", line=1), new, np.zeros(1)),
        Remark("not-taken", Source("train.log", line=2), unused, np.zeros(1)),
    ]
    return one


def test_both_lists_of_transformers() -> None:
    [finding] = gamma_not_loaded(told("blocks.0.ls1.weight"))
    assert finding.where == "blocks.0.ls1.gamma"
    assert not list(gamma_not_loaded(told("text_model.embeddings.weight")))  # a layer scale that is new


def test_skipped_without_such_a_parameter() -> None:
    for case in (run(), tuned(TRAINED, name="vision_model.layers.0.norm.weight")):
        with pytest.raises(Missing, match="gamma or beta"):
            list(gamma_not_loaded(case))
