"""Checkpoints of Lightning, open_clip and PEFT, written by plain torch and safetensors in the form that theirs have.

The packages themselves aren't needed for that: the keys are those of Lightning's `dump_checkpoint`, open_clip's
`training.main` and PEFT's `save_pretrained`.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fgclip_doctor.run import Missing
from fgclip_doctor.sources import load


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.visual = torch.nn.Linear(3, 4)
        self.text = torch.nn.Linear(5, 4)
        self.logit_scale = torch.nn.Parameter(torch.tensor(2.5))

    def forward(self) -> torch.Tensor:
        return (self.visual(torch.ones(3)) * self.text(torch.ones(5)) * self.logit_scale).sum()


def trained(steps: int = 2) -> tuple[Model, torch.optim.AdamW]:
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.125)
    for _ in range(steps):
        model().backward()
        optimizer.step()
    return model, optimizer


class AttributeDict(dict[str, Any]):
    """Lightning keeps hyper-parameters in a subclass of dict."""


def lightning(path: Path, step: int = 2, batches: int = 16) -> None:
    model, optimizer = trained(step)
    progress = {"total": {"ready": batches, "completed": batches, "started": batches, "processed": batches}}
    content = {
        "epoch": 0,
        "global_step": step,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": OrderedDict((f"model.{name}", value) for name, value in model.state_dict().items()),
        "loops": {"fit_loop": {"epoch_loop.batch_progress": progress}},
        "callbacks": {},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [torch.optim.lr_scheduler.LinearLR(optimizer).state_dict()],
        "MixedPrecision": {"scale": 65536.0, "growth_factor": 2.0},
        "hparams_name": "kwargs",
        "hyper_parameters": AttributeDict(batch_size=32, queue_size=512),
    }
    torch.save(content, path)


def test_lightning(tmp_path: Path) -> None:
    directory = tmp_path / "lightning_logs" / "version_0" / "checkpoints"
    directory.mkdir(parents=True)
    lightning(directory / "epoch=0-step=2.ckpt")
    lightning(directory / "epoch=1-step=4.ckpt", 4, 32)
    run = load([directory.parent])
    assert [one.step for one in run.checkpoints] == [2, 4]
    assert set(run.tensors) == set(Model().state_dict())
    assert run.optimizer.step == 4
    assert run.optimizer.index_of("logit_scale") is not None
    facts = {name: fact.value for name, fact in run.facts.items()}
    assert facts.items() >= {"micro_batch": 32, "bank_size": 512, "learning_rate": 0.125}.items()
    assert facts.items() >= {"fp16": True, "accumulation": 8, "global_step": 4}.items()


def test_the_share_of_batches_that_is_no_whole_number_says_nothing(tmp_path: Path) -> None:
    lightning(tmp_path / "last.ckpt", 2, 15)
    with pytest.raises(Missing):
        load([tmp_path / "last.ckpt"]).fact("accumulation")


def test_several_optimizers_of_lightning_are_told(tmp_path: Path) -> None:
    lightning(tmp_path / "last.ckpt")
    content = torch.load(tmp_path / "last.ckpt", weights_only=False)
    content["optimizer_states"] *= 2
    torch.save(content, tmp_path / "last.ckpt")
    run = load([tmp_path / "last.ckpt"])
    assert run.checkpoint.optimizer is None
    assert run.problems == [f"{tmp_path}/last.ckpt: holds 2 optimizers under optimizer_states, which are not read"]


def test_open_clip(tmp_path: Path) -> None:
    directory = tmp_path / "2026_01_01-model_ViT" / "checkpoints"
    directory.mkdir(parents=True)
    for epoch in (2, 10):
        model, optimizer = trained(epoch)
        content = {
            "epoch": epoch,
            "name": directory.parent.name,
            "state_dict": {f"module.{name}": value for name, value in model.state_dict().items()},
            "optimizer": optimizer.state_dict(),
            "scaler": {"scale": 65536.0, "growth_factor": 2.0},
        }
        torch.save(content, directory / f"epoch_{epoch}.pt")
    torch.save(content, directory / "epoch_latest.pt")
    for path in (directory.parent, directory):
        run = load([path])
        assert [one.step for one in run.checkpoints] == [2, 10, 10]
        assert set(run.tensors) == set(Model().state_dict())
        assert run.optimizer.index_of("logit_scale") is not None
        assert run.facts["fp16"].value is True


def adapters(directory: Path) -> None:
    directory.mkdir()
    layer = "base_model.model.visual.layers.0.q_proj"
    weights = {f"{layer}.lora_A.weight": torch.randn(2, 8), f"{layer}.lora_B.weight": torch.zeros(6, 2)}
    save_file(weights, directory / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 16, "target_modules": ["v_proj", "q_proj"], "bias": "none"}
    (directory / "adapter_config.json").write_text(json.dumps(config))


def test_adapters(tmp_path: Path) -> None:
    adapters(tmp_path / "checkpoint-5")
    for path in (tmp_path, tmp_path / "checkpoint-5"):
        run = load([path])
        assert run.step == 5 or run.checkpoint.step == 5
        assert len(run.tensors) == 2
        facts = {name: fact.value for name, fact in run.facts.items()}
        assert facts == {"adapter_rank": 2, "adapter_alpha": 16, "adapter_targets": "q_proj, v_proj"}
        with pytest.raises(Missing, match="holds adapters alone"):
            _ = run.whole_model


def test_accelerate_s_names_of_files(tmp_path: Path) -> None:
    model, optimizer = trained()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.bin")
    torch.save(torch.optim.lr_scheduler.LinearLR(optimizer).state_dict(), tmp_path / "scheduler.bin")
    run = load([tmp_path])
    assert run.optimizer.step == 2
    assert run.checkpoint.scheduler is not None
