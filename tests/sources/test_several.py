"""Several runs of TensorBoard's in one directory, and what only looks like it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from fgclip_doctor.sources import load


def write(root: Path, folders: Iterable[str], steps: Iterable[int] = range(1, 9)) -> Path:
    for folder in folders:
        with SummaryWriter(str(root / folder)) as writer:
            for step in steps:
                writer.add_scalar("train/loss", 1 / step, step)
                writer.add_scalar(f"only/{folder}", step, step)
    return root


def test_several_runs_are_told(tmp_path: Path) -> None:
    run = load([write(tmp_path, [f"version_{number}" for number in range(6)])])
    assert run.notes == [
        f"{tmp_path}: holds 6 runs with the same tags, version_0, version_1, version_2, version_3 and 2 more; "
        "no loss can be told from them together: audit one of them"
    ]
    assert "loss.total" not in run.roles
    assert load([tmp_path / "version_5"]).notes == []


def test_one_beside_the_directory_s_own_is_told(tmp_path: Path) -> None:
    assert "holds 2 runs with the same tags, ., again;" in load([write(tmp_path, [".", "again"])]).notes[0]


@pytest.mark.parametrize(
    "folders", [["train", "validation"], ["run/train", "run/eval"], ["rank_0", "rank_1"], ["alone"], [".", "eval"]]
)
def test_parts_of_one_run_are_not(tmp_path: Path, folders: list[str]) -> None:
    assert load([write(tmp_path, folders)]).notes == []


def test_scalars_added_together_are_one_run(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path)) as writer:
        for step in range(5):
            writer.add_scalars("loss", {"global": 1.0, "region": 2.0}, step)
    assert load([tmp_path]).notes == []
