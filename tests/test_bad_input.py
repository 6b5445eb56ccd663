"""A checkpoint with one piece of it replaced by nonsense: the rest is audited, nothing crashes, nothing is executed."""

from __future__ import annotations

import json
import math
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from fgclip_doctor.cli import app

NAN, INF, HUGE = math.nan, math.inf, 10**400
PIECES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "training_args.bin", "trainer_state.json", "config.json")
NONSENSE: tuple[Any, ...] = (
    None,
    NAN,
    INF,
    -INF,
    -1,
    0,
    0.5,
    1e308,
    2**63,
    HUGE,
    True,
    "x",
    "\x1b[2J",
    [],
    [1],
    {},
    {"a": 1},
)


class Model(torch.nn.Module):
    """Every role that a check asks for, in the smallest size that checks look at."""

    def __init__(self) -> None:
        super().__init__()
        self.text_projection = torch.nn.Linear(32, 32, bias=False)
        self.visual_projection = torch.nn.Linear(32, 32, bias=False)
        self.roi_projection = torch.nn.Linear(32, 32, bias=False)
        self.norm = torch.nn.LayerNorm(32)
        self.logit_scale = torch.nn.Parameter(torch.tensor(4.6))
        self.logit_scale_finegraind = torch.nn.Parameter(torch.tensor(4.6))
        rows = torch.nn.functional.normalize(torch.randn(32, 64), dim=0)
        self.register_buffer("region_image_queue", rows)
        self.register_buffer("region_text_queue", rows + 0.01)
        self.register_buffer("queue_ptr", torch.tensor([9]))
        self.register_buffer("queue_is_full", torch.tensor([True]))
        self.register_buffer("training_steps", torch.tensor([480]))


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole checkpoint after 60 steps of 8 forwards."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run") / "checkpoint-60"
    folder.mkdir()
    model = Model()
    adam = torch.optim.AdamW(model.named_parameters(), lr=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1.0)
    for _ in range(60):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        adam.step()
        schedule.step()
    save_file(model.state_dict(), folder / "model.safetensors")
    torch.save(adam.state_dict(), folder / "optimizer.pt")
    torch.save(schedule.state_dict(), folder / "scheduler.pt")
    arguments = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 8,
        "max_steps": 100,
        "warmup_steps": 5,
    }
    torch.save(arguments, folder / "training_args.bin")
    noise = np.random.default_rng(0).normal(size=60)
    history = [
        {"step": step + 1, "loss": 2.0, "loss_global": 1 + noise[step], "loss_region": 2.0, "learning_rate": 1e-4}
        for step in range(60)
    ]
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 60, "log_history": history}))
    config = {"projection_dim": 32, "memory_bank_size": 64, "memory_bank_warmup_steps": 20, "use_memory_bank": True}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def checkpoint(healthy: Path, tmp_path: Path) -> Path:
    """A copy to spoil, by links: a piece is replaced, never written to."""
    folder = tmp_path / "checkpoint-60"
    folder.mkdir()
    for piece in healthy.iterdir():
        os.link(piece, folder / piece.name)
    return folder


def replace(piece: Path, content: bytes | str) -> None:
    piece.unlink()
    piece.write_bytes(content.encode() if isinstance(content, str) else content)


def rewrite(piece: Path, change: Callable[[Any], Any]) -> None:
    """Replace what torch saved in `piece` by what `change` makes of it."""
    content = change(torch.load(piece, weights_only=True))
    piece.unlink()
    torch.save(content, piece)


def audit(path: Path, base: Path | None = None) -> tuple[int, dict[str, Any]]:
    """Exit code and report without a base; a `base` is compared with in the text. Neither has a crash, nor raw text."""
    compared = [] if base is None else ["--base", str(base)]
    text = CliRunner().invoke(app, ["audit", str(path), "--verbose", *compared], catch_exceptions=False)
    result = CliRunner().invoke(app, ["audit", str(path), "--format", "json"], catch_exceptions=False)
    for one in (text, result):
        assert one.exit_code in (0, 1, 2)
        assert "\x1b" not in one.output
    assert not re.search("^crashed|observing", text.output, re.MULTILINE)
    report = json.loads(result.stdout) if result.stdout else {"problems": [], "crashed": []}
    assert report["crashed"] == []
    return result.exit_code, report


def test_the_healthy_checkpoint_reads_whole(healthy: Path) -> None:
    code, report = audit(healthy)
    assert (code, report["problems"]) == (0, [])
    assert len(report["passed"]) > 10


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "loop", "dangling", "empty", "junk", "list"])
def test_a_piece_that_is_none_costs_a_line(checkpoint: Path, piece: str, kind: str) -> None:
    path = checkpoint / piece
    path.unlink()
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()
        case "loop" | "dangling":
            path.symlink_to(piece if kind == "loop" else "nowhere")
        case "empty":
            path.touch()
        case "junk":
            path.write_bytes(bytes(range(255, 0, -1)) * 5)
        case "list":
            path.write_bytes(b"[1]" if piece.endswith(".json") else pickle.dumps([1]))
    _, report = audit(checkpoint)
    silent = kind == "list" and piece in ("scheduler.pt", "training_args.bin")  # nothing in it that is ours to know
    assert [problem.partition(": ")[0] for problem in report["problems"]] == [] if silent else [str(path)]
    assert audit(path)[0] in (0, 2), "the same file by itself"


@pytest.mark.parametrize("piece", ["pytorch_model.bin", "optimizer.pt", "scheduler.pt", "training_args.bin"])
@pytest.mark.parametrize("place", ["whole", "as a value", "as a field"])
def test_no_pickle_is_executed(checkpoint: Path, tmp_path: Path, piece: str, place: str) -> None:
    mark = tmp_path / "owned"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {mark}",)

    state = {"state": {0: Evil()}, "param_groups": [{"params": [0], "lr": Evil()}], "base_lrs": Evil(), "a": Evil()}
    content = {"whole": Evil(), "as a value": {"state_dict": Evil(), "max_steps": Evil()}, "as a field": state}[place]
    (checkpoint / "model.safetensors").unlink()
    path = checkpoint / piece
    path.unlink(missing_ok=True)
    torch.save(content, path)
    audit(checkpoint)
    audit(path)
    assert not mark.exists()


STRANGE: dict[str, torch.Tensor] = {
    "NaN": torch.tensor(NAN),
    "infinite": torch.tensor(-INF),
    "huge": torch.tensor(-1e30),
    "huge and double": torch.tensor(1e200, dtype=torch.float64),
    "8 bits": torch.tensor(4.6).to(torch.float8_e4m3fn),
    "negative": torch.tensor([-5]),
    "beyond": torch.tensor([2**63 - 1]),
    "fraction": torch.tensor([1.5]),
    "two": torch.tensor([1, 2]),
    "empty": torch.zeros(0),
    "no rows": torch.zeros(32, 0),
    "one row": torch.ones(32, 1),
    "one column": torch.ones(1, 64),
    "cube": torch.ones(4, 4, 4),
    "NaN rows": torch.full((32, 64), NAN),
    "huge rows": torch.full((32, 64), 3e38),
    "whole rows": torch.ones(32, 64, dtype=torch.int8),
}


@pytest.mark.parametrize("strange", STRANGE)
@pytest.mark.parametrize(
    "names",
    [
        ("logit_scale",),
        ("queue_ptr",),
        ("queue_is_full",),
        ("training_steps",),
        ("region_image_queue",),
        ("region_image_queue", "region_text_queue"),
        ("visual_projection.weight",),
        ("norm.weight", "norm.bias"),
    ],
    ids=" ".join,
)
def test_no_tensor_is_too_strange(checkpoint: Path, healthy: Path, names: tuple[str, ...], strange: str) -> None:
    weights = Model().state_dict() | {name: STRANGE[strange].clone() for name in names}
    (checkpoint / "model.safetensors").unlink()
    save_file(weights, checkpoint / "model.safetensors")
    audit(checkpoint, healthy)


@pytest.mark.parametrize("value", NONSENSE, ids=repr)
def test_no_number_in_json_is_too_strange(checkpoint: Path, value: Any) -> None:
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    entries = [{**entry, key: value} for entry in state["log_history"] for key in entry]
    odd = {"global_step": value, "max_steps": value, "train_batch_size": value, "log_history": value}
    config = {"projection_dim": value, "memory_bank_size": value, "vision_config": value, "model_type": value}
    for piece, content in (
        ("trainer_state.json", odd),
        ("trainer_state.json", {"global_step": 60, "log_history": entries}),
        ("config.json", config),
    ):
        replace(checkpoint / piece, json.dumps(content))
        audit(checkpoint)


@pytest.mark.parametrize("value", [*NONSENSE, (), (HUGE, 0.9), torch.ones(2), torch.tensor(NAN)], ids=repr)
def test_no_option_of_an_optimizer_is_too_strange(checkpoint: Path, healthy: Path, value: Any) -> None:
    for option in ("lr", "initial_lr", "weight_decay", "eps", "betas", "param_names"):
        rewrite(
            checkpoint / "optimizer.pt",
            lambda saved, option=option: {
                **saved,
                "param_groups": [{**group, "lr": 1e-4, option: value} for group in saved["param_groups"]],
            },
        )
        audit(checkpoint, healthy)


@pytest.mark.parametrize("value", [*NONSENSE, -torch.ones(2), torch.zeros(0), torch.tensor(NAN)], ids=repr)
def test_no_state_is_too_strange(checkpoint: Path, healthy: Path, value: Any) -> None:
    for key in ("step", "exp_avg", "exp_avg_sq"):
        rewrite(
            checkpoint / "optimizer.pt",
            lambda saved, key=key: {
                **saved,
                "state": {index: {**one, key: value} for index, one in saved["state"].items()},
            },
        )
        audit(checkpoint, healthy)
    rewrite(checkpoint / "scheduler.pt", lambda saved: {**saved, "last_epoch": value, "base_lrs": value})
    rewrite(checkpoint / "training_args.bin", lambda saved: dict.fromkeys(saved, value))
    audit(checkpoint, healthy)


def test_names_are_only_names(checkpoint: Path) -> None:
    names = [
        "\x1b[2J",
        "[red]x[/red]",
        "[/]",
        "\u202eevil",
        "a\nb",
        "x" * 10_000,
        "." * 100,
        " ",
        "../../etc/passwd",
        "\\[",
    ]
    weights = {f"{role}{name}": torch.full((1,), 9.0) for name in names for role in ("logit_scale", "queue_ptr")}
    (checkpoint / "model.safetensors").unlink()
    save_file(weights, checkpoint / "model.safetensors")
    entries = [{"step": step, **{f"loss_{name}": 1.4 for name in names}} for step in range(60)]
    replace(checkpoint / "trainer_state.json", json.dumps({"global_step": 60, "log_history": entries}))
    audit(checkpoint)
