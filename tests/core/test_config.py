from __future__ import annotations

from pathlib import Path

import pytest
from transformers import CLIPConfig

from fgclip_doctor.core.config import PRESETS, FgclipConfig


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_config_json(name: str, tmp_path: Path) -> None:
    config = FgclipConfig.preset(name, use_memory_bank=True, memory_bank_clock="forward", roi_projection=True)
    config.save(tmp_path / "config.json")
    assert FgclipConfig.load(tmp_path / "config.json") == config


def test_absent_keys_are_transformers_defaults() -> None:
    full = CLIPConfig().to_dict()
    for tower in ("vision_config", "text_config"):
        ours = FgclipConfig.from_dict({}).to_dict()[tower]
        theirs = full[tower] | {"bos_token_id": 49406, "eos_token_id": 49407}  # the old default is an accident
        assert {key: theirs.get(key, value) for key, value in ours.items()} == ours
    assert FgclipConfig.from_dict({}).projection_dim == full["projection_dim"]


def test_the_first_conversions_meant_the_highest_id() -> None:
    config = FgclipConfig.from_dict({"text_config": {"eos_token_id": 2, "bos_token_id": 0, "vocab_size": 1000}})
    assert (config.text_config.bos_token_id, config.text_config.eos_token_id) == (998, 999)


def test_an_unknown_preset_names_the_known() -> None:
    with pytest.raises(ValueError, match="no preset 'b31'; there are tiny, b32, b16, l14_336"):
        FgclipConfig.preset("b31")
