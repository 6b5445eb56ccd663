"""The silent faults, each planted on purpose. Nothing here is reached unless `TrainConfig.faults` names it.

A fault takes the finished model and the parameter groups, just before the optimizer is made of them, and breaks one
thing, in the way in which it was seen to break in real runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from fgclip_doctor.core.bank import MemoryBank
from fgclip_doctor.core.config import LOGIT_SCALE_FROM_SCRATCH
from fgclip_doctor.core.model import FgclipModel
from fgclip_doctor.training.optim import Group

Plant = Callable[[FgclipModel, list[Group]], None]

FAULTS: dict[str, Plant] = {}


def fault(name: str) -> Callable[[Plant], Plant]:
    def declare(plant: Plant) -> Plant:
        FAULTS[name] = plant
        return plant

    return declare


def plant(names: Sequence[str], model: FgclipModel, groups: list[Group]) -> None:
    """Plants faults by name."""
    for name in names:
        if name not in FAULTS:
            raise ValueError(f"no fault {name!r}; there are {', '.join(FAULTS)}")
        FAULTS[name](model, groups)


@fault("bank-never-enabled")
def bank_never_enabled(model: FgclipModel, groups: list[Group]) -> None:
    """A flag is False at the start, and no code sets it. The rows stay the noise that they were initialised with."""
    bank = bank_of(model)
    fill_with_noise(bank)
    replace_method(bank, "is_on", lambda step: False)


@fault("bank-holds-noise")
def bank_holds_noise(model: FgclipModel, groups: list[Group]) -> None:
    """The bank is used from the start, and nothing is ever enqueued."""
    bank = bank_of(model)
    fill_with_noise(bank)
    bank.queue_is_full.fill_(True)
    replace_method(bank, "enqueue", lambda image_features, text_features, captions: None)


@fault("bank-rows-not-unit")
def bank_rows_not_unit(model: FgclipModel, groups: list[Group]) -> None:
    """Features are enqueued before their normalisation."""
    bank = bank_of(model)
    enqueue, length = bank.enqueue, model.config.projection_dim**0.5
    replace_method(bank, "enqueue", lambda image, text, captions: enqueue(image * length, text * length, captions))


@fault("bank-not-saved")
def bank_not_saved(model: FgclipModel, groups: list[Group]) -> None:
    """The rows and the pointer are no part of the state dict; a resumed run starts with an empty bank."""
    bank = bank_of(model)
    for name, buffer in list(bank.named_buffers()):
        bank.register_buffer(name, buffer, persistent=False)


@fault("warmup-in-forwards")
def warmup_in_forwards(model: FgclipModel, groups: list[Group]) -> None:
    """The bank's warmup is meant in optimizer steps and compared with a counter of forward passes.

    As where it was seen, nothing says what the warmup is counted in: the clock is gone from the configuration.
    """
    bank_of(model).clock = "forward"
    model.config = model.config.with_changes(memory_bank_clock=None)


@fault("scale-from-scratch")
def scale_from_scratch(model: FgclipModel, groups: list[Group]) -> None:
    """Every scale starts where one that is trained from scratch does, 2.6592, whatever the base had learnt."""
    set_scales(model, LOGIT_SCALE_FROM_SCRATCH)


@fault("scale-above-cap")
def scale_above_cap(model: FgclipModel, groups: list[Group]) -> None:
    """No scale is clamped, and they start at 5.0."""
    replace_method(model, "clamp_scales", lambda: None)
    set_scales(model, 5.0)


@fault("scale-decayed")
def scale_decayed(model: FgclipModel, groups: list[Group]) -> None:
    """The scales are in a group with weight decay."""
    for group in groups:
        if group["name"].startswith("scales"):
            group["weight_decay"] = 0.2


@fault("head-detached")
def head_detached(model: FgclipModel, groups: list[Group]) -> None:
    """The region features are cut off from the graph behind their projection."""
    region_head(model).register_forward_hook(lambda module, inputs, output: output.detach())


@fault("head-left-at-init")
def head_left_at_init(model: FgclipModel, groups: list[Group]) -> None:
    """The region projection is new and random where it should have started as a copy of the image's."""
    head = region_head(model)
    nn.init.normal_(head.weight, std=head.in_features**-0.5)


@fault("head-frozen")
def head_frozen(model: FgclipModel, groups: list[Group]) -> None:
    """The region projection has `requires_grad` off."""
    region_head(model).requires_grad_(False)
    head_not_in_optimizer(model, groups)


@fault("head-not-in-optimizer")
def head_not_in_optimizer(model: FgclipModel, groups: list[Group]) -> None:
    """The region projection is trainable, and no group of the optimizer holds it."""
    head = region_head(model).weight
    for group in groups:
        group["params"] = [(name, parameter) for name, parameter in group["params"] if parameter is not head]


@fault("pure-bf16")
def pure_bf16(model: FgclipModel, groups: list[Group]) -> None:
    """The parameters themselves are bfloat16, so that updates under half an ulp are lost."""
    model.to(torch.bfloat16)


@fault("attention-left-at-init")
@torch.no_grad()
def attention_left_at_init(model: FgclipModel, groups: list[Group]) -> None:
    """The queries, keys and values of both towers, which OpenAI fuses, were skipped by the loader of the base."""
    fresh = FgclipModel(model.config).state_dict()
    for name, parameter in model.named_parameters():
        if any(f".{part}_proj." in name for part in "qkv"):
            parameter.copy_(fresh[name])


@fault("projection-transposed")
@torch.no_grad()
def projection_transposed(model: FgclipModel, groups: list[Group]) -> None:
    """The text projection, which is square, was loaded the other way round."""
    model.text_projection.weight.copy_(model.text_projection.weight.T.clone())


def bank_of(model: FgclipModel) -> MemoryBank:
    if model.bank is None:
        raise ValueError("this fault is one of the memory bank, and the model has none")
    return model.bank


def region_head(model: FgclipModel) -> nn.Linear:
    if model.roi_projection is None:
        raise ValueError("this fault is one of roi_projection, and the model has none")
    return model.roi_projection


def fill_with_noise(bank: MemoryBank) -> None:
    """Random unit columns, which is what banks are commonly initialised with."""
    for queue in (bank.region_image_queue, bank.region_text_queue):
        queue.copy_(F.normalize(torch.randn_like(queue), dim=0))


@torch.no_grad()
def set_scales(model: FgclipModel, value: float) -> None:
    for scale in model.logit_scales().values():
        scale.fill_(value)


def replace_method(owner: nn.Module, name: str, function: Callable[..., Any]) -> None:
    """Puts `function` in the place of a method of this one object."""
    if not callable(getattr(owner, name)):
        raise TypeError(f"{name} is no method of {type(owner).__name__}")
    object.__setattr__(owner, name, function)
