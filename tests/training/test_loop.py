from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fgclip_doctor.core import pretrained
from fgclip_doctor.core.config import FgclipConfig
from fgclip_doctor.training.checkpointing import latest
from fgclip_doctor.training.loop import train
from fgclip_doctor.training.settings import TrainConfig

STEPS, ACCUMULATION, MICRO_BATCH = 6, 2, 4


def settings(directory: Path, **changes: Any) -> TrainConfig:
    model = FgclipConfig.preset(
        "tiny", roi_projection=True, use_memory_bank=True, memory_bank_size=20, memory_bank_warmup_steps=2
    )
    config = TrainConfig(
        output_dir=directory,
        model=model,
        max_steps=STEPS,
        micro_batch=MICRO_BATCH,
        accumulation=ACCUMULATION,
        scenes=40,
        warmup_steps=2,
        save_steps=3,
    )
    return replace(config, **changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(settings(tmp_path_factory.mktemp("run")))


def state(run: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((latest(run) / "trainer_state.json").read_text())
    return values


def test_checkpoints_have_the_trainers_layout(run: Path) -> None:
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint-3", "checkpoint-6"]
    assert sorted(path.name for path in latest(run).iterdir()) == [
        "config.json",
        "model.safetensors",
        "optimizer.pt",
        "rng_state.pth",
        "scheduler.pt",
        "trainer_state.json",
        "training_args.bin",
    ]
    saved = state(run)
    assert saved["global_step"] == saved["max_steps"] == STEPS
    assert saved["epoch"] == pytest.approx(STEPS * ACCUMULATION * MICRO_BATCH / 40)
    assert saved["num_train_epochs"] == 2
    arguments = torch.load(latest(run) / "training_args.bin", weights_only=True)
    assert arguments["per_device_train_batch_size"] == MICRO_BATCH
    assert arguments["gradient_accumulation_steps"] == ACCUMULATION


def test_the_log_names_every_term_and_its_candidates(run: Path) -> None:
    history = state(run)["log_history"]
    assert [entry["step"] for entry in history] == list(range(1, STEPS + 1))
    for entry in history:
        assert all(math.isfinite(value) for value in entry.values())
        assert {f"loss_{term}" for term in ("global", "global_short", "region", "hard")} <= entry.keys()
        assert entry["candidates_global"] == MICRO_BATCH
        assert entry["candidates_hard"] == 11
        assert entry["anchors_region"] == entry["anchors_hard"] == 2 * MICRO_BATCH
        assert entry["loss"] == pytest.approx(
            entry["loss_global"] + entry["loss_global_short"] + 0.1 * entry["loss_region"] + 0.5 * entry["loss_hard"],
            rel=1e-5,
        )
    rates = [entry["learning_rate"] for entry in history]
    assert rates[:3] == [0, 5e-4, 1e-3]
    assert rates[3:] == sorted(rates[3:], reverse=True)


def test_the_bank_switches_on_at_its_step(run: Path) -> None:
    history = state(run)["log_history"]
    regions = 2 * MICRO_BATCH
    assert [entry["bank_rows"] for entry in history] == [0, 0, *([min(2 * regions, 20)] + 3 * [20])]
    assert [entry["candidates_region"] for entry in history[:2]] == [regions, regions]
    assert history[2]["candidates_region"] > regions + 2  # its second micro-batch met the first one in the bank
    assert history[-1]["candidates_region"] > regions + 16
    assert [entry["forwards"] for entry in history] == [ACCUMULATION * step for step in range(1, STEPS + 1)]


def test_the_saved_optimizer_names_its_parameters(run: Path) -> None:
    optimizer = torch.load(latest(run) / "optimizer.pt", weights_only=True)
    names = [name for group in optimizer["param_groups"] for name in group["param_names"]]
    model = pretrained.load(latest(run))
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert set(names) < set(pretrained.weights(model))
    for group in optimizer["param_groups"]:
        for name in group["param_names"]:
            assert (group["weight_decay"] > 0) == (model.get_parameter(name).ndim >= 2), name
    assert all(state["step"] == STEPS for state in optimizer["state"].values())


@pytest.mark.parametrize("clock", ["step", "forward"])
def test_a_resumed_run_is_bit_identical(clock: str, tmp_path: Path) -> None:
    changes = {"model": settings(tmp_path).model.with_changes(memory_bank_clock=clock, memory_bank_warmup_steps=3)}
    whole = train(settings(tmp_path / "whole", **changes))
    halves = tmp_path / "halves"
    halves.mkdir()
    (whole / "checkpoint-3").rename(halves / "checkpoint-3")
    train(settings(halves, **changes, resume=True))
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        one, other = (torch.load(path / "checkpoint-6" / name, weights_only=True) for path in (whole, halves))
        assert equal(one, other), name
    one, other = (pretrained.read(path / "checkpoint-6") for path in (whole, halves))
    assert equal(one, other)
    assert state(whole)["log_history"] == state(halves)["log_history"]


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def test_fine_tuning_starts_from_the_base(tmp_path: Path) -> None:
    plain = settings(tmp_path / "base", model=FgclipConfig.preset("tiny"), max_steps=2)
    base = pretrained.load(latest(train(plain)))
    tuned = settings(tmp_path / "tuned", base=tmp_path / "base", max_steps=1, warmup_steps=1)  # a first step at rate 0
    model = pretrained.load(latest(train(tuned)))
    for name, tensor in base.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert model.roi_projection is not None
    assert torch.equal(model.roi_projection.weight, base.visual_projection.weight)


def test_bf16_autocast_keeps_fp32_parameters(tmp_path: Path) -> None:
    run = train(settings(tmp_path, precision="bf16"))
    assert all(tensor.dtype != torch.bfloat16 for tensor in pretrained.read(latest(run)).values())
    assert all(math.isfinite(entry["loss"]) for entry in state(run)["log_history"])


def test_on_step_gets_the_log(tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []
    run = train(settings(tmp_path, logging_steps=4), on_step=seen.append)
    assert [entry["step"] for entry in seen] == [4, 6]
    assert state(run)["log_history"] == seen


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"resume": True}, "no checkpoint"),
        ({"base": Path("nowhere")}, "no checkpoint"),
        ({"faults": ("bank-on-fire",)}, "no fault 'bank-on-fire'"),
        ({"scenes": 3}, "3 samples do not make a micro-batch of 4"),
    ],
)
def test_what_cannot_work_says_why(changes: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=complaint):
        train(settings(tmp_path, **changes))


def test_checkpointed_layers_change_no_bit_of_a_run(run: Path, tmp_path: Path) -> None:
    again = latest(train(settings(tmp_path, gradient_checkpointing=True)))
    expected = pretrained.read(latest(run))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in pretrained.read(again).items())
