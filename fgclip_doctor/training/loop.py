"""The training loop: read `train`, it is all there."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from fgclip_doctor import theory
from fgclip_doctor.core import pretrained
from fgclip_doctor.core.losses import Term, total
from fgclip_doctor.core.model import FgclipModel
from fgclip_doctor.core.ranks import rank, world_size
from fgclip_doctor.training import checkpointing
from fgclip_doctor.training.checkpointing import Progress
from fgclip_doctor.training.data import Dataset, Tokenizer, micro_batches
from fgclip_doctor.training.distributed import averaged, exchange, replicated, torchrun
from fgclip_doctor.training.faults import Subject, plant
from fgclip_doctor.training.optim import build_optimizer, build_scheduler, parameter_groups
from fgclip_doctor.training.settings import TrainConfig
from fgclip_doctor.training.synthetic import Scenes, WordTokenizer

logger = logging.getLogger(__name__)

OnStart = Callable[[TrainConfig, FgclipModel, torch.optim.Optimizer], None]
OnStep = Callable[[dict[str, float]], None]


@torchrun()
def train(config: TrainConfig, *, on_start: OnStart | None = None, on_step: OnStep | None = None) -> Path:
    """Trains to `max_steps` and returns the run's directory.

    `on_start` gets what will be trained, just before it is, and `on_step` every entry of the log as it is made.
    Under `torchrun` the samples of a step are split among the ranks, and the first rank alone logs and saves.
    """
    dataset, tokenizer, config = build_data(config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(config.seed)
    model = build_model(config).to(device).train()
    groups = parameter_groups(model, config)
    if config.gradient_checkpointing:
        model.checkpoint_layers()
    if config.torch_compile:
        model.compile_layers()
    optimizer = build_optimizer(groups, config)
    scheduler = build_scheduler(optimizer, config)
    plant(config.faults, Subject(config=config, model=model, optimizer=optimizer, scheduler=scheduler))
    clipped = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    progress = Progress()
    if config.resume:
        progress = checkpointing.restore(checkpointing.latest(config.output_dir), model, optimizer, scheduler)
    batches = micro_batches(
        dataset,
        tokenizer,
        size=config.micro_batch,
        seed=config.seed,
        start=progress.step * config.accumulation,
        rank=rank(),
        ranks=world_size(),
        workers=config.workers,
    )
    parallel = replicated(model, find_unused=bool(config.faults))  # a fault may cut parameters off

    if on_start is not None and rank() == 0:
        on_start(config, model, optimizer)
    meter = Meter()
    while progress.step < config.max_steps:
        for number in range(config.accumulation):
            batch = next(batches)
            with exchange(parallel, now=number == config.accumulation - 1):
                with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                    terms = parallel(batch.to(device), step=progress.step)
                loss = total(terms)
                torch.autograd.backward(loss / config.accumulation)
            meter.add(loss, terms)
        grad_norm = torch.nn.utils.clip_grad_norm_(clipped, config.max_grad_norm or math.inf)
        rates = [float(rate) for rate in scheduler.get_last_lr()]  # of the step to come, as the Trainer logs them
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        model.clamp_scales()
        progress.step += 1

        if progress.step % config.logging_steps == 0 or progress.step == config.max_steps:
            entry = {"step": progress.step, "epoch": config.epoch(progress.step, world_size()), **meter.means()}
            entry |= learnt_bits(entry) | {"learning_rate": rates[0], "grad_norm": grad_norm.item()}
            entry |= state_of(model, progress.step)
            entry |= {f"learning_rate_{group['name']}": rate for group, rate in zip(groups, rates, strict=True)}
            progress.log_history.append(entry)
            if on_step is not None and rank() == 0:
                on_step(entry)
            meter = Meter()
        if progress.step % config.save_steps == 0 or progress.step == config.max_steps:
            checkpointing.save(config, model, optimizer, scheduler, progress)
    return config.output_dir


def build_data(config: TrainConfig) -> tuple[Dataset, Tokenizer, TrainConfig]:
    """The samples, their tokenizer, and the settings with the numbers of samples and regions that there really are."""
    if config.data is None:
        scenes = Scenes(config.scenes, seed=config.seed, regions=config.regions_per_scene)
        return scenes, WordTokenizer(), config
    from fgclip_doctor.training import finehard
    from fgclip_doctor.training.tokenizer import ClipTokenizer

    text = config.model.text_config
    tokenizer = ClipTokenizer(context=text.max_position_embeddings, long_context=text.longtext_len)
    if text.eos_token_id != tokenizer.eos_token_id:
        raise ValueError(
            f"the text tower ends texts with {text.eos_token_id}, CLIP's tokenizer {tokenizer.eos_token_id}"
        )
    dataset, census = finehard.survey(
        config.data,
        config.images or (config.data if config.data.is_dir() else config.data.parent),
        side=config.model.vision_config.image_size,
        tokenizer=tokenizer,
        max_regions=config.max_regions,
        decode_images=config.decode_images,
    )
    if rank() == 0:
        report = config.output_dir / "data_report.json"
        census.save(report)
        if census.problems.total():
            logger.warning("%s: %s; names and reasons are in %s", config.data, census, report)
    return dataset, tokenizer, replace(config, scenes=census.samples, regions_per_scene=census.regions / census.samples)


def build_model(config: TrainConfig) -> FgclipModel:
    """A fresh model, or one with the weights of `base`, whose missing heads are copies of those they branch off."""
    if config.base is None:
        return FgclipModel(config.model)
    return pretrained.from_base(checkpointing.latest(config.base), config.model)


class Meter:
    """Means over the forward passes and ranks since the last log entry. They stay on the device until they are read."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor | float] = {}
        self.counts: dict[str, int] = {}

    def add(self, loss: Tensor, terms: dict[str, Term]) -> None:
        self.note("loss", loss.detach())
        for name, term in terms.items():
            self.note(f"anchors_{name}", term.anchors)
            if term.anchors:  # a forward pass without a single region says nothing of the region loss
                self.note(f"loss_{name}", term.loss.detach())
                self.note(f"candidates_{name}", term.candidates)
                self.note(f"accuracy_{name}", term.accuracy)
                self.note(f"margin_{name}", term.margin)

    def note(self, name: str, value: Tensor | float) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + value
        self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        return averaged({name: float(value) / self.counts[name] for name, value in self.sums.items()})


def learnt_bits(entry: Mapping[str, float]) -> dict[str, float]:
    """What each term has learnt at least, in bits: how far it is under ln N (van den Oord et al. 2018)."""
    bits = {}
    for name in [key.removeprefix("candidates_") for key in entry if key.startswith("candidates_")]:
        loss, candidates = entry[f"loss_{name}"], max(entry[f"candidates_{name}"], 1.0)
        known = theory.learnt_bits(loss, null_level=theory.chance_level(candidates), candidates=candidates)
        bits[f"learnt_bits_{name}"] = max(known, 0.0)
    return bits


def state_of(model: FgclipModel, step: int) -> dict[str, float]:
    """What the log says of the model itself: the scales, in log space, and the bank."""
    state = {name: scale.item() for name, scale in model.logit_scales().items()}
    if model.bank is not None:
        state["forwards"] = model.bank.training_steps.item()
        state["bank_on"] = float(model.bank.is_on(step))
        state["bank_rows"] = model.bank.filled().sum().item()
        state["bank_pointer"] = model.bank.queue_ptr.item()
    return state
