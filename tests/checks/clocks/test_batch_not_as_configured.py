from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fgclip_doctor import Missing
from fgclip_doctor.sources import load
from fgclip_doctor_checks.clocks.batch_not_as_configured import batch_not_as_configured


def saved(directory: Path, asked: int | None, used: int | None, step: int = 10) -> Path:
    """A checkpoint with the pieces that the Trainer writes."""
    folder = directory / f"checkpoint-{step}"
    folder.mkdir()
    torch.save({"logit_scale": torch.zeros(())}, folder / "pytorch_model.bin")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "train_batch_size": used}))
    if asked is not None:
        torch.save({"per_device_train_batch_size": asked}, folder / "training_args.bin")
    return directory


@pytest.mark.parametrize(("asked", "used", "why"), [(64, 64, ""), (64, 32, "memory ran out"), (64, 256, "over 4 GPUs")])
def test_the_batch_in_use(tmp_path: Path, asked: int, used: int, why: str) -> None:
    found = list(batch_not_as_configured(load([saved(tmp_path, asked, used)])))
    assert len(found) == bool(why)
    if found:
        assert why in found[0].message


def test_a_batch_of_before_a_resume_that_the_state_keeps(tmp_path: Path) -> None:
    saved(tmp_path, 32, 32)
    saved(tmp_path, 8, 32, step=20)
    assert not list(batch_not_as_configured(load([tmp_path])))
    [finding] = batch_not_as_configured(load([tmp_path / "checkpoint-20"]))
    assert "or another before a resume" in finding.message


@pytest.mark.parametrize(("asked", "used"), [(None, 64), (64, None)])
def test_skipped_where_only_one_is_known(tmp_path: Path, asked: int | None, used: int | None) -> None:
    with pytest.raises(Missing, match="both"):
        list(batch_not_as_configured(load([saved(tmp_path, asked, used)])))


def test_the_trainers_line_on_data_parallel(tmp_path: Path) -> None:
    line = "***** Running training *****\n  Instantaneous batch size per device = 8\n"
    (tmp_path / "sound.log").write_text(line)
    with pytest.raises(Missing, match="both"):
        list(batch_not_as_configured(load([tmp_path / "sound.log"])))
    (tmp_path / "train.log").write_text(line + "  Training with DataParallel so batch size has been adjusted to: 32\n")
    [finding] = batch_not_as_configured(load([tmp_path / "train.log"]))
    assert (finding.evidence[0].value, finding.evidence[0].expected) == ("32", 8)
    assert finding.evidence[0].source.endswith("train.log:3")
