"""Each planted fault leaves the trace that it leaves in real runs, and only where it was planted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fgclip_doctor.core import pretrained
from fgclip_doctor.core.config import LOGIT_SCALE_CAP, LOGIT_SCALE_FROM_SCRATCH, FgclipConfig
from fgclip_doctor.training.checkpointing import latest
from fgclip_doctor.training.faults import FAULTS
from fgclip_doctor.training.loop import train
from fgclip_doctor.training.settings import TrainConfig

STEPS, ACCUMULATION = 8, 2
HEAD = "roi_projection.weight"


@dataclass
class Left:
    """What a run left behind."""

    weights: dict[str, Tensor]
    groups: list[dict[str, Any]]
    states: dict[str, dict[str, Tensor]]
    history: list[dict[str, float]]

    def column_norms(self) -> Tensor:
        return self.weights["region_image_queue"].float().norm(dim=0)

    def group_of(self, name: str) -> dict[str, Any]:
        return next(group for group in self.groups if name in group["param_names"])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = FgclipConfig.preset("tiny", logit_scale_init_value=4.0)
    return train(
        TrainConfig(output_dir=tmp_path_factory.mktemp("base"), model=model, max_steps=4, warmup_steps=1, scenes=64)
    )


@pytest.fixture(scope="module")
def leave(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Left]:
    def run(*faults: str) -> Left:
        model = FgclipConfig.preset(
            "tiny", roi_projection=True, use_memory_bank=True, memory_bank_size=21, memory_bank_warmup_steps=4
        )
        config = TrainConfig(
            output_dir=tmp_path_factory.mktemp("run"),
            model=model,
            base=base,
            max_steps=STEPS,
            micro_batch=4,
            accumulation=ACCUMULATION,
            scenes=64,
            learning_rate=1e-4,
            warmup_steps=1,
            faults=faults,
        )
        directory = latest(train(config))
        optimizer = torch.load(directory / "optimizer.pt", weights_only=True)
        names = [name for group in optimizer["param_groups"] for name in group["param_names"]]
        history = json.loads((directory / "trainer_state.json").read_text())["log_history"]
        states = {names[index]: state for index, state in optimizer["state"].items()}
        return Left(pretrained.read(directory), optimizer["param_groups"], states, history)

    return run


TRACES: dict[str, Callable[[Left], bool]] = {
    "bank-never-enabled": lambda left: (
        left.weights["queue_ptr"].item() == 0
        and not left.weights["queue_is_full"].item()
        and torch.allclose(left.column_norms(), torch.ones(21))
        and all(entry["candidates_region"] == 8 for entry in left.history)
    ),
    "bank-holds-noise": lambda left: (
        left.weights["queue_ptr"].item() == 0 and left.history[-1]["candidates_region"] == 8 + 21
    ),
    "bank-rows-not-unit": lambda left: bool((left.column_norms() > 7.9).all()),
    "bank-not-saved": lambda left: not any("queue" in name for name in left.weights),
    "warmup-in-forwards": lambda left: [entry["bank_rows"] > 0 for entry in left.history[:3]] == [False, False, True],
    "scale-from-scratch": lambda left: abs(left.history[0]["logit_scale"] - LOGIT_SCALE_FROM_SCRATCH) < 1e-3,
    "scale-above-cap": lambda left: left.history[-1]["logit_scale"] > LOGIT_SCALE_CAP + 0.1,
    "scale-decayed": lambda left: left.group_of("logit_scale")["weight_decay"] > 0,
    "head-detached": lambda left: HEAD not in left.states and HEAD in left.group_of(HEAD)["param_names"],
    "head-left-at-init": lambda left: (
        not torch.allclose(left.weights[HEAD], left.weights["visual_projection.weight"], atol=0.01)
    ),
    "head-frozen": lambda left: not any(HEAD in group["param_names"] for group in left.groups),
    "head-not-in-optimizer": lambda left: not any(HEAD in group["param_names"] for group in left.groups),
    "pure-bf16": lambda left: (
        left.weights[HEAD].dtype == torch.bfloat16 and left.states[HEAD]["exp_avg"].dtype == torch.bfloat16
    ),
    "attention-left-at-init": lambda left: (  # biases start at 0, and no step is longer than the learning rate
        left.weights["vision_model.encoder.layers.0.self_attn.v_proj.bias"].abs().max().item() < STEPS * 1e-4
    ),
    "projection-transposed": lambda left: torch.allclose(
        left.weights["text_projection.weight"], left.weights["text_filip_projection.weight"].T, atol=0.02
    ),
}


@pytest.fixture(scope="module")
def healthy(leave: Callable[..., Left]) -> Left:
    return leave()


def test_every_fault_has_its_trace() -> None:
    assert TRACES.keys() == FAULTS.keys()


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_leaves_its_trace(name: str, leave: Callable[..., Left], healthy: Left) -> None:
    assert TRACES[name](leave(name))
    assert not TRACES[name](healthy)


def test_a_fault_of_what_is_not_there_is_refused(tmp_path: Path) -> None:
    plain = TrainConfig(output_dir=tmp_path, model=FgclipConfig.preset("tiny"), faults=("bank-never-enabled",))
    with pytest.raises(ValueError, match="the model has none"):
        train(plain)
