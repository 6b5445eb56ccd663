"""Weights in and out: Hugging Face's CLIP and FG-CLIP layouts, and OpenAI's own state dict.

Loading says what it did to every tensor, and goes on only if both towers are covered: a tower that silently stays at
its random initialisation trains, and never works.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fgclip_doctor.core.config import FgclipConfig, TextConfig, VisionConfig
from fgclip_doctor.core.model import FgclipModel

BANK = "bank."  # the module that holds the bank's buffers; in checkpoints they stand at the top
LONG_TABLES = tuple(f"text_model.embeddings.position_embedding_{kind}.weight" for kind in ("res", "ori"))
DERIVED = {  # what a plain CLIP lacks, and what it starts from
    "text_filip_projection.weight": "text_projection.weight",
    "roi_projection.weight": "visual_projection.weight",
    "logit_scale_finegraind": "logit_scale",
    "logit_scale_hardneg": "logit_scale",
    **dict.fromkeys(LONG_TABLES, "text_model.embeddings.position_embedding.weight"),
}
NO_WEIGHTS = re.compile(r"position_ids$|^(input_resolution|context_length|vocab_size)$")  # constants, not weights


class Uncovered(ValueError):  # noqa: N818 - reads as what it says of the weights
    """The weights leave a part of the model at its random initialisation."""


@dataclass(slots=True)
class Coverage:
    """What became of each tensor of the model, and which tensors of the file had no use.

    `transposed` and `split` are loaded too. `derived` maps a part that the file lacks to the one it was copied from.
    """

    loaded: list[str] = field(default_factory=list)
    transposed: list[str] = field(default_factory=list)
    split: list[str] = field(default_factory=list)
    derived: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)  # names with both shapes

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} loaded ({len(self.transposed)} transposed, {len(self.split)} split)"]
        lines += [f"{name}: copied from {source}" for name, source in self.derived.items()]
        for what in ("missing", "unexpected", "mismatched"):
            if names := getattr(self, what):
                lines.append(f"{len(names)} {what}: {', '.join(names)}")
        return "\n".join(lines)


# --- out -----------------------------------------------------------------------------------------------------------


def weights(model: FgclipModel) -> dict[str, Tensor]:
    """The state dict under the names of FG-CLIP checkpoints."""
    return {name.removeprefix(BANK): tensor for name, tensor in model.state_dict().items()}


def save(model: FgclipModel, directory: Path) -> None:
    """Writes `config.json` and `model.safetensors`, in the layout of FG-CLIP checkpoints."""
    model.config.save(directory / "config.json")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights(model).items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


# --- in ------------------------------------------------------------------------------------------------------------


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of one file of weights or of a checkpoint directory, sharded or not. No pickle is trusted."""
    if path.is_dir():
        for name in ("model.safetensors", "pytorch_model.bin"):
            if (path / name).is_file():
                return read(path / name)
            if (index := path / f"{name}.index.json").is_file():
                shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
                return {name: tensor for shard in shards for name, tensor in read(path / shard).items()}
        raise FileNotFoundError(f"{path}: no model.safetensors and no pytorch_model.bin")
    if path.suffix == ".safetensors":
        return load_file(path)
    content = torch.load(path, map_location="cpu", weights_only=True)
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    return {name.removeprefix("module."): tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}


def restore(model: FgclipModel, path: Path) -> None:
    """Loads every tensor of a checkpoint of this very model; nothing may be missing or left over."""
    inside = {name.removeprefix(BANK): name for name in model.state_dict()}
    model.load_state_dict({inside.get(name, name): tensor for name, tensor in read(path).items()})


def load(directory: Path) -> FgclipModel:
    """The model that `save` wrote."""
    model = FgclipModel(FgclipConfig.load(directory / "config.json"))
    restore(model, directory)
    return model


@torch.no_grad()
def load_weights(model: FgclipModel, tensors: Mapping[str, Tensor], *, partial: bool = False) -> Coverage:
    """Loads CLIP or FG-CLIP weights of either layout into the model, and copies what a plain CLIP lacks.

    A head, scale or table that the weights do have is never overwritten by a copy. The bank's rows are part of a run,
    not of its starting point, and are left alone. Unless `partial`, raises `Uncovered` where anything else is missing
    or has another shape.
    """
    coverage = Coverage()
    if is_openai(tensors):
        tensors = from_openai(tensors, coverage)
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(BANK)}
    bank = {name.removeprefix(BANK) for name in model.state_dict() if name.startswith(BANK)}
    for name, tensor in own.items():
        if name not in tensors:
            coverage.missing.append(name)
        elif tensors[name].shape != tensor.shape:
            coverage.mismatched.append(f"{name} {tuple(tensors[name].shape)}, not {tuple(tensor.shape)}")
        else:
            tensor.copy_(tensors[name])
            coverage.loaded.append(name)
    coverage.unexpected = sorted(n for n in tensors if n not in own and n not in bank and not NO_WEIGHTS.search(n))
    derive(model, coverage)
    if (coverage.missing or coverage.mismatched) and not partial:
        raise Uncovered(f"the weights don't cover the model:\n{coverage}")
    return coverage


def derive(model: FgclipModel, coverage: Coverage) -> None:
    """Starts the missing parts of `DERIVED` from those that they branch off, where these were loaded."""
    own, loaded = model.state_dict(), set(coverage.loaded)
    for name, source in DERIVED.items():
        if name in coverage.missing and source in loaded:
            if name not in LONG_TABLES:
                own[name].copy_(own[source])
            coverage.derived[name] = source
            coverage.missing.remove(name)
    if set(LONG_TABLES) <= coverage.derived.keys():
        model.text_model.embeddings.stretch()


def from_base(path: Path, config: FgclipConfig) -> FgclipModel:
    """A model of `config` that starts from the weights of a base."""
    model = FgclipModel(config)
    load_weights(model, read(path))
    return model


# --- OpenAI's layout -----------------------------------------------------------------------------------------------


def is_openai(tensors: Mapping[str, Tensor]) -> bool:
    return "visual.class_embedding" in tensors and "token_embedding.weight" in tensors


OPENAI_NAMES = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "visual.transformer.resblocks": "vision_model.encoder.layers",
    "visual.proj": "visual_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "transformer.resblocks": "text_model.encoder.layers",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
OPENAI_BLOCK = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def from_openai(tensors: Mapping[str, Tensor], coverage: Coverage) -> dict[str, Tensor]:
    """Renames OpenAI's tensors; splits the fused projections of attention, and transposes those of the heads."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        ours = renamed(name)
        if ours is None:
            found[name] = tensor
        elif ".attn.in_proj_" in ours:  # (3 C, C) or (3 C,)
            layer, kind = ours.split(".attn.in_proj_")
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                found[f"{layer}.self_attn.{part}_proj.{kind}"] = piece  # (C, C) or (C,)
                coverage.split.append(f"{layer}.self_attn.{part}_proj.{kind}")
        elif name in ("visual.proj", "text_projection"):  # applied as x @ w, where a Linear's are x @ w.T
            found[ours] = tensor.T  # (D, C)
            coverage.transposed.append(ours)
        else:
            found[ours] = tensor
    return found


def renamed(name: str) -> str | None:
    """Our name of one of OpenAI's tensors; the fused projections keep theirs inside their layer."""
    for theirs, ours in OPENAI_NAMES.items():
        if name == theirs:
            return ours
        if name.startswith(f"{theirs}."):
            rest = name.removeprefix(theirs)
            for old, new in OPENAI_BLOCK.items():
                rest = rest.replace(f".{old}.", f".{new}.")
            return ours + rest
    return None


def openai_config(tensors: Mapping[str, Tensor]) -> FgclipConfig:
    """The architecture that a state dict of OpenAI's implies; heads are 64 wide in all of its models."""
    vision_width, _, patch, _ = tensors["visual.conv1.weight"].shape
    grid = round((len(tensors["visual.positional_embedding"]) - 1) ** 0.5)
    positions, text_width = tensors["positional_embedding"].shape
    vocab_size = len(tensors["token_embedding.weight"])
    layers = [re.match(r"(visual\.)?transformer\.resblocks\.(\d+)\.", name) for name in tensors]
    depth = {part: max(int(m[2]) for m in layers if m and m[1] == part) + 1 for part in ("visual.", None)}
    return FgclipConfig(
        vision_config=VisionConfig(
            hidden_size=vision_width,
            intermediate_size=len(tensors["visual.transformer.resblocks.0.mlp.c_fc.weight"]),
            num_hidden_layers=depth["visual."],
            num_attention_heads=vision_width // 64,
            image_size=grid * patch,
            patch_size=patch,
        ),
        text_config=TextConfig(
            hidden_size=text_width,
            intermediate_size=len(tensors["transformer.resblocks.0.mlp.c_fc.weight"]),
            num_hidden_layers=depth[None],
            num_attention_heads=text_width // 64,
            vocab_size=vocab_size,
            max_position_embeddings=positions,
            longtext_len=4 * positions - 3 * TextConfig.keep_len,
            bos_token_id=vocab_size - 2,
            eos_token_id=vocab_size - 1,
        ),
        projection_dim=tensors["text_projection"].shape[1],
    )
