"""What test_distributed.py does in one process, and has two ranks do: `torchrun -m tests.training.two_ranks OUT`."""

from __future__ import annotations

import faulthandler
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fgclip_doctor.core.config import FgclipConfig
from fgclip_doctor.core.losses import Term, total
from fgclip_doctor.core.model import Batch, FgclipModel
from fgclip_doctor.core.ranks import rank, world_size
from fgclip_doctor.core.text import Texts
from fgclip_doctor.training.data import NEGATIVES, Sample, collate
from fgclip_doctor.training.distributed import averaged, exchange, replicated, torchrun
from fgclip_doctor.training.loop import train
from fgclip_doctor.training.settings import TrainConfig
from fgclip_doctor.training.synthetic import SIDE, Scenes, WordTokenizer

PASSES = 3  # forward passes of a case, each with other samples and followed by a step
MODEL = FgclipConfig.preset(
    "tiny", roi_projection=True, use_memory_bank=True, memory_bank_size=21, memory_bank_warmup_steps=1
)

# The numbers of regions of every sample, by rank
CASES: dict[str, tuple[list[int], list[int]]] = {
    "even": ([2, 2, 2], [2, 2, 2]),
    "regions-unequal": ([2, 2, 2], [0, 1, 0]),
    "regions-on-one-rank": ([0, 0, 0], [2, 1, 2]),
    "no-regions": ([0, 0], [0, 0]),
    "batch-uneven": ([2, 1, 2, 1], [2]),
    "nothing-on-one-rank": ([2, 1, 2], []),
}


def batches(name: str) -> list[list[Sample]]:
    """The samples of this rank, or of both ranks joined, for each pass."""
    shares = CASES[name]
    numbers = [*shares[0], *shares[1]]
    scenes = Scenes(PASSES * len(numbers), seed=2, regions=4)  # no caption twice in a pass: a tie has no certain winner
    own = slice(None) if world_size() == 1 else [slice(len(shares[0])), slice(len(shares[0]), None)][rank()]
    joined = [
        [with_regions(scenes[first + at], number) for at, number in enumerate(numbers)]
        for first in range(0, len(scenes), len(numbers))
    ]
    return [samples[own] for samples in joined]


def with_regions(sample: Sample, number: int) -> Sample:
    """The sample with no more than so many regions, of which the first has no hard negatives."""
    regions = sample.regions[:number]
    return replace(sample, regions=tuple(replace(one, negatives=()) for one in regions[:1]) + regions[1:])


def batch_of(samples: list[Sample]) -> Batch:
    return collate(samples, WordTokenizer()) if samples else EMPTY


EMPTY = Batch(
    pixel_values=torch.empty(0, 3, SIDE, SIDE),
    long_texts=Texts.of(torch.empty(0, 1, dtype=torch.long), WordTokenizer.eos_token_id),
    texts=Texts.of(torch.empty(0, 1, dtype=torch.long), WordTokenizer.eos_token_id),
    short_index=torch.empty(0, dtype=torch.long),
    boxes=torch.empty(0, 4),
    box_image=torch.empty(0, dtype=torch.long),
    boxes_per_image=0,
    region_index=torch.empty(0, dtype=torch.long),
    hard_box=torch.empty(0, dtype=torch.long),
    hard_index=torch.empty(0, 1 + NEGATIVES, dtype=torch.long),
)


def outcome(name: str) -> dict[str, Any]:
    """The terms and gradients of every pass of a case, and the model that its steps lead to."""
    torch.manual_seed(0)
    model = FgclipModel(MODEL).train()
    parallel = replicated(model, find_unused=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    terms, gradients = [], []
    for step, samples in enumerate(batches(name)):
        with exchange(parallel, now=True):
            found = parallel(batch_of(samples), step=step)
            torch.autograd.backward(total(found))
        terms.append({key: averaged(values_of(term)) for key, term in found.items()})
        gradients.append({key: parameter.grad for key, parameter in model.named_parameters()})
        optimizer.step()
        optimizer.zero_grad()
    return {"terms": terms, "gradients": gradients, "model": model.state_dict()}


def values_of(term: Term) -> dict[str, float]:
    found = {name: getattr(term, name) for name in ("candidates", "accuracy", "margin")}
    return {name: value.item() for name, value in found.items()} | {"loss": term.loss.item(), "anchors": term.anchors}


def run_settings(directory: Path, *, ranks: int, **changes: Any) -> TrainConfig:
    config = TrainConfig(
        output_dir=directory,
        model=MODEL,
        max_steps=6,
        micro_batch=4 // ranks,
        accumulation=2,
        scenes=30,  # the third epoch begins with the sixth step
        warmup_steps=2,
        save_steps=3,
        regions_per_scene=0.5,
    )
    return replace(config, **changes)


def main(out: Path) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(100, exit=True)  # says where a rank hangs
    with torchrun():
        torch.save({name: outcome(name) for name in CASES}, out / f"outcomes-{rank()}.pt")
        train(run_settings(out / "whole", ranks=2))
        if rank() == 0:
            (out / "resumed").mkdir()
            (out / "resumed" / "checkpoint-3").symlink_to(out / "whole" / "checkpoint-3")
        torch.distributed.barrier()
        train(run_settings(out / "resumed", ranks=2, resume=True))
        train(run_settings(out / "faulty", ranks=2, faults=("head-detached",), max_steps=3))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
