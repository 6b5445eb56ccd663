"""Two ranks, under torchrun, that train with each of the faults between ranks: python -m this BASE OUT."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from fgclip_doctor.core.config import FgclipConfig
from fgclip_doctor.core.ranks import rank
from fgclip_doctor.training.distributed import torchrun
from fgclip_doctor.training.faults import FAULTS, Subject
from fgclip_doctor.training.loop import train
from fgclip_doctor.training.settings import TrainConfig

BETWEEN_RANKS = (
    "bank-of-each-rank",
    "gather-without-gradient",
    "labels-not-offset",
    "negatives-of-each-rank",
    "ranks-diverge",
)


def found(base: Path, out: Path, *faults: str) -> dict[str, Any]:
    """What this rank sees of a run of two steps: its log is the same on all ranks, its weights should be."""
    subjects: list[Subject] = []
    FAULTS["witness"] = subjects.append
    entries: list[dict[str, float]] = []
    config = TrainConfig(
        output_dir=out / "-".join(("run", *faults)),
        model=FgclipConfig.preset("tiny", use_memory_bank=True, memory_bank_size=99),
        base=base,
        max_steps=2,
        micro_batch=2,
        scenes=64,
        learning_rate=1e-4,
        warmup_steps=0,
        faults=(*faults, "witness"),
    )
    train(config, on_step=entries.append)
    model = subjects[0].model
    seen: dict[str, Any] = {
        "weight": model.visual_projection.weight.detach(),
        "pointer": subjects[0].bank.queue_ptr.item(),
    }
    return seen | (entries[0] if entries else {})


def main(base: Path, out: Path) -> None:
    torch.set_num_threads(1)
    with torchrun():
        outcomes = {"healthy": found(base, out)} | {name: found(base, out, name) for name in BETWEEN_RANKS}
        torch.save(outcomes, out / f"found-{rank()}.pt")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
