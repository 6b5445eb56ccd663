from __future__ import annotations

import argparse
import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fgclip_doctor.sources.checkpoint import inner_checkpoints, read_directory, read_file
from fgclip_doctor.sources.files import Unreadable

WEIGHTS = {"visual.weight": torch.ones(4, 3), "logit_scale": torch.tensor(2.5), "bias": torch.zeros(4)}


def index(directory: Path, name: str, shards: dict[str, str]) -> None:
    (directory / name).write_text(json.dumps({"metadata": {}, "weight_map": shards}))


@pytest.mark.parametrize(
    "content",
    [
        WEIGHTS,
        {"state_dict": WEIGHTS},
        {"epoch": 3, "model_state_dict": WEIGHTS},
        {"model": WEIGHTS},
        {"model": {"state_dict": WEIGHTS}},
        {f"module.{name}": value for name, value in WEIGHTS.items()},
        {"state_dict": {f"_orig_mod.module.{name}": value for name, value in WEIGHTS.items()}},
        {"state_dict": {f"model.{name}": value for name, value in WEIGHTS.items()}},
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
def test_usual_wrappers_come_off(tmp_path: Path, content: dict[str, Any], suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save(content, path)
    found = read_file(path)
    assert set(found.tensors) == set(WEIGHTS)
    assert found.tensors["logit_scale"].item() == 2.5
    assert found.tensors["logit_scale"].name == "logit_scale"


ADAM = {"state": {0: {"exp_avg": torch.zeros(4, 3)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]}
PARTS = {"eyes": {"0.weight": torch.ones(4, 3)}, "words": {"0.weight": torch.ones(4, 5)}, "crit": {"t": torch.ones(())}}
NAMES = {"eyes.0.weight", "words.0.weight", "crit.t"}


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ({"w": WEIGHTS, "adam": ADAM, "t": 90}, set(WEIGHTS)),
        ({**PARTS, "o": ADAM, "t": 90}, NAMES),
        ({"nets": PARTS, "o": ADAM, "t": 90}, NAMES),
        ({"w": WEIGHTS, "w_ema": WEIGHTS, "o": ADAM, "t": 90}, set(WEIGHTS)),
        ({"w": WEIGHTS, "rng": {"cpu": torch.zeros(9, dtype=torch.uint8)}, "o": ADAM, "t": 90}, set(WEIGHTS)),
        ({"model": WEIGHTS, "criterion": {"t": torch.ones(())}, "o": ADAM, "t": 90}, {*WEIGHTS, "criterion.t"}),
        ({"model": WEIGHTS, "decoder": {"t": torch.ones(3)}, "o": ADAM, "t": 90}, set(WEIGHTS)),
    ],
)
def test_weights_under_names_of_their_own(tmp_path: Path, content: dict[str, Any], names: set[str]) -> None:
    torch.save(content, tmp_path / "one.pt")
    found = read_file(tmp_path / "one.pt")
    assert set(found.tensors) == names
    assert found.trainer_step == 90
    assert found.optimizer is not None
    assert found.optimizer.groups[0].lr == 1e-3


@pytest.mark.parametrize(
    "content",
    [
        {0: ADAM, "w": WEIGHTS},  # what is kept under a number has no name to tell it by
        {"w": WEIGHTS, "deep": {"er": {"and": {"deeper": WEIGHTS}}}},
        {"w": WEIGHTS, "o": {"state": None, "param_groups": None}, "s": {"last_epoch": "x", "_step_count": []}},
    ],
)
def test_odd_neighbours_do_no_harm(tmp_path: Path, content: dict[Any, Any]) -> None:
    torch.save(content, tmp_path / "one.pt")
    assert set(WEIGHTS) <= {name.removeprefix("w.") for name in read_file(tmp_path / "one.pt").tensors}


def test_a_folder_of_some_trainer_s_own(tmp_path: Path) -> None:
    for step in (20, 100):
        (tmp_path / f"update-{step}").mkdir()
        save_file({**WEIGHTS}, tmp_path / f"update-{step}" / "net.safetensors")
        torch.save(ADAM, tmp_path / f"update-{step}" / "optimizer.pt")
    assert [one.name for one in inner_checkpoints(tmp_path)] == ["update-20", "update-100"]
    found = read_directory(tmp_path / "update-100")
    assert set(found.tensors) == set(WEIGHTS)
    assert found.optimizer is not None
    assert found.order == 100


def test_settings_beside_bare_files_hide_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for step in (2, 10):
        torch.save(WEIGHTS, tmp_path / f"model_{step:04d}.pth")
    assert [one.name for one in inner_checkpoints(tmp_path)] == ["model_0002.pth", "model_0010.pth"]
    torch.save(WEIGHTS, tmp_path / "pytorch_model.bin")
    assert inner_checkpoints(tmp_path) == []


def test_a_prefix_of_some_names_stays(tmp_path: Path) -> None:
    torch.save({"model.visual.weight": torch.ones(2), "loss.logit_scale": torch.ones(())}, tmp_path / "a.pt")
    assert set(read_file(tmp_path / "a.pt").tensors) == {"model.visual.weight", "loss.logit_scale"}


def test_the_source_keeps_the_name_in_the_file(tmp_path: Path) -> None:
    save_file({"module.logit_scale": torch.ones(1)}, tmp_path / "a.safetensors")
    assert str(read_file(tmp_path / "a.safetensors").tensors["logit_scale"].source) == (
        f"{tmp_path}/a.safetensors: module.logit_scale"
    )


def test_a_trainer_s_own_file_gives_optimizer_steps_and_arguments(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.ones(4, 3))
    optimizer = torch.optim.AdamW([parameter], lr=0.125)
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer)
    content = {
        "model": WEIGHTS,
        "optimizer": optimizer.state_dict(),
        "scheduler": schedule.state_dict(),
        "global_step": 77,
        "args": argparse.Namespace(batch_size=16, accum_freq=4, queue_size=512),
    }
    torch.save(content, tmp_path / "latest.pt")
    found = read_file(tmp_path / "latest.pt")
    assert found.trainer_step == 77
    assert found.optimizer is not None
    assert found.optimizer.step == 1
    assert found.checkpoint().step == 77
    assert found.scheduler is not None
    facts = {fact.name: fact.value for fact in found.facts}
    assert facts.items() >= {"micro_batch": 16, "accumulation": 4, "bank_size": 512, "learning_rate": 0.125}.items()


@pytest.mark.parametrize(("step", "expected"), [(1, None), (3, 3), (12, 12)])
def test_a_step_that_begins_anew_with_each_epoch_is_not_the_run_s(
    tmp_path: Path, step: int, expected: int | None
) -> None:
    parameter = torch.nn.Parameter(torch.ones(4, 3))
    optimizer = torch.optim.AdamW([parameter])
    for _ in range(3):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    content = {"model": WEIGHTS, "optimizer": optimizer.state_dict(), "epoch": 2, "step": step}
    torch.save(content, tmp_path / "latest.pt")
    found = read_file(tmp_path / "latest.pt")
    assert found.trainer_step == expected
    assert found.checkpoint().step == (expected or 3)


@pytest.mark.parametrize(("name", "step"), [("checkpoint_02.pth", 5), ("checkpoint_09.pth", 9)])
def test_a_number_that_is_the_epoch_s_counts_no_steps(tmp_path: Path, name: str, step: int) -> None:
    parameter = torch.nn.Parameter(torch.ones(4, 3))
    optimizer = torch.optim.AdamW([parameter])
    for _ in range(5):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    torch.save({"model": WEIGHTS, "optimizer": optimizer.state_dict(), "epoch": 2}, tmp_path / name)
    found = read_file(tmp_path / name)
    assert found.checkpoint().step == step
    assert found.checkpoint().facts["epochs_done"].value == 2


def test_a_bare_optimizer_is_read(tmp_path: Path) -> None:
    torch.save(torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))]).state_dict(), tmp_path / "optimizer.pt")
    found = read_file(tmp_path / "optimizer.pt")
    assert found.optimizer is not None
    assert found.tensors == {}


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], "text", {}])
def test_a_file_without_weights_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(Unreadable, match=r"a\.pt: "):
        read_file(tmp_path / "a.pt")


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_are_put_together(tmp_path: Path, kind: str) -> None:
    name = "model.safetensors" if kind == "safetensors" else "pytorch_model.bin"
    for place, key in enumerate(WEIGHTS):
        file = tmp_path / f"shard-{place}.{kind}"
        if kind == "bin":
            torch.save({key: WEIGHTS[key]}, file)
        else:
            save_file({key: WEIGHTS[key]}, file)
    index(tmp_path, f"{name}.index.json", {key: f"shard-{place}.{kind}" for place, key in enumerate(WEIGHTS)})
    found = read_directory(tmp_path)
    assert set(found.tensors) == set(WEIGHTS)
    assert found.problems == []


def test_a_missing_or_escaping_shard_costs_a_line(tmp_path: Path) -> None:
    inner = tmp_path / "checkpoint-5"
    inner.mkdir()
    save_file({"a": torch.ones(1)}, tmp_path / "secret.safetensors")
    save_file({"b": torch.ones(1)}, inner / "here.safetensors")
    shards = {"a": "../secret.safetensors", "b": "here.safetensors", "c": "gone.safetensors"}
    index(inner, "model.safetensors.index.json", shards)
    found = read_directory(inner)
    assert set(found.tensors) == {"b"}
    lines = [str(problem) for problem in found.problems]
    assert len(lines) == 2
    assert "outside" in lines[0]
    assert "gone.safetensors" in lines[1]


@pytest.mark.parametrize("weight_map", [None, [], {"a": 3}, {str(shard): str(shard) for shard in range(3000)}])
def test_an_index_that_is_none_falls_back_to_the_weights(tmp_path: Path, weight_map: object) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    torch.save(WEIGHTS, tmp_path / "pytorch_model.bin")
    found = read_directory(tmp_path)
    assert set(found.tensors) == set(WEIGHTS)
    assert found.defined_order  # "visual" before "logit_scale": not the alphabet's
    assert len(found.problems) == 1


def test_a_folder_that_may_not_be_looked_into_costs_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "config.json").write_text("{}")
    listed = Path.iterdir

    def guarded(folder: Path) -> Iterator[Path]:  # the superuser, who may run this, is refused nothing
        if folder.name == "checkpoint-2":
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", guarded)
    first, second = (read_directory(folder) for folder in inner_checkpoints(tmp_path))
    assert first.problems == []
    assert [str(one) for one in second.problems] == [f"{tmp_path}/checkpoint-2: may not be read (permission denied)"]


def test_ranks_are_counted(tmp_path: Path) -> None:
    for rank in range(4):
        (tmp_path / f"rng_state_{rank}.pth").touch()
    assert [(fact.name, fact.value) for fact in read_directory(tmp_path).facts] == [("world_size", 4)]


def test_checkpoints_come_by_step_and_not_by_name(tmp_path: Path) -> None:
    for step in (1000, 90, 200):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "config.json").write_text("{}")
    (tmp_path / "checkpoint-5").mkdir()  # empty
    (tmp_path / "runs").mkdir()
    (tmp_path / "model.safetensors").touch()
    assert [one.name for one in inner_checkpoints(tmp_path)] == ["checkpoint-90", "checkpoint-200", "checkpoint-1000"]


def test_bare_files_of_a_run_come_by_step(tmp_path: Path) -> None:
    for name in ("epoch_20.pt", "epoch_3.pt", "scaler.pt", "notes.txt"):
        (tmp_path / name).touch()
    assert [one.name for one in inner_checkpoints(tmp_path)] == ["epoch_3.pt", "epoch_20.pt"]
