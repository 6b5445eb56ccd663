from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fgclip_doctor import Missing
from fgclip_doctor.sources import load
from fgclip_doctor_checks.clocks.batch_not_as_configured import batch_not_as_configured


def saved(directory: Path, asked: int | None, used: int | None) -> Path:
    """A checkpoint with the pieces that the Trainer writes."""
    folder = directory / "checkpoint-10"
    folder.mkdir()
    torch.save({"logit_scale": torch.zeros(())}, folder / "pytorch_model.bin")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 10, "train_batch_size": used}))
    if asked is not None:
        torch.save({"per_device_train_batch_size": asked}, folder / "training_args.bin")
    return directory


@pytest.mark.parametrize(("asked", "used", "why"), [(64, 64, ""), (64, 32, "memory ran out"), (64, 256, "over 4 GPUs")])
def test_the_batch_in_use(tmp_path: Path, asked: int, used: int, why: str) -> None:
    found = list(batch_not_as_configured(load([saved(tmp_path, asked, used)])))
    assert len(found) == bool(why)
    if found:
        assert why in found[0].message


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
