"""What watching costs a training: the same steps with and without it, in turn, as a ratio of their times.

    python benchmarks/watch_overhead.py [--device cuda] [--model toy|core|tiny|vit] [--pairs 20] [--peer torch-audit]

Each pair runs one block of steps unwatched and one watched, in alternating order, on the same model. "start" are the
first steps of a run, of which many are looked at; "run" the first quarter of a minute of it, or less; "later" those
after step 1,000, most of which are not looked at; "between" the same without any look. On a GPU the profiler counts the
synchronisations of both, and they have to be as many. With a peer, its blocks take turns with ours at the start of a
run, and it has to be installed (without torch of its own).
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from fgclip_doctor.core.config import FgclipConfig
from fgclip_doctor.core.losses import total
from fgclip_doctor.core.model import FgclipModel
from fgclip_doctor.live.recorder import Recorder
from fgclip_doctor.training.data import collate
from fgclip_doctor.training.synthetic import Scenes, WordTokenizer

Step = Callable[[], None]
LATER = 1000
# steps of a block: at the start, a short run from its start on, later, and between looks
BLOCKS = {
    "toy": (60, 10_000, 3000, 1000),
    "core": (60, 600, 60, 20),
    "tiny": (60, 400, 100, 40),
    "vit": (60, 200, 20, 10),
}
STAGES = ("start", "run", "later", "between")


class Towers(nn.Module):
    """Two linear towers: a step of half a millisecond, in which nothing hides what watching costs."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        logits = 10 * F.normalize(self.image(images)) @ F.normalize(self.text(texts)).T
        return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


class Clip(nn.Module):
    """transformers' CLIP, which computes its own loss."""

    def __init__(self, tiny: bool) -> None:
        from transformers import CLIPConfig, CLIPModel

        super().__init__()
        width = 64
        small = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = CLIPConfig(
            vision_config={**small, "image_size": 32, "patch_size": 8}, text_config=small, projection_dim=width
        )
        self.clip = CLIPModel(config if tiny else CLIPConfig())  # ViT-B/32

    def forward(self, images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = self.clip(pixel_values=images, input_ids=texts, return_loss=True).loss
        return loss


def training(name: str, device: str) -> tuple[nn.Module, torch.optim.Optimizer, Step]:
    torch.manual_seed(0)
    if name == "core":
        return core_training(device)
    if name == "toy":
        model: nn.Module = Towers()
        inputs = torch.randn(8, 16), torch.randn(8, 16)
    else:
        model = Clip(tiny=name == "tiny")
        size = 32 if name == "tiny" else 224
        inputs = torch.randn(4, 3, size, size), torch.randint(1, 49407, (4, 77))
    model.to(device)
    images, texts = (one.to(device) for one in inputs)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def step() -> None:
        optimizer.zero_grad()
        model(images, texts).backward()
        optimizer.step()

    return model, optimizer, step


def core_training(device: str) -> tuple[nn.Module, torch.optim.Optimizer, Step]:
    """Our own model's smallest preset, as it is trained by default, with regions, hard negatives and a bank."""
    config = FgclipConfig.preset("tiny", use_memory_bank=True)
    model = FgclipModel(config).to(device).train()
    scenes = Scenes(16)
    batch = collate([scenes[number] for number in range(len(scenes))], WordTokenizer()).to(torch.device(device))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    steps = count()

    def step() -> None:
        torch.autograd.backward(total(model(batch, step=next(steps))))
        optimizer.step()
        optimizer.zero_grad()

    return model, optimizer, step


def block(steps: int, step: Step, device: str) -> float:
    """Seconds of so many steps: on the CPU those that the process itself had, which its neighbours don't disturb."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    _wait(device)
    began = clock()
    for _ in range(steps):
        step()
    _wait(device)
    return clock() - began


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def ratios(name: str, device: str, pairs: int, stage: str, peer: str = "") -> tuple[float, dict[str, list[float]]]:
    """Milliseconds of an unwatched step; and watched over unwatched time of each pair, by who watches."""
    model, optimizer, step = training(name, device)
    steps = BLOCKS[name][STAGES.index(stage)]
    block(max(1, steps // 4), step, device)
    ways = ["alone", "fgclip-doctor", *filter(None, [peer])]
    alone: list[float] = []
    found: dict[str, list[float]] = {way: [] for way in ways[1:]}
    for pair in range(pairs):
        taken: dict[str, float] = {}
        for way in ways[pair % len(ways) :] + ways[: pair % len(ways)]:
            with watched_by(way, model, optimizer, stage):
                taken[way] = block(steps, step, device)
        alone.append(1000 * taken["alone"] / steps)
        for way, of_each in found.items():
            of_each.append(taken[way] / taken["alone"])
    return statistics.median(alone), found


@contextmanager
def watched_by(way: str, model: nn.Module, optimizer: torch.optim.Optimizer, stage: str) -> Iterator[None]:
    if way == "fgclip-doctor":
        with tempfile.TemporaryDirectory() as directory:
            recorder = Recorder(Path(directory))
            if stage in ("later", "between"):
                recorder.clocks["steps"], recorder.pace.looking = LATER, False
                recorder.pace.next = LATER + (10 if stage == "later" else 1 << 40)
            recorder.start(model, optimizer)
            yield
            recorder.stop(0)
    elif way == "torch-audit":
        from torch_audit import autopatch

        auditor = autopatch(model, optimizer=optimizer, every_n_steps=10, reporters=[])
        yield
        auditor.unpatch()
    else:
        yield


def synchronisations(name: str, watched: bool) -> int:
    """Of 30 steps on the GPU, by the profiler."""
    model, optimizer, step = training(name, "cuda")
    step()
    with tempfile.TemporaryDirectory() as directory:
        recorder = Recorder(Path(directory))
        if watched:
            recorder.start(model, optimizer)
        with torch.profiler.profile() as profile:
            block(30, step, "cuda")
        recorder.stop(0)
    return sum(one.count for one in profile.key_averages() if "Synchronize" in one.key or one.key == "cudaMemcpy")


def memory(steps: int) -> list[int]:
    """Peak resident MB after each fifth of so many watched steps of the toy."""
    model, optimizer, step = training("toy", "cpu")
    peaks = []
    with tempfile.TemporaryDirectory() as directory:
        recorder = Recorder(Path(directory))
        recorder.start(model, optimizer)
        for _ in range(5):
            block(steps // 5, step, "cpu")
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
        recorder.stop(0)
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", choices=BLOCKS, action="append")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--stage", choices=STAGES, action="append")
    parser.add_argument("--peer", choices=["torch-audit"], default="", help="watch by it, too, at the start")
    parser.add_argument("--memory-steps", type=int, default=0, help="also watch so many steps, and show the memory")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| model | steps | by | ms a step | watched / alone: median | middle half | pairs |")
    print("|---|---|---|---|---|---|---|")
    for name in options.model or BLOCKS:
        for stage in ["start"] if options.peer else options.stage or STAGES:
            milliseconds, found = ratios(name, options.device, options.pairs, stage, options.peer)
            for way, of_each in found.items():
                low, middle, high = statistics.quantiles(of_each, n=4)
                print(
                    f"| {name} | {stage} | {way} | {milliseconds:.2f} | {middle:.4f} "
                    f"| {low:.3f} to {high:.3f} | {len(of_each)} |",
                    flush=True,
                )
        if options.device == "cuda":
            counts = [synchronisations(name, watched) for watched in (False, True)]
            print(f"synchronisations in 30 steps of {name}: {counts[0]} alone, {counts[1]} watched")
    if options.memory_steps:
        print(f"peak MB after each fifth of {options.memory_steps:,} steps: {memory(options.memory_steps)}")


if __name__ == "__main__":
    main()
