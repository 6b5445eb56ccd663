from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

from fgclip_doctor.run import Fact, Source
from fgclip_doctor.sources import trainer
from fgclip_doctor.sources.checkpoint import read_directory
from tests import runs

NESTED = {"bank_size": 64, "bank_enabled": True, "bank_warmup": 16}


def values(mapping: dict[str, object]) -> dict[str, object]:
    found: dict[str, object] = {}
    for fact in trainer.facts(mapping, "args"):
        found.setdefault(fact.name, fact.value)
    return found


def test_training_arguments_are_read_without_their_class(tmp_path: Path) -> None:
    import torch

    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=8,
        warmup_steps=50,
        learning_rate=5e-6,
        weight_decay=0.05,
        max_grad_norm=0.0,
        lr_scheduler_type="cosine",
        label_smoothing_factor=0.1,
        num_train_epochs=3,
        use_cpu=True,
        report_to=[],
    )
    arguments.memory_bank_warmup_steps = 50
    arguments.use_memory_bank = False
    torch.save(arguments, tmp_path / "training_args.bin")
    (tmp_path / "trainer_state.json").write_text(json.dumps({"global_step": 240, "max_steps": 1000, "log_history": []}))
    facts = {}
    for fact in read_directory(tmp_path).facts:
        facts.setdefault(fact.name, fact)
    expected = {
        "micro_batch": 4,
        "accumulation": 8,
        "warmup_steps": 50,
        "learning_rate": 5e-6,
        "weight_decay": 0.05,
        "max_grad_norm": 0.0,
        "schedule": "cosine",
        "label_smoothing": 0.1,
        "num_epochs": 3,
        "bf16": False,
        "bank_warmup": 50,
        "bank_enabled": False,
        "max_steps": 1000,  # -1 in the arguments
        "global_step": 240,
    }
    assert {name: facts[name].value for name in expected} == expected
    assert str(facts["accumulation"].source) == f"{tmp_path}/training_args.bin: gradient_accumulation_steps"
    assert str(facts["max_steps"].source) == f"{tmp_path}/trainer_state.json: max_steps"


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        ({"warmup_steps": 50}, {"warmup_steps": 50}),
        ({"warmup_steps": 0.1}, {"warmup_ratio": 0.1}),  # transformers 5
        ({"warmup_steps": 0, "warmup_ratio": 0.1}, {"warmup_ratio": 0.1}),
        ({"warmup_steps": 0, "warmup_ratio": None}, {"warmup_steps": 0}),
        ({"warmup_steps": 10, "warmup_ratio": 0.0}, {"warmup_steps": 10, "warmup_ratio": 0.0}),
        ({"max_steps": -1, "num_train_epochs": -1}, {}),
        ({"steps": 150}, {"max_steps": 150}),
        ({"num_steps": 400, "total_steps": 300}, {"max_steps": 300}),
        ({"steps": 3}, {}),  # a count that goes on
        ({"steps": 100, "epochs": 10}, {"num_epochs": 10}),  # of an epoch
        (
            {"batch_size": 32, "accum_freq": 2, "lr": 1e-3},
            {"micro_batch": 32, "accumulation": 2, "learning_rate": 1e-3},
        ),
        ({"learning_rate": math.nan, "bf16": "yes", "max_steps": True}, {}),
        ({"queue_size": 65536}, {"bank_size": 65536}),
        ({"xbm_start_iter": 1000}, {"bank_warmup": 1000}),
        ({"stash_from_update": 20}, {"bank_warmup": 20, "bank_clock": "step"}),
        ({"dict_warmup_updates": 45, "pool_start": 3, "buffer_size": 9}, {"bank_warmup": 45, "bank_clock": "step"}),
        ({"epochs": 5, "steps_per_epoch": 30}, {"num_epochs": 5, "max_steps": 150}),
        ({"bank_warmup_forwards": 400}, {"bank_warmup": 400, "bank_clock": "forward"}),
        ({"memory_bank_clock": "optimizer_step"}, {"bank_clock": "step"}),
        ({"enable_queue": True, "memory_bank_size": 0}, {"bank_enabled": True}),
        ({"queue_size": math.inf, "lr": 10**400, "warmup_steps": math.nan, "bank_start": math.inf}, {}),
        ({"embedding_size": 5, "banking": 3}, {}),
        ({"memory_bank": {"size": 64, "enabled": True, "warmup_steps": 16}, "vision_config": {"size": 3}}, NESTED),
        ({"model": {"queue": {"length": 64, "start_iter": 9}}}, {"bank_size": 64, "bank_warmup": 9}),
    ],
)
def test_facts(mapping: dict[str, object], expected: dict[str, object]) -> None:
    assert values(mapping) == expected


def test_a_warmup_share_of_a_known_run_is_a_number_of_steps() -> None:
    known = {fact.name: fact for fact in trainer.facts({"warmup_steps": 0.03, "max_steps": 150}, "args")}
    (fact,) = trainer.derived(known)
    assert (fact.name, fact.value) == ("warmup_steps", 5)  # ceil, as the Trainer does


EPOCH = {"dataset_size": 3200, "steps_per_epoch": 100.0}


@pytest.mark.parametrize(
    ("logged", "known", "expected"),
    [
        ({"batch_size": [32.0] * 9}, {}, {"micro_batch": 32}),
        ({"train/micro_batch": [8.0] * 9, "accumulation": [4.0] * 9}, {}, {"micro_batch": 8, "accumulation": 4}),
        ({"batch_size": [32.0] * 9}, EPOCH, {"micro_batch": 32}),
        ({"batch_size": [64.0] * 9}, EPOCH, {}),  # 50 steps an epoch
        ({"batch_size": [32.0] * 9}, {"accumulation": 4}, {}),  # of a forward, or of a step
        ({"per_device_train_batch_size": [32.0] * 9}, {"accumulation": 4}, {"micro_batch": 32}),
        ({"batch_size": [32.0] * 8 + [7.0]}, {}, {}),
        ({"batch_size": [32.5] * 9}, {}, {}),
        ({"batch_size": [32.0] * 2}, {}, {}),
        ({"batch_size": [float("nan")] * 9}, {}, {}),
        ({"val/batch_size": [32.0] * 9}, {}, {}),
        ({"batch_size": [32.0] * 9}, {"micro_batch": 16}, {}),
    ],
)
def test_what_a_log_gives_with_every_record(
    logged: dict[str, list[float]], known: dict[str, float], expected: dict[str, int]
) -> None:
    series = {name: runs.series(name, values) for name, values in logged.items()}
    facts = {name: Fact(name, value, Source("config.json")) for name, value in known.items()}
    assert {fact.name: fact.value for fact in trainer.logged(series, facts)} == expected


def test_log_history_becomes_series() -> None:
    history = [
        {"step": 1, "epoch": 0.1, "loss": 2.0, "grad_norm": math.nan},
        {"step": 2, "epoch": 0.2, "loss": 1.5, "grad_norm": "Infinity", "note": "late"},
        {"step": 2, "eval_loss": 3},
        {"loss": 9.0},
        "not an entry",
        {"step": True, "loss": 9.0},
        {"step": 3, "loss": [1]},
    ]
    series = trainer.series(history, "trainer_state.json")
    assert list(series) == ["loss", "grad_norm", "eval_loss"]
    assert series["loss"].steps.tolist() == [1, 2]
    assert series["loss"].values.tolist() == [2.0, 1.5]
    assert math.isnan(series["grad_norm"].values[0])
    assert series["grad_norm"].values[1] == math.inf
    assert str(series["loss"].source) == "trainer_state.json: log_history.loss"
    assert trainer.series(None, "trainer_state.json") == {}


@pytest.mark.parametrize(("max_steps", "epochs"), [(60, 15), (-1, 3)])
def test_the_epochs_that_max_steps_overrides_say_nothing(tmp_path: Path, max_steps: int, epochs: int) -> None:
    torch.save({"max_steps": max_steps, "num_train_epochs": 3}, tmp_path / "training_args.bin")
    (tmp_path / "trainer_state.json").write_text(json.dumps({"max_steps": 60, "num_train_epochs": 15}))
    facts = [fact for fact in read_directory(tmp_path).facts if fact.name == "num_epochs"]
    assert facts[0].value == epochs


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        (
            {"learning_rate": 1e-4, "text_model_lr": 2e-6, "lr_head": 1e-3, "logit_scale_learning_rate": 1e-5},
            {"text_model_lr": 2e-6, "lr_head": 1e-3, "logit_scale_learning_rate": 1e-5},
        ),
        ({"text_min_lr": 1e-7, "warmup_lr_head": 1e-6, "text_lr": None, "text_clr": 1.0, "min_lr": 1e-8}, {}),
    ],
)
def test_learning_rates_of_parts(mapping: dict[str, object], expected: dict[str, float]) -> None:
    found = {fact.name: fact.value for fact in trainer.facts(mapping, "args")}
    parts = {name.partition(".")[2]: rate for name, rate in found.items() if name.startswith("learning_rate.")}
    assert parts == expected


def test_gradient_checkpointing() -> None:
    mapping = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    found = {fact.name: fact.value for fact in trainer.facts(mapping, "args")}
    assert (found["gradient_checkpointing"], found["reentrant"]) == (True, False)


def test_each_checkpoint_keeps_what_was_configured(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"vision_config": {"hidden_act": "gelu"}}')
    assert read_directory(tmp_path).checkpoint().facts["hidden_act"].value == "gelu"
