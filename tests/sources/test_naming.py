"""Every name is compared with the one that torch itself holds for that index."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel, Trainer

from fgclip_doctor.core.config import FgclipConfig, TextConfig, VisionConfig
from fgclip_doctor.core.model import FgclipModel
from fgclip_doctor.run import OptimizerGroup, Tensor
from fgclip_doctor.sources.naming import Names, TooOpen, Weights, align
from tests.runs import tensor

Grouping = Callable[[dict[str, nn.Parameter]], list[list[nn.Parameter]]]


def config(text: int = 16, vision: int = 24) -> CLIPConfig:
    tower = {"num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    return CLIPConfig(
        text_config={**tower, **ends, "hidden_size": text, "intermediate_size": 32, "vocab_size": 50},
        vision_config={**tower, "hidden_size": vision, "intermediate_size": 48, "image_size": 16, "patch_size": 8},
        projection_dim=12,
    )


class Heads(CLIPModel):  # type: ignore[misc]
    """What FG-CLIP adds, after CLIP's own parts."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__(config)
        self.roi_projection = nn.Linear(config.vision_config.hidden_size, 12, bias=False)
        self.text_filip_projection = nn.Linear(config.text_config.hidden_size, 12, bias=False)
        self.logit_scale_finegraind = nn.Parameter(torch.ones(()))
        self.register_buffer("region_image_queue", torch.zeros(12, 32))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))
        self.register_buffer("centre", torch.zeros(12))  # a floating buffer that no pattern of names knows


class HeadsFirst(CLIPModel):  # type: ignore[misc]
    """The same in another order: a head of two layers before the towers, and a scale before CLIP's."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__(config)
        modules, parameters = dict(self._modules), dict(self._parameters)
        self._modules.clear()
        self._parameters.clear()
        self.box_temperature = nn.Parameter(torch.ones(()))
        self.box_head = nn.Sequential(nn.Linear(24, 24), nn.GELU(), nn.Linear(24, 12))
        self._parameters.update(parameters)
        self._modules.update(modules)


def ours() -> FgclipModel:
    tower = {"num_hidden_layers": 2, "num_attention_heads": 2}
    vision = VisionConfig(hidden_size=16, intermediate_size=32, image_size=16, patch_size=8, **tower)
    text = TextConfig(hidden_size=16, intermediate_size=32, vocab_size=50, bos_token_id=1, eos_token_id=2, **tower)
    return FgclipModel(FgclipConfig(vision_config=vision, text_config=text, projection_dim=12, roi_projection=True))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "heads": lambda: Heads(config()),
    "equal widths": lambda: Heads(config(24, 24)),
    "heads first": lambda: HeadsFirst(config()),
    "ours": ours,
}


def by_trainer(model: nn.Module) -> Grouping:
    """transformers' own: decayed or not."""
    decayed = set(Trainer.get_decay_parameter_names(None, model))
    return lambda named: [
        [p for n, p in named.items() if n in decayed],
        [p for n, p in named.items() if n not in decayed],
    ]


def by_dimensions(named: dict[str, nn.Parameter]) -> list[list[nn.Parameter]]:
    """open_clip's: vectors first."""
    return [[p for p in named.values() if p.ndim < 2], [p for p in named.values() if p.ndim >= 2]]


def by_part(named: dict[str, nn.Parameter]) -> list[list[nn.Parameter]]:
    """A learning rate each for the towers, the heads and the scales; the heads listed by hand, from the last."""
    heads = [p for n, p in named.items() if "_model" not in n and p.ndim]
    return [
        [p for n, p in named.items() if n.startswith("text_model")],
        [p for n, p in named.items() if n.startswith("vision_model")],
        heads[::-1],
        [p for p in named.values() if not p.ndim],
    ]


@dataclass(frozen=True)
class Saved:
    truth: dict[int, str]
    names: Names

    @property
    def certain(self) -> dict[int, str]:
        return {index: names[0] for index, names in self.names.items() if len(names) == 1}

    def check(self) -> None:
        """All are matched, and no answer excludes the truth."""
        assert self.names.keys() == self.truth.keys()
        assert [i for i, names in self.names.items() if self.truth[i] not in names] == []


def saved(
    model: nn.Module,
    grouping: Grouping | None = None,
    *,
    in_order: bool,
    frozen: tuple[str, ...] = (),
    left_out: Collection[str] = (),
    detached: Collection[str] = (),
    moved: Collection[str] = (),
) -> Saved:
    """What `align` makes of the state that a real AdamW saves after one step."""
    named = {
        name: parameter
        for name, parameter in model.named_parameters()
        if not (frozen and name.startswith(frozen)) and name not in left_out
    }
    groups = (grouping or by_trainer(model))(named)
    rate = 1e-9 if grouping is by_part else 0.0
    optimizer = torch.optim.AdamW([{"params": group, "lr": i * rate} for i, group in enumerate(groups)])
    for name, parameter in named.items():
        parameter.grad = None if name in detached else torch.zeros_like(parameter)
    optimizer.step()
    state = optimizer.state_dict()
    name_of = {id(parameter): name for name, parameter in named.items()}
    truth = dict(enumerate(name_of[id(parameter)] for group in groups for parameter in group))
    shapes = {index: tuple(one["exp_avg"].shape) for index, one in state["state"].items()}
    stored = model.state_dict()
    return Saved(
        truth,
        align(
            [OptimizerGroup(i, tuple(group["params"]), group) for i, group in enumerate(state["param_groups"])],
            shapes,
            truth.keys() - shapes.keys(),
            Weights(tensors(stored, in_order=in_order), in_order, isinstance(model, CLIPModel)),
            moved,
        ),
    )


def tensors(stored: Mapping[str, torch.Tensor], *, in_order: bool) -> dict[str, Tensor]:
    names = list(stored) if in_order else sorted(stored)
    return {name: tensor(name, np.zeros(stored[name].shape), str(stored[name].dtype)[6:]) for name in names}


FROZEN = {
    "nothing": (),
    "text": ("text_model",),
    "vision": ("vision_model",),
    "towers": ("text_model", "vision_model"),
    "a layer": ("vision_model.encoder.layers.0",),
    "embeddings": ("text_model.embeddings", "vision_model.embeddings"),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("in_order", [True, False], ids=["bin", "safetensors"])
@pytest.mark.parametrize(
    ("grouping", "frozen"),
    [
        *(("trainer", frozen) for frozen in FROZEN),
        ("dimensions", "nothing"),
        ("dimensions", "vision"),
        ("one", "nothing"),
        ("one", "text"),
        ("part", "nothing"),
        ("part", "text"),
    ],
)
def test_no_name_is_ever_wrong(model: str, in_order: bool, grouping: str, frozen: str) -> None:
    one = MODELS[model]()
    groupings: dict[str, Grouping] = {
        "trainer": by_trainer(one),
        "dimensions": by_dimensions,
        "one": lambda named: [list(named.values())],
        "part": by_part,
    }
    try:
        found = saved(one, groupings[grouping], in_order=in_order, frozen=FROZEN[frozen])
    except TooOpen:  # says so, where the groups are somebody's own, part of them is frozen and the order isn't known
        assert grouping == "part"
        assert frozen != "nothing"
        assert not in_order
        return
    found.check()
    if in_order and grouping != "part" and frozen in ("nothing", "text", "vision"):
        assert len(found.certain) == len(found.truth)
    if frozen == "nothing" and model != "ours":
        assert len(found.certain) >= len(found.truth) - 8  # only heads and scales of equal shape are open


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("in_order", [True, False], ids=["bin", "safetensors"])
@pytest.mark.parametrize("fault", ["left_out", "detached"])
def test_a_head_left_out_or_detached(model: str, in_order: bool, fault: str) -> None:
    one = MODELS[model]()
    head = next(n for n, _ in one.named_parameters() if n.startswith(("roi_projection", "box_head")))
    others = {n for n, p in one.named_parameters() if p.ndim == 2 and "_model" not in n and n != head}
    for moved in (set(), others):
        found = saved(
            one,
            in_order=in_order,
            left_out=[head] * (fault == "left_out"),
            moved=moved,
            detached=[head] * (fault == "detached"),
        )
        found.check()
    if fault == "left_out":
        assert not any(head in names for names in found.names.values())
    else:
        assert head in found.certain.values()
