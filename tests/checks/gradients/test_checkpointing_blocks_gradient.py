from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from fgclip_doctor import Missing, Run
from fgclip_doctor.run import Plan
from fgclip_doctor_checks.gradients.checkpointing_blocks_gradient import checkpointing_blocks_gradient
from tests.runs import adam, checkpoint, parameter, run, watched

EMBEDDING = "vision_model.embeddings.patch_embedding.weight"
BLOCKS = [f"vision_model.encoder.layers.{block}.mlp.fc1.weight" for block in range(4)]
ADAPTERS = [f"vision_model.encoder.layers.{block}.q_proj.lora_{side}.weight" for block in range(4) for side in "AB"]
HEAD = "visual_projection.weight"


def saved(dead: Sequence[str], held: Sequence[str] = (*BLOCKS, HEAD), facts: dict[str, Any] | None = None) -> Run:
    weights = checkpoint({name: np.ones((8, 4)) for name in (EMBEDDING, *BLOCKS, *ADAPTERS, HEAD)}).tensors
    state = adam({name: weights[name] for name in held}, dead=dead)
    return run(checkpoint(weights, optimizer=state), facts=facts)


@pytest.mark.parametrize("cut", [1, 3, 4])
def test_the_first_blocks_behind_frozen_embeddings(cut: int) -> None:
    [finding] = checkpointing_blocks_gradient(saved(BLOCKS[:cut]))
    assert finding.where == BLOCKS[0]
    assert finding.evidence[0].value == cut


def test_adapters_inside() -> None:
    [finding] = checkpointing_blocks_gradient(saved(ADAPTERS, held=(*ADAPTERS, HEAD)))
    assert finding.evidence[0].value == len(ADAPTERS)


@pytest.mark.parametrize(
    "quiet",
    [
        saved([]),
        saved(BLOCKS[1:2]),
        saved(BLOCKS[2:]),
        saved(BLOCKS[:2], held=(EMBEDDING, *BLOCKS, HEAD)),
        saved([], held=(HEAD,)),
        saved([], held=(*BLOCKS[2:], HEAD)),
        saved(BLOCKS[:2], facts={"reentrant": False}),
        saved(BLOCKS[:2], facts={"gradient_checkpointing": False}),
    ],
    ids=[
        "all learn",
        "a block in the middle",
        "the last blocks",
        "embeddings that are trained",
        "a frozen tower",
        "the first blocks are frozen",
        "not reentrant",
        "nothing is checkpointed",
    ],
)
def test_quiet(quiet: Run) -> None:
    assert not list(checkpointing_blocks_gradient(quiet))


def test_the_warning_in_a_log_counts_more_than_the_arguments() -> None:
    """A model may checkpoint its layers whatever the trainer's arguments say."""
    facts = {"gradient_checkpointing": False, "cut_off": True}
    assert len(list(checkpointing_blocks_gradient(saved(BLOCKS[:2], facts=facts)))) == 1
    assert not list(checkpointing_blocks_gradient(saved([], facts=facts)))
    assert not list(checkpointing_blocks_gradient(saved([], held=(HEAD,), facts=facts)))


def seen(gradient: str, *, trainable: bool = True, plan: Plan | None = None) -> Run:
    inside = [parameter(name, trainable=trainable, gradient=gradient) for name in BLOCKS[:2]]
    rest = [parameter(EMBEDDING, trainable=False), parameter(HEAD), *(parameter(name) for name in BLOCKS[2:])]
    modules = ("vision_model.encoder.layers.0", "vision_model.encoder.layers.1")
    return watched(*inside, *rest, roles={}, plan=plan, reentrant=modules)


def test_seen_in_a_recording() -> None:
    [finding] = checkpointing_blocks_gradient(seen("none"))
    assert finding.where == "vision_model.encoder.layers.0"
    assert finding.evidence[0].value == 2


@pytest.mark.parametrize(
    "quiet",
    [
        seen("some"),
        seen("unknown"),
        seen("none", trainable=False),
        seen("none", plan=Plan(frozen=("vision_model",))),
    ],
    ids=["gradients came", "not known", "frozen throughout", "as planned"],
)
def test_quiet_in_a_recording(quiet: Run) -> None:
    assert not list(checkpointing_blocks_gradient(quiet))


def test_skipped_without_an_optimizer() -> None:
    with pytest.raises(Missing, match="no optimizer"):
        list(checkpointing_blocks_gradient(run(checkpoint({"logit_scale": 1.0}))))
