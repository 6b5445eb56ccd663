"""Each planted fault leaves the trace that it leaves in real runs, and only where it was planted."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fgclip_doctor.core import pretrained
from fgclip_doctor.core.config import LOGIT_SCALE_CAP, LOGIT_SCALE_FROM_SCRATCH, FgclipConfig
from fgclip_doctor.training.checkpointing import latest
from fgclip_doctor.training.faults import FAULTS
from fgclip_doctor.training.loop import train
from fgclip_doctor.training.settings import TrainConfig
from tests.training.faulty_ranks import BETWEEN_RANKS

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import faults_table  # noqa: E402

STEPS, ACCUMULATION, BANK_SIZE, KEPT = 8, 2, 21, 20
PAIRS = 4 * 2 * ACCUMULATION  # images, regions of each, micro-batches: what a step enqueues
WEIGHTS = (("global", 1.0), ("global_short", 1.0), ("region", 0.1), ("hard", 0.5))
HEAD = "roi_projection.weight"
FIRST_LAYER = "vision_model.encoder.layers.0.self_attn.v_proj"
LONG_POSITIONS = "text_model.embeddings.position_embedding_res.weight"


@dataclass
class Left:
    """What a run left behind."""

    base: dict[str, Tensor]
    config: dict[str, Any]
    weights: dict[str, Tensor]
    groups: list[dict[str, Any]]
    states: dict[str, dict[str, Tensor]]
    schedule: dict[str, Any]
    history: list[dict[str, float]]

    def column_norms(self) -> Tensor:
        return self.weights["region_image_queue"].float().norm(dim=0)

    def group_of(self, name: str) -> dict[str, Any]:
        return next(group for group in self.groups if name in group["param_names"])

    def mean(self, name: str) -> float:
        return mean(entry[name] for entry in self.history)

    def moments_norm(self) -> float:
        return math.hypot(*(state["exp_avg"].norm().item() for state in self.states.values()))

    def ratio_of_total(self) -> float:
        """The logged total over the weighted sum of the logged terms."""
        entry = self.history[0]
        return entry["loss"] / sum(weight * entry[f"loss_{name}"] for name, weight in WEIGHTS)


def left_in(directory: Path, base: Path) -> Left:
    directory = latest(directory)
    optimizer = torch.load(directory / "optimizer.pt", weights_only=True)
    names = [name for group in optimizer["param_groups"] for name in group["param_names"]]
    return Left(
        base=pretrained.read(latest(base)),
        config=json.loads((directory / "config.json").read_text()),
        weights=pretrained.read(directory),
        groups=optimizer["param_groups"],
        states={names[index]: state for index, state in optimizer["state"].items()},
        schedule=torch.load(directory / "scheduler.pt", weights_only=True),
        history=json.loads((directory / "trainer_state.json").read_text())["log_history"],
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained until it tells its 64 images apart, so that a fault of the data can be told from what it has to learn."""
    return train(
        TrainConfig(
            output_dir=tmp_path_factory.mktemp("base"),
            model=FgclipConfig.preset("tiny", logit_scale_init_value=3.0),
            max_steps=60,
            scenes=64,
            learning_rate=2e-3,
            warmup_steps=5,
            schedule="constant",
        )
    )


def settings(base: Path, directory: Path, *faults: str, resume: bool = False) -> TrainConfig:
    model = FgclipConfig.preset(
        "tiny", roi_projection=True, use_memory_bank=True, memory_bank_size=BANK_SIZE, memory_bank_warmup_steps=4
    )
    return TrainConfig(
        output_dir=directory,
        model=model,
        base=base,
        resume=resume,
        max_steps=STEPS,
        micro_batch=4,
        accumulation=ACCUMULATION,
        scenes=64,
        learning_rate=1e-4,
        text_learning_rate=5e-5,
        warmup_steps=1,
        save_steps=STEPS // 2,
        faults=faults,
    )


@pytest.fixture(scope="module")
def healthy_run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(settings(base, tmp_path_factory.mktemp("healthy")))


@pytest.fixture(scope="module")
def healthy(base: Path, healthy_run: Path) -> Left:
    return left_in(healthy_run, base)


TRACES: dict[str, Callable[[Left], bool]] = {
    "bank-never-enabled": lambda left: (
        left.weights["queue_ptr"].item() == 0
        and not left.weights["queue_is_full"].item()
        and torch.allclose(left.column_norms(), torch.ones(BANK_SIZE))
        and all(entry["candidates_region"] == 8 for entry in left.history)
    ),
    "bank-holds-noise": lambda left: (
        left.weights["queue_ptr"].item() == 0 and left.history[-1]["candidates_region"] == 8 + BANK_SIZE
    ),
    "bank-rows-not-unit": lambda left: bool((left.column_norms() > 7.9).all()),
    "bank-not-saved": lambda left: not any("queue" in name for name in left.weights),
    "warmup-in-forwards": lambda left: [entry["bank_rows"] > 0 for entry in left.history[:3]] == [False, False, True],
    "scale-from-scratch": lambda left: abs(left.history[0]["logit_scale"] - LOGIT_SCALE_FROM_SCRATCH) < 1e-3,
    "scale-above-cap": lambda left: left.history[-1]["logit_scale"] > LOGIT_SCALE_CAP + 0.1,
    "scale-decayed": lambda left: left.group_of("logit_scale")["weight_decay"] > 0,
    "head-detached": lambda left: HEAD not in left.states and HEAD in left.group_of(HEAD)["param_names"],
    "head-left-at-init": lambda left: (
        not torch.allclose(left.weights[HEAD], left.weights["visual_projection.weight"], atol=0.01)
    ),
    "head-frozen": lambda left: not any(HEAD in group["param_names"] for group in left.groups),
    "head-not-in-optimizer": lambda left: not any(HEAD in group["param_names"] for group in left.groups),
    "pure-bf16": lambda left: (
        left.weights[HEAD].dtype == torch.bfloat16 and left.states[HEAD]["exp_avg"].dtype == torch.bfloat16
    ),
    "attention-left-at-init": lambda left: (  # biases start at 0, and no step is longer than the learning rate
        left.weights[f"{FIRST_LAYER}.bias"].abs().max().item() < STEPS * 1e-4
    ),
    "projection-transposed": lambda left: torch.allclose(
        left.weights["text_projection.weight"], left.base["text_projection.weight"].T, atol=0.002
    ),
    "bank-pointer-not-saved": lambda left: "region_image_queue" in left.weights and "queue_ptr" not in left.weights,
    "bank-tail-dropped": lambda left: left.weights["queue_ptr"].item() != STEPS // 2 * PAIRS % BANK_SIZE,
    "bank-own-captions": lambda left: (
        left.history[-1]["candidates_region"] == 8 + BANK_SIZE and left.history[4]["candidates_region"] == 8 + PAIRS / 4
    ),
    "bank-enqueued-first": lambda left: (
        left.history[4]["candidates_region"] == 8 + 3 / 4 * PAIRS
        and all(entry["loss_region"] > math.log(2) for entry in left.history[4:])
    ),
    "scale-of-one": lambda left: abs(left.history[0]["logit_scale"] - 1) < 1e-3,
    "scale-saved-raw": lambda left: (
        abs(left.weights["logit_scale"].item() - math.exp(left.history[-1]["logit_scale"])) < 1e-4
    ),
    "head-learning-rate-zero": lambda left: (
        left.group_of(HEAD)["initial_lr"] == 0
        and torch.equal(left.weights[HEAD], left.base["visual_projection.weight"])
    ),
    "checkpointing-cuts-gradients": lambda left: (
        f"{FIRST_LAYER}.weight" not in left.states
        and f"{FIRST_LAYER}.weight" in left.group_of(f"{FIRST_LAYER}.weight")["param_names"]
        and f"{FIRST_LAYER}.weight".replace("layers.0", "layers.2") in left.states
    ),
    "evaluation-mode": lambda left: left.weights["training_steps"].item() == left.weights["queue_ptr"].item() == 0,
    "positions-left-at-init": lambda left: (
        F.cosine_similarity(left.weights[LONG_POSITIONS][KEPT:-1], left.weights[LONG_POSITIONS][KEPT + 1 :]).mean()
        < 0.2
    ),
    "trained-weights-overwritten": lambda left: torch.allclose(
        left.weights["text_filip_projection.weight"], left.base["text_projection.weight"], atol=STEPS * 1e-4
    ),
    "activation-mismatch": lambda left: left.config["vision_config"]["hidden_act"] == "gelu",
    "texts-pooled-at-start": lambda left: left.mean("loss_hard") == pytest.approx(math.log(11), abs=1e-4),
    "captions-of-others": lambda left: left.mean("accuracy_global") < 1 / 4,
    "captions-repeated": lambda left: left.mean("loss_global") < 0.5 < math.log(2) < left.mean("loss_global_short"),
    "negatives-misaligned": lambda left: left.mean("loss_region") < 1 and left.mean("loss_hard") > math.log(11),
    "negatives-removed": lambda left: all(entry["anchors_hard"] == 0 for entry in left.history),
    "boxes-of-unflipped-image": lambda left: left.mean("loss_global") < 0.5 and left.mean("loss_region") > math.log(8),
    "boxes-as-sizes": lambda left: left.mean("loss_global") < 0.5 and left.mean("loss_region") > math.log(8),
    "images-replaced-by-black": lambda left: left.mean("accuracy_global") <= 3 / 4,  # three images of four are there
    "loss-not-divided": lambda left: left.ratio_of_total() == pytest.approx(ACCUMULATION, rel=1e-5),
    "loss-divided-twice": lambda left: left.ratio_of_total() == pytest.approx(1 / ACCUMULATION, rel=1e-5),
    "term-constant": lambda left: "logit_scale_hardneg" not in left.states and left.mean("loss_hard") > 0,
    "terms-swallowed": lambda left: (
        ["loss_region" in entry for entry in left.history] == [True, True, False, False] * 2
    ),
    "nan-hidden": lambda left: (
        left.history[-1]["loss"] == 0
        and math.isnan(left.history[-1]["grad_norm"])
        and bool(left.weights["logit_scale"].isnan())
    ),
    "pure-fp16": lambda left: (
        left.weights[HEAD].dtype == left.states[HEAD]["exp_avg_sq"].dtype == torch.float16
        and bool((left.states[HEAD]["exp_avg_sq"] == 0).any())
    ),
    "optimizer-defaults": lambda left: all(group["betas"] == (0.9, 0.999) for group in left.groups),
    "everything-decayed": lambda left: left.group_of("vision_model.post_layernorm.weight")["weight_decay"] > 0,
    "rates-ignored": lambda left: all(group["initial_lr"] == 1e-4 for group in left.groups),
    "clipping-off": lambda left: left.moments_norm() > 1,  # a mean of gradients of norm 1 at most is no longer
    "schedule-in-micro-batches": lambda left: left.schedule["last_epoch"] == STEPS * ACCUMULATION,
}

BESIDE_HEALTHY: dict[str, Callable[[Left, Left], bool]] = {  # of no absolute size
    "logits-in-bf16": lambda left, healthy: (
        1e-4 < abs(left.history[0]["loss_hard"] - healthy.history[0]["loss_hard"]) < 0.1
    ),
}

AFTER_RESUME: dict[str, Callable[[Left], bool]] = {
    "scale-reset-at-start": lambda left: (
        abs(left.history[4]["logit_scale_hardneg"] - left.history[4]["logit_scale"]) < 3e-4
    ),
    "optimizer-not-resumed": lambda left: left.states["logit_scale"]["step"].item() == STEPS // 2,
    "schedule-not-resumed": lambda left: left.schedule["last_epoch"] == STEPS // 2,
}

OnRanks = dict[str, list[dict[str, Any]]]  # by fault and rank, what `faulty_ranks` found

ON_RANKS: dict[str, Callable[[OnRanks, str], bool]] = {
    "bank-of-each-rank": lambda runs, name: runs[name][0]["pointer"] * 2 == runs["healthy"][0]["pointer"],
    "gather-without-gradient": lambda runs, name: (
        runs[name][0]["loss"] == pytest.approx(runs["healthy"][0]["loss"], rel=1e-4)
        and runs[name][0]["grad_norm"] < 0.95 * runs["healthy"][0]["grad_norm"]
    ),
    "labels-not-offset": lambda runs, name: (  # the first rank is right, and the second wrong
        runs[name][0]["accuracy_global"] == runs["healthy"][0]["accuracy_global"] / 2
    ),
    "negatives-of-each-rank": lambda runs, name: (
        runs[name][0]["candidates_global"] * 2 == runs["healthy"][0]["candidates_global"]
    ),
    "ranks-diverge": lambda runs, name: not torch.equal(runs[name][0]["weight"], runs[name][1]["weight"]),
}


def test_every_fault_has_its_trace() -> None:
    assert TRACES.keys() | BESIDE_HEALTHY.keys() | AFTER_RESUME.keys() | ON_RANKS.keys() == FAULTS.keys()
    assert set(BETWEEN_RANKS) == ON_RANKS.keys()


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # the warning of that very fault
@pytest.mark.parametrize("name", TRACES)
def test_a_fault_leaves_its_trace(name: str, base: Path, healthy: Left, tmp_path: Path) -> None:
    assert TRACES[name](left_in(train(settings(base, tmp_path, name)), base))
    assert not TRACES[name](healthy)


@pytest.mark.parametrize("name", BESIDE_HEALTHY)
def test_a_fault_leaves_its_trace_beside_a_healthy_run(name: str, base: Path, healthy: Left, tmp_path: Path) -> None:
    assert BESIDE_HEALTHY[name](left_in(train(settings(base, tmp_path, name)), base), healthy)
    assert not BESIDE_HEALTHY[name](healthy, healthy)


@pytest.mark.parametrize("name", AFTER_RESUME)
def test_a_fault_of_resuming_leaves_its_trace(
    name: str, base: Path, healthy: Left, healthy_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "checkpoint-4").symlink_to(healthy_run / "checkpoint-4")
    assert AFTER_RESUME[name](left_in(train(settings(base, tmp_path, name, resume=True)), base))
    assert not AFTER_RESUME[name](healthy)


@pytest.fixture(scope="module")
def on_ranks(base: Path, tmp_path_factory: pytest.TempPathFactory) -> OnRanks:
    directory = tmp_path_factory.mktemp("ranks")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "tests.training.faulty_ranks", str(base), str(directory)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "checks")])},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    found = [torch.load(directory / f"found-{rank}.pt", weights_only=True) for rank in (0, 1)]
    return {name: [of_rank[name] for of_rank in found] for name in found[0]}


@pytest.mark.parametrize("name", ON_RANKS)
def test_a_fault_between_ranks_leaves_its_trace(name: str, on_ranks: OnRanks) -> None:
    assert ON_RANKS[name](on_ranks, name)
    assert not ON_RANKS[name](on_ranks | {name: on_ranks["healthy"]}, name)


def test_faults_add_up(base: Path, tmp_path: Path) -> None:
    """Those that change the same method, batch or terms, too."""
    names = ("bank-rows-not-unit", "bank-tail-dropped", "negatives-removed", "loss-not-divided", "term-constant")
    left = left_in(train(settings(base, tmp_path, *names)), base)
    assert [TRACES[name](left) for name in names[:3]] == [True] * 3
    assert left.history[0]["loss"] == pytest.approx(
        ACCUMULATION * sum(left.history[0][f"loss_{name}"] * weight for name, weight in WEIGHTS if name != "hard"),
        rel=1e-5,
    )


@pytest.mark.parametrize(
    ("name", "message"), [("bank-never-enabled", "the model has none"), ("ranks-diverge", "there is one rank only")]
)
def test_a_fault_of_what_is_not_there_is_refused(name: str, message: str, tmp_path: Path) -> None:
    plain = TrainConfig(output_dir=tmp_path, model=FgclipConfig.preset("tiny"), faults=(name,))
    with pytest.raises(ValueError, match=message):
        train(plain)


def test_the_table_of_faults_is_current() -> None:
    text = faults_table.DOCUMENT.read_text("utf-8")
    assert faults_table.updated(text) == text, "run `make docs`"
