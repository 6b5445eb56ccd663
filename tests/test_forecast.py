"""The forecast against the arithmetic of a known run, and against what the runs it speaks of do."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fgclip_doctor import forecast
from fgclip_doctor.cli import app
from fgclip_doctor.forecast import Forecast, Phase
from fgclip_doctor.run import Missing
from fgclip_doctor.sources.files import Unreadable
from fgclip_doctor.training.settings_file import SettingsError
from tests.test_architecture import loaded

REPORTED = {
    "micro_batch": "4",
    "accumulation": "8",
    "bank_size": "128",
    "bank_warmup": "50",
    "scale": "14.24",
    "dimension": "512",
    "max_steps": "240",
}


def plan(path: Path | None = None, **changes: str | None) -> Forecast:
    """The forecast of the reported run, with facts changed or (None) left out; of `path`, with those facts alone."""
    facts: dict[str, str | None] = {**({} if path else REPORTED), **changes}
    stated = {name.replace("__", "."): value for name, value in facts.items() if value is not None}
    return forecast.forecast(forecast.read(path, stated))


def phases(result: Forecast) -> dict[str, Phase]:
    return {f"{term.name} {phase.name}".strip(): phase for term in result.terms for phase in term.phases}


def simulated(anchors: int, candidates: int, scale: float) -> tuple[float, float]:
    """Mean and deviation over 1,000 batches of the symmetric loss of random unit features, its bank included."""
    rng, losses = np.random.default_rng(0), []

    def unit(*shape: int) -> Any:
        features = rng.normal(size=(*shape, 512)).astype(np.float32)
        return features / np.linalg.norm(features, axis=-1, keepdims=True)

    bank = candidates - anchors
    for _ in range(1000 // 50):
        images, texts = unit(50, anchors), unit(50, anchors)
        both = scale * images @ texts.transpose(0, 2, 1)  # (50, n, n)
        each = []
        for logits, features in ((both, images), (both.transpose(0, 2, 1), texts)):
            full = np.concatenate([logits, scale * features @ unit(50, bank).transpose(0, 2, 1)], axis=2)
            lse = np.log(np.exp(full - full.max(2, keepdims=True)).sum(2)) + full.max(2)
            each.append((lse - np.diagonal(logits, axis1=1, axis2=2)).mean(1))
        losses += ((each[0] + each[1]) / 2).tolist()
    return float(np.mean(losses)), float(np.std(losses))


@pytest.mark.parametrize(("scale", "level"), [("14.24", (1.52, 5.10)), ("100", (4.75, 12.1))])
def test_the_reported_run(scale: str, level: tuple[float, float]) -> None:
    result = plan(scale=scale)
    off, full = (phases(result)[f"region bank {name}"] for name in ("off", "full"))
    assert (off.candidates, full.candidates) == (4, 132)
    assert (off.chance, full.chance) == (math.log(4), math.log(132))
    assert (off.null, full.null) == (pytest.approx(level[0], abs=0.03), pytest.approx(level[1], abs=0.03))
    for phase in (off, full):
        mean, deviation = simulated(4, int(phase.candidates), float(scale))
        assert phase.null == pytest.approx(mean, abs=4 * deviation / math.sqrt(1000))
        assert phase.noise_forward == pytest.approx(deviation, rel=0.08)
        assert phase.noise_step == pytest.approx(phase.noise_forward / math.sqrt(8))


def test_what_the_jump_and_the_old_level_mean() -> None:
    bank = plan().bank
    assert bank is not None
    assert bank.candidates_shift == pytest.approx(3.5, abs=0.01)
    assert bank.null_shift == pytest.approx(bank.candidates_shift, abs=0.1)
    assert bank.bits_of_old_null == pytest.approx(5.2, abs=0.1)
    at_cap = plan(scale="100")
    assert {name: phase.null_at_cap for name, phase in phases(plan()).items()} == {
        name: phase.null for name, phase in phases(at_cap).items()
    }


def test_the_warmup_in_both_clocks_when_none_is_said() -> None:
    bank = plan().bank
    assert bank is not None
    assert [(one.clock, one.on_step, one.on_forward, one.full_step, one.full_forward) for one in bank.switches] == [
        ("step", 50, 400, 54, 432),
        ("forward", 6.25, 50, 10.25, 82),
    ]
    assert any("which clock" in note for note in plan().notes)
    for clock in ("step", "forward"):
        said = plan(bank_clock=clock)
        assert said.bank is not None
        assert [one.clock for one in said.bank.switches] == [clock]
        assert not any("which clock" in note for note in said.notes)
    same = plan(accumulation=None).bank
    assert same is not None
    assert len(same.switches) == 1  # a forward is a step


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"max_steps": "50", "bank_clock": "step"}, "never switches on"),
        ({"max_steps": "51", "bank_clock": "step"}, "never full"),
        ({"max_steps": "54", "bank_clock": "step"}, None),
        ({"max_steps": "50"}, "never switches on if its warmup is counted in steps"),
        ({"warmup_steps": "240"}, "the peak is never reached"),
        ({"warmup_steps": "239"}, None),
        ({"dataset_size": "3"}, "larger than the 3 samples"),
        ({"dataset_size": "4"}, None),
        ({"scale": "2.6592"}, "exp(2.6592) = 14.28"),
        ({"scale": "102"}, "above CLIP's cap"),
        ({"scale": "100"}, None),
        ({"bank_enabled": "false"}, "the memory bank is off"),
        ({"world_size": "2"}, "all 2 ranks"),
        ({"micro_batch": "1", "bank_size": None, "bank_warmup": None}, "single candidate"),
    ],
)
def test_notes_on_what_contradicts_itself(changes: dict[str, str], expected: str | None) -> None:
    usual = {note for note in plan().notes if "accumulation" in note or "which clock" in note}
    extra = [note for note in plan(**changes).notes if note not in usual]
    assert len(usual) == 2
    if expected is None:
        assert not extra
    else:
        assert any(expected in note for note in extra), extra


def test_candidates_follow_regions_ranks_and_what_is_stated() -> None:
    def counts(**changes: str) -> dict[str, float]:
        return {name: phase.candidates for name, phase in phases(plan(**changes)).items()}

    usual = {"global": 4, "region bank off": 4, "region bank full": 132, "hard": 11}
    assert counts() == usual
    assert counts(regions_per_sample="1.05") == usual | {"region bank off": 4.2, "region bank full": 132.2}
    assert counts(world_size="2") == usual | {"global": 8, "region bank off": 8, "region bank full": 136}
    assert counts(candidates__region="132") == usual
    assert counts(candidates__region="6") == usual | {"region bank off": 6, "region bank full": 134}
    assert counts(bank_enabled="false") == {"global": 4, "region": 4, "hard": 11}
    assert counts(candidates__hard="5") == usual | {"hard": 5}
    between = phases(plan(regions_per_sample="1.05"))["region bank off"].null
    assert phases(plan())["region bank off"].null < between < phases(plan(micro_batch="5"))["global"].null


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"scale": None, "dimension": None}, "not known: scale (.*), dimension (.*); state each with --fact"),
        ({"micro_batch": None}, "not known: micro_batch"),
        ({"micro_batch": "many"}, "--fact: micro_batch: micro_batch must be a number from 1 to 1e[+]07, not 'many'"),
        ({"micro_batch": "0"}, "must be a number from 1"),
        ({"scale": "inf"}, "scale must be a number"),
        ({"scale": "nan"}, "scale must be a number"),
        ({"dimension": "true"}, "dimension must be a number"),
        ({"bank_clock": "sundial"}, "bank_clock must be step or forward, not 'sundial'"),
        ({"loss_kind": "sigmoid"}, "sigmoid loss"),
        ({"batch_size": "4"}, "--fact: batch_size: there is no such fact"),
    ],
)
def test_facts_that_are_missing_or_impossible(changes: dict[str, str | None], complaint: str) -> None:
    with pytest.raises(Missing, match=complaint):
        plan(**changes)


def test_training_args_and_configurations_are_enough(tmp_path: Path) -> None:
    arguments = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 8,
        "max_steps": 240,
        "memory_bank_size": 128,
        "memory_bank_warmup_steps": 50,
    }
    torch.save(arguments, tmp_path / "training_args.bin")
    (tmp_path / "config.json").write_text(
        json.dumps({"logit_scale_init_value": math.log(14.24), "projection_dim": 512})
    )
    read = plan(tmp_path)
    assert [phase.candidates for phase in phases(read).values()] == [4, 4, 132, 11]
    assert phases(read)["global"].null == pytest.approx(phases(plan())["global"].null)
    alone = plan(tmp_path / "training_args.bin", scale="14.24", dimension="512")
    assert (alone.terms, alone.bank) == (plan().terms, plan().bank)
    with pytest.raises(Missing, match="scale"):
        plan(tmp_path / "training_args.bin")


def test_settings_of_train_are_enough(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(
        "micro_batch = 8\nregions_per_scene = 1.5\n[model]\nuse_memory_bank = true\nmemory_bank_size = 60\n"
    )
    result = plan(file)
    assert {name: phase.candidates for name, phase in phases(result).items()} == {
        "global": 8,
        "region bank off": 12,
        "region bank full": 72,
        "hard": 11,
    }
    assert result.bank is not None
    assert result.bank.switches[0].full_step == 5
    assert phases(plan(file, micro_batch="2"))["global"].candidates == 2
    file.write_text("micro_batch = 8\nmax_step = 3\n")
    with pytest.raises(SettingsError, match=r"settings.toml: unknown setting 'max_step'; did you mean max_steps"):
        plan(file)


def test_settings_whose_base_is_elsewhere_are_enough_too(tmp_path: Path) -> None:
    """As where they are committed, and checked before a commit."""
    (tmp_path / "train.toml").write_text('base = "openai-clip/"\nmicro_batch = 4\n')
    run = forecast.read(tmp_path / "train.toml", {})
    assert run.notes == ["openai-clip, the base, isn't here, so its scales are those of the settings"]
    assert forecast.forecast(run).terms


def test_settings_with_rates_for_each_part_are_no_nonsense(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text("micro_batch = 4\ntext_learning_rate = 2e-6\nscale_learning_rate = 1e-4\n")
    assert plan(path).facts["micro_batch"] == 4


def test_nothing_to_read_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="absent"):
        plan(tmp_path / "absent")


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["forecast", *arguments])
    return result.exit_code, result.stdout, result.stderr


def facts(**changes: str) -> list[str]:
    return [part for name, value in {**REPORTED, **changes}.items() for part in ("--fact", f"{name}={value}")]


def test_the_command_prints_a_table() -> None:
    code, out, err = run(*facts())
    assert (code, err) == (0, "")
    row = next(line for line in out.splitlines() if line.startswith("region, bank full"))
    assert row.split()[3:7] == ["4", "132", "4.88", "14.24"]
    assert "on after step 6.25 (forward 50)" in out
    assert "ln(132/4) = 3.50" in out


def test_the_command_prints_json() -> None:
    code, out, _ = run(*facts(), "--format", "json")
    document = json.loads(out)
    assert code == 0
    assert document["schema_version"] == 1
    assert document["assumed"] == {"world_size": 1, "regions_per_sample": 1}
    assert [term["name"] for term in document["terms"]] == ["global", "region", "hard"]
    assert document["bank"]["switches"][1]["on_step"] == 6.25


@pytest.mark.parametrize("arguments", [[], ["absent"], ["--fact", "broken"], facts(scale="-3"), ["--fact", "x\x1b=1"]])
def test_the_command_fails_in_one_clear_line(arguments: list[str]) -> None:
    code, out, err = run(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "\x1b" not in err


def test_the_command_imports_no_torch() -> None:
    barred = "{'torch', 'pandas', 'matplotlib', 'transformers', 'tensorboard', 'rich.console'}"
    assert loaded(["forecast", *facts()], barred) == "set()"
