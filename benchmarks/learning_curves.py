"""Train from scratch on the synthetic scenes, sound and with the case study's faults, and draw every loss term.

Prints accuracy on unseen scenes beside chance, and the last region and hard losses beside their null levels. Usage:
learning_curves.py [--steps 200] [--svg docs/learning-curves.svg]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from math import exp, log
from pathlib import Path

import matplotlib as mpl
import torch

from fgclip_doctor import theory
from fgclip_doctor.core import pretrained
from fgclip_doctor.core.config import FgclipConfig
from fgclip_doctor.training.evaluation import Score, evaluate
from fgclip_doctor.training.loop import train
from fgclip_doctor.training.settings import TrainConfig
from fgclip_doctor.training.synthetic import Scenes, WordTokenizer

mpl.use("svg")
from matplotlib import pyplot as plt

BANK = {"use_memory_bank": True, "memory_bank_size": 128, "memory_bank_warmup_steps": 50}
RUNS: dict[str, tuple[dict[str, object], tuple[str, ...]]] = {
    "sound, no bank": ({}, ()),
    "sound, bank on at 50": (BANK, ()),
    "bank never enabled": (BANK, ("bank-never-enabled",)),
    "bank warmup in forwards": (BANK, ("warmup-in-forwards",)),
    "region head detached": ({"roi_projection": True}, ("head-detached",)),
    "parameters in bf16, lr 5e-6": ({}, ("pure-bf16",)),
}


def run(name: str, steps: int, directory: Path) -> tuple[list[dict[str, float]], Score, float]:
    """One training: its log, its score on unseen scenes, and its seconds."""
    model, faults = RUNS[name]
    config = TrainConfig(
        output_dir=directory,
        model=FgclipConfig.preset("tiny", **model),
        max_steps=steps,
        micro_batch=16,
        accumulation=2,
        learning_rate=5e-6 if "pure-bf16" in faults else 1e-3,
        save_steps=steps,
        faults=faults,
    )
    start = time.perf_counter()
    checkpoint = next(train(config).glob("checkpoint-*"))
    seconds = time.perf_counter() - start
    score = evaluate(pretrained.from_base(checkpoint, config.model).eval(), Scenes(200, seed=1), WordTokenizer())
    return json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))["log_history"], score, seconds


def null_level(entry: dict[str, float], term: str, width: int = 64) -> float:
    """Of unaligned features with the candidates and the scale of one log entry."""
    scale = exp(entry[{"region": "logit_scale_finegraind", "hard": "logit_scale_hardneg"}[term]])
    return theory.null(anchors=1, candidates=round(entry[f"candidates_{term}"]), scale=scale, dimension=width).level


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--svg", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    figure, axes = plt.subplots(2, len(RUNS), figsize=(3.2 * len(RUNS), 5), sharex=True, layout="constrained")
    print("accuracy on unseen scenes (chance), and the last region and hard loss beside ln N and the null level")
    for column, name in enumerate(RUNS):
        with tempfile.TemporaryDirectory() as directory:
            entries, score, seconds = run(name, chosen.steps, Path(directory))
        line = f"{name:28} {seconds:4.0f} s  image {score.image:.2f} ({score.image_chance:.3f})"
        line += (
            f"  region {score.region:.2f} ({score.region_chance:.3f})  hard {score.hard:.2f} ({score.hard_chance:.2f})"
        )
        for row, term in enumerate(("region", "hard")):
            shown = [entry for entry in entries if f"loss_{term}" in entry and entry[f"candidates_{term}"] >= 2]
            steps = [entry["step"] for entry in shown]
            chance = [log(entry[f"candidates_{term}"]) for entry in shown]
            nulls = [null_level(entry, term) for entry in shown]
            axis = axes[row][column]
            axis.fill_between(steps, chance, nulls, color="0.85", label="features that know nothing")
            axis.plot(steps, [entry[f"loss_{term}"] for entry in shown], linewidth=0.9, label=f"{term} loss")
            axis.set_title(name if row == 0 else "", fontsize=9)
            axis.set_ylim(bottom=0)
            line += f"  {term} {shown[-1][f'loss_{term}']:.2f} ({chance[-1]:.2f}, {nulls[-1]:.2f})"
        print(line, flush=True)
    axes[0][0].set_ylabel("region loss, nats")
    axes[1][0].set_ylabel("hard-negative loss, nats")
    axes[1][0].set_xlabel("optimizer step")
    axes[0][0].legend(fontsize=7)
    if chosen.svg:
        mpl.rcParams["svg.hashsalt"] = "fgclip-doctor"
        figure.savefig(chosen.svg, metadata={"Date": None})


if __name__ == "__main__":
    main()
