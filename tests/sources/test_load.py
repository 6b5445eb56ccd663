from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fgclip_doctor.sources import load
from fgclip_doctor.sources.files import Unreadable


def checkpoint(directory: Path, step: int, *, optimizer: bool = True, **state: Any) -> Path:
    """A model of two layers after `step` steps, in Hugging Face's layout."""
    directory.mkdir(parents=True)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
    adam = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.data += step
        parameter.grad = torch.ones_like(parameter)
    adam.step()
    save_file(model.state_dict(), directory / "model.safetensors")
    if optimizer:
        torch.save(adam.state_dict(), directory / "optimizer.pt")
    history = [{"step": one, "loss": float(one)} for one in range(1, step + 1)]
    (directory / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": history, **state}))
    return directory


def test_one_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path / "checkpoint-9", 9)
    run = load([Path("checkpoint-9")])
    assert run.subject == "checkpoint-9"
    assert run.step == 9
    assert set(run.tensors) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert run.optimizer.index_of("1.bias") == 3
    assert str(run.tensors["0.bias"].source) == "checkpoint-9/model.safetensors: 0.bias"
    assert run.series["loss"].steps.tolist() == list(range(1, 10))
    assert run.roles["loss.total"] == "loss"
    assert run.problems == []


def test_a_run_directory_is_a_history(tmp_path: Path) -> None:
    for step in (10, 9):
        checkpoint(tmp_path / f"checkpoint-{step}", step)
    checkpoint(tmp_path / "end", 10, optimizer=False, max_steps=12)
    for file in (tmp_path / "end").iterdir():
        file.rename(tmp_path / file.name)  # what Trainer.save_model and save_state leave
    run = load([tmp_path])
    assert [one.step for one in run.checkpoints] == [9, 10]
    assert run.checkpoint.optimizer is not None
    assert run.fact("max_steps").value == 12
    assert len(run.series["loss"].steps) == 10
    assert load([tmp_path / "checkpoint-9", tmp_path]).checkpoints[0].step == 9


def test_paths_are_taken_once_and_sorted(tmp_path: Path) -> None:
    paths = [checkpoint(tmp_path / f"checkpoint-{step}", step) for step in (1000, 90)]
    run = load([*paths, paths[0]])
    assert [one.step for one in run.checkpoints] == [90, 1000]


def test_stated_facts_and_roles_win(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "checkpoint-9", 9, max_steps=100)
    facts = {"max_steps": "200", "scale": "14.3", "bank_enabled": "true", "schedule": "cosine"}
    run = load([path], facts=facts, roles={"head.image": "1.weight"})
    assert {name: run.fact(name).value for name in facts} == {
        "max_steps": 200,
        "scale": 14.3,
        "bank_enabled": True,
        "schedule": "cosine",
    }
    assert str(run.fact("max_steps").source) == "--fact: max_steps"
    assert run.role("head.image").name == "1.weight"


def test_base_is_read(tmp_path: Path) -> None:
    path, base = checkpoint(tmp_path / "checkpoint-9", 9), checkpoint(tmp_path / "base", 0, optimizer=False)
    run = load([path], base=base)
    assert run.base is not None
    assert run.base.tensors["0.weight"].digest != run.tensors["0.weight"].digest
    (base / "model.safetensors").unlink()
    with pytest.raises(Unreadable, match="base: "):
        load([path], base=base)


def test_a_base_of_another_model_is_a_problem(tmp_path: Path) -> None:
    path, base = checkpoint(tmp_path / "checkpoint-9", 9), tmp_path / "base.safetensors"
    save_file({"0.weight": torch.ones(7, 7), "elsewhere": torch.ones(1)}, base)
    run = load([path], base=base)
    assert run.base is None
    assert run.problems == [f"{base}: has no tensor in common with {path}"]


def test_an_optimizer_of_another_model_is_a_problem(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "checkpoint-9", 9)
    torch.save(torch.optim.AdamW([nn.Parameter(torch.ones(2)) for _ in range(9)]).state_dict(), path / "optimizer.pt")
    run = load([path])
    assert run.problems == [f"{path}/optimizer.pt: does not fit the weights beside it"]
    assert run.optimizer.names == {}


@pytest.mark.parametrize("piece", ["trainer_state.json", "model.safetensors", "optimizer.pt"])
def test_the_rest_counts_if_a_piece_is_broken(tmp_path: Path, piece: str) -> None:
    path = checkpoint(tmp_path / "checkpoint-9", 9)
    (path / piece).write_bytes(b"\x00broken")
    run = load([path])
    (problem,) = run.problems
    assert problem.startswith(f"{path}/{piece}: ")
    assert run.checkpoint.step == 9


def test_a_broken_checkpoint_among_bare_files_is_a_problem(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "step_1.pt")
    (tmp_path / "step_2.pt").write_bytes(b"broken")
    run = load([tmp_path])
    assert [one.step for one in run.checkpoints] == [1]
    assert run.problems[0].startswith(f"{tmp_path}/step_2.pt: ")


def test_a_folder_that_may_not_be_entered_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint(tmp_path / "checkpoint-9", 9)

    def guarded(file: Path) -> bool:  # the superuser, who may run this, is refused nothing
        raise PermissionError(errno.EACCES, "Permission denied", str(file))

    monkeypatch.setattr(Path, "is_file", guarded)
    with pytest.raises(Unreadable, match=r"may not be read \(permission denied\)$"):
        load([path])


def test_what_can_not_be_read_is_one_line_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"\xff" * 9)
    (tmp_path / "text.pt").write_text("no weights")
    os.mkfifo(tmp_path / "pipe.pt")
    for name in ("gone", "empty", "broken", "text.pt", "pipe.pt"):
        with pytest.raises(Unreadable) as caught:
            load([tmp_path / name])
        assert str(caught.value).startswith(str(tmp_path / name))
        assert "\n" not in str(caught.value)


def _schedule_by_hand(directory: Path, peak: float, end: float, steps: int = 40) -> None:
    """A checkpoint of a plain loop that sets the rates itself, with a log of them."""
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak)
    lines = []
    for step in range(steps):
        rate = peak + (end - peak) * step / (steps - 1)
        optimizer.param_groups[0]["lr"] = rate
        model(torch.ones(2, 4)).square().mean().backward()
        optimizer.step()
        lines.append(json.dumps({"step": step, "loss": 1.0 / (step + 1), "lr": rate}))
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, directory / "step_40.pt")
    (directory / "log.jsonl").write_text("\n".join(lines))


@pytest.mark.parametrize("end", [0.0, 1.37077e-07, 5e-6, 2e-3])
def test_the_peak_of_a_schedule_set_by_hand_is_that_of_the_log(tmp_path: Path, end: float) -> None:
    _schedule_by_hand(tmp_path, 2e-3, end)
    assert load([tmp_path]).optimizer.groups[0].initial_lr == pytest.approx(2e-3)


@pytest.mark.parametrize(("end", "peak"), [(1.37077e-07, None), (2e-3, 2e-3)])
def test_without_a_log_the_end_of_a_schedule_is_no_peak(tmp_path: Path, end: float, peak: float | None) -> None:
    _schedule_by_hand(tmp_path, 2e-3, end)
    assert load([tmp_path / "step_40.pt"]).optimizer.groups[0].initial_lr == peak
