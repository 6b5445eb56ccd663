from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from fgclip_doctor import Missing, Run
from fgclip_doctor.momentum import follower
from fgclip_doctor.recorded import UNHELD, Parameter, Rank, Recording
from fgclip_doctor.run import Checkpoint, Plan
from fgclip_doctor_checks.banks.momentum_encoder_idle import momentum_encoder_idle
from tests.runs import checkpoint, run, series

LAYERS = [f"layers.{place}.weight" for place in range(5)]
STARTED = 3.0  # what all weights were at the start; a step of training adds 1


def saved(step: int, q: float, k: float, names: tuple[str, str] = ("encoder_q", "encoder_k")) -> Checkpoint:
    weights = {
        f"{name}.{layer}": np.full((8, 8), value) for name, value in zip(names, (q, k), strict=True) for layer in LAYERS
    }
    return checkpoint({**weights, "logit_scale": np.array(2.66)}, step)


def messages(*checkpoints: Checkpoint, **more: Any) -> list[str]:
    return [one.message for one in momentum_encoder_idle(run(*checkpoints, **more))]


@pytest.mark.parametrize(
    "names",
    [
        ("encoder_q", "encoder_k"),
        ("visual_encoder", "visual_encoder_m"),
        ("base_encoder", "momentum_encoder"),
        ("online_model", "ema_model"),
        ("query_encoder", "key_encoder"),
        ("tower", "tower_ema"),
    ],
)
def test_one_that_is_never_updated(names: tuple[str, str]) -> None:
    [message] = messages(saved(100, 4, STARTED, names), saved(200, 5, STARTED, names))
    assert "never updated" in message
    assert names[1] in message


def test_one_that_is_what_the_base_was() -> None:
    base = checkpoint({f"encoder_q.{layer}": np.full((8, 8), STARTED) for layer in LAYERS}, None)
    [message] = messages(saved(300, 5, STARTED), base=base)
    assert "in the base" in message


@pytest.mark.parametrize(("steps", "findings"), [(200, 1), (199, 0)])
def test_one_that_is_a_copy(steps: int, findings: int) -> None:
    found = messages(saved(100, 4, 4), saved(steps, 5, 5))
    assert len(found) == findings
    assert all("does not lag" in one for one in found)


@pytest.mark.parametrize(
    "checkpoints",
    [
        (saved(100, 4, 3.5), saved(200, 5, 4.5)),  # it follows
        (saved(100, 4, STARTED), saved(119, 5, STARTED)),  # an average that is renewed every few steps
        (saved(10, 4, 4), saved(100, 5, 5)),  # or begins as a copy
    ],
)
def test_one_that_follows_is_quiet(checkpoints: tuple[Checkpoint, ...]) -> None:
    assert not messages(*checkpoints)


def planned() -> Run:
    made = run(saved(100, 4, STARTED), saved(200, 5, STARTED))
    made.plan = Plan(frozen=("encoder_k.*",))
    return made


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (run(saved(100, 4, 4), saved(300, 4, 4)), "has moved"),  # what doesn't train has a copy that doesn't either
        (run(saved(300, 5, STARTED)), "has moved"),
        (run(saved(100, 4, STARTED, ("student", "teacher"))), "no momentum encoder"),
        (run(saved(100, 4, STARTED, ("q_proj", "k_proj"))), "no momentum encoder"),
        (planned(), "the plan"),
        (Run("test"), "no checkpoint"),
    ],
)
def test_skipped_without_evidence(made: Run, why: str) -> None:
    with pytest.raises(Missing, match=why):
        list(momentum_encoder_idle(made))


def test_few_matrices_are_no_encoder() -> None:
    def weights(layers: list[str], shape: tuple[int, int] = (8, 8)) -> dict[str, Any]:
        return {f"model.{name}.{layer}": np.ones(shape) for name in ("head", "head_m") for layer in layers}

    assert follower(checkpoint(weights(LAYERS[:2])).tensors) is None
    found = follower(checkpoint(weights(LAYERS[:3])).tensors)
    assert found is not None
    assert found.modules == "model.head_m"
    other = {f"model.head_m.{LAYERS[2]}": np.ones((8, 4))}
    assert follower(checkpoint({**weights(LAYERS[:3]), **other}).tensors) is None


def watched_pair(
    *, digests: dict[int, str], ratio: float = 1e-3, group: int | None = None, dtype: str = "float32"
) -> Run:
    """What is recorded of an encoder that is trained, and of one beside it that no optimizer holds."""
    made = run(checkpoint({f"{name}.{one}": np.ones((8, 8)) for name in ("tower", "tower_ema") for one in LAYERS}, 30))
    trained = {f"tower.{one}": Parameter(f"tower.{one}", (8, 8), "float32", True, 0, "some", 1) for one in LAYERS}
    beside = {f"tower_ema.{one}": Parameter(f"tower_ema.{one}", (8, 8), dtype, False, group, "none") for one in LAYERS}
    seen = Rank(0, 1, "recording", trained | beside, digests={UNHELD: digests})
    made.recording = Recording((seen,), 30)
    steps = [1, 2, 3, 5, 10, 20, 30]
    made.series["update ratio/tower.layers.0"] = series("update ratio/tower.layers.0", [ratio] * 7, steps)
    return made


STILL = {10: "a", 20: "a", 30: "a"}


def test_one_that_no_step_of_a_watched_run_moves() -> None:
    [finding] = momentum_encoder_idle(watched_pair(digests=STILL))
    assert "since step 10" in finding.message


@pytest.mark.parametrize(
    "made",
    [
        watched_pair(digests={10: "a", 20: "b", 30: "c"}),
        watched_pair(digests={10: "a", 20: "a"}),
        watched_pair(digests=STILL, ratio=1e-5),
        watched_pair(digests=STILL, dtype="bfloat16"),
        watched_pair(digests=STILL, group=0),
    ],
    ids=["it moves", "not for long", "nothing moves", "rounding may hold it", "an optimizer holds it"],
)
def test_one_of_a_watched_run_that_may_move(made: Run) -> None:
    with suppress(Missing):
        assert not list(momentum_encoder_idle(made))
