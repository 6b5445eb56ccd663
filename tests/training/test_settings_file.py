"""Settings from TOML and from the command line, and the one line that each mistake gets."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fgclip_doctor.core.config import FgclipConfig
from fgclip_doctor.training import settings_file
from fgclip_doctor.training.settings import TrainConfig
from fgclip_doctor.training.settings_file import SettingsError


def read(text: str = "", *assignments: str, folder: Path) -> TrainConfig:
    file = folder / "settings.toml"
    file.write_text(text)
    return settings_file.read(file, assignments, output_dir="runs/a")


def test_nothing_said_is_the_default(tmp_path: Path) -> None:
    assert read(folder=tmp_path) == TrainConfig(output_dir=Path("runs/a"))


def test_toml_and_the_command_line_say_the_same(tmp_path: Path) -> None:
    text = """
        max_steps = 20
        learning_rate = 1
        text_learning_rate = 2e-6
        base = "openai-clip/"
        betas = [0.9, 0.95]
        schedule = "constant"
        faults = ["pure-bf16", "bank-holds-noise"]
        [model]
        use_memory_bank = true
        memory_bank_size = 12
        [model.vision_config]
        patch_size = 16
    """
    assignments = (
        "steps=20",
        "learning_rate=1",
        "text_learning_rate=2e-6",
        "base=openai-clip/",
        "betas=0.9, 0.95",
        "schedule=constant",
        "faults=pure-bf16,bank-holds-noise",
        "model.use_memory_bank=true",
        "model.memory_bank_size=12",
        "model.vision_config.patch_size=16",
    )
    tiny = FgclipConfig.preset("tiny")
    expected = TrainConfig(
        output_dir=Path("runs/a"),
        max_steps=20,
        learning_rate=1.0,
        text_learning_rate=2e-6,
        base=Path("openai-clip/"),
        betas=(0.9, 0.95),
        schedule="constant",
        faults=("pure-bf16", "bank-holds-noise"),
        model=tiny.with_changes(
            use_memory_bank=True, memory_bank_size=12, vision_config=replace(tiny.vision_config, patch_size=16)
        ),
    )
    assert read(text, folder=tmp_path) == expected
    assert read("", *assignments, folder=tmp_path) == expected
    assert isinstance(read(text, folder=tmp_path).learning_rate, float)


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    text = "steps = 7\nbase = 'a'\n[model]\npreset = 'b16'\nmemory_bank_size = 9\n"
    config = read(text, "max_steps=8", "base=none", "model.memory_bank_clock=forward", folder=tmp_path)
    assert (config.max_steps, config.base) == (8, None)
    assert config.model == FgclipConfig.preset("b16", memory_bank_size=9, memory_bank_clock="forward")
    assert read(text, "model.preset=tiny", folder=tmp_path).model == FgclipConfig.preset("tiny")  # starts it anew


def test_saved_settings_come_back_and_are_under_everything_else(tmp_path: Path) -> None:
    text = "micro_batch = 3\nbetas = [0.8, 0.9]\n[model]\nuse_memory_bank = true\n"
    config = replace(read(text, folder=tmp_path), output_dir=tmp_path)
    settings_file.save(config)
    saved = tmp_path / settings_file.SAVED
    assert settings_file.read(None, saved=saved) == config
    changed = settings_file.read(None, ["micro_batch=5", "model.memory_bank_size=2"], saved=saved)
    assert changed == replace(config, micro_batch=5, model=config.model.with_changes(memory_bank_size=2))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("lerning_rate = 1", "unknown setting 'lerning_rate'; did you mean learning_rate?"),
        ("[model]\nbank_size = 1", "unknown setting 'model.bank_size'"),
        ("[model.text_config]\nwidth = 1", "unknown setting 'model.text_config.width'"),
        ("[model]\npreset = 'b64'", "model.preset must be tiny or b32 or b16 or l14_336, not 'b64'"),
        ("model = 'tiny'", "model is a table, and takes its settings one by one: model.KEY"),
        ("micro_batch = 2.0", "micro_batch must be a whole number, not 2.0"),
        ("micro_batch = true", "micro_batch must be a whole number, not True"),
        ("micro_batch = '4'", "micro_batch must be a whole number, not '4'"),
        ("micro_batch = 0", "micro_batch must be at least 1, not 0"),
        ("micro_batch = 99999999999999999999", "micro_batch must be a whole number"),
        ("learning_rate = nan", "learning_rate must be a number, not nan"),
        ("resume = 1", "resume must be true or false, not 1"),
        ("base = 3", "base must be text, not 3"),
        ("betas = [0.9]", "betas must be a list of 2, not of 1"),
        ("betas = 0.9", "betas must be a list, not 0.9"),
        ("faults = [1]", "faults must be text, not 1"),
        ("schedule = 'linear'", "schedule must be cosine or constant, not 'linear'"),
        ("= 3", "Invalid"),
        ("micro_batch = [" * 9000, "settings.toml"),
    ],
)
def test_a_mistake_in_the_file(text: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        read(text, folder=tmp_path)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "settings.toml"))
    assert complaint in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("assignment", "complaint"),
    [
        ("steps", "--set takes KEY=VALUE, not 'steps'"),
        ("=3", "--set takes KEY=VALUE, not '=3'"),
        ("steps=many", "max_steps must be a whole number, not 'many'"),
        ("steps=1\nx=2", "max_steps must be a whole number"),
        ("learning_rate=inf", "learning_rate must be a number, not 'inf'"),
        ("learning_rate=none", "learning_rate must be a number, not 'none'"),
        ("output_dir=", "output_dir must be text, not ''"),
        ("model=tiny", "model is a table"),
        ("model..x=1", "unknown setting 'model.'"),
        ("seed.x=1", "seed must be a whole number"),
    ],
)
def test_a_mistake_on_the_command_line(assignment: str, complaint: str) -> None:
    with pytest.raises(SettingsError) as caught:
        settings_file.read(None, [assignment], output_dir="runs/a")
    assert complaint in str(caught.value)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    (tmp_path / "large.toml").write_bytes(b"#" * (settings_file.MAX_BYTES + 1))
    (tmp_path / settings_file.SAVED).write_text("[1]")
    os.mkfifo(tmp_path / "pipe.toml")
    cases: dict[str, dict[str, Any]] = {
        "absent.toml": {"path": tmp_path / "absent.toml"},
        "binary.toml": {"path": tmp_path / "binary.toml"},
        "pipe.toml": {"path": tmp_path / "pipe.toml"},
        "large.toml": {"path": tmp_path / "large.toml"},
        settings_file.SAVED: {"path": None, "saved": tmp_path / settings_file.SAVED},
    }
    for name, arguments in cases.items():
        with pytest.raises(SettingsError) as caught:
            settings_file.read(**arguments)
        assert str(caught.value).startswith(str(tmp_path / name))


def test_an_output_directory_is_needed() -> None:
    with pytest.raises(SettingsError, match="output_dir must be set"):
        settings_file.read(None)
