"""Training from scratch, with a bank that switches on in its course, learns scenes that it has never seen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fgclip_doctor.core import pretrained
from fgclip_doctor.core.config import FgclipConfig
from fgclip_doctor.training.checkpointing import latest
from fgclip_doctor.training.evaluation import evaluate
from fgclip_doctor.training.loop import train
from fgclip_doctor.training.settings import TrainConfig
from fgclip_doctor.training.synthetic import Scenes, WordTokenizer

pytestmark = pytest.mark.slow


def test_training_from_scratch_is_far_above_chance(tmp_path: Path) -> None:
    model = FgclipConfig.preset(
        "tiny", roi_projection=True, use_memory_bank=True, memory_bank_size=64, memory_bank_warmup_steps=50
    )
    checkpoint = latest(train(TrainConfig(output_dir=tmp_path, model=model, max_steps=150, micro_batch=32)))
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if entry["bank_rows"] == 0] == list(range(1, 51))
    found = evaluate(pretrained.load(checkpoint), Scenes(200, seed=1), WordTokenizer())
    assert found.image > 50 * found.image_chance
    assert found.region > 10 * found.region_chance
    assert found.hard > 3 * found.hard_chance
