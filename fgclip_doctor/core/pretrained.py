"""Weights in and out, in the layout of FG-CLIP checkpoints on Hugging Face."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fgclip_doctor.core.config import FgclipConfig
from fgclip_doctor.core.model import FgclipModel

BANK = "bank."  # the module that holds the bank's buffers; in checkpoints they stand at the top


def weights(model: FgclipModel) -> dict[str, Tensor]:
    """The state dict under the names of FG-CLIP checkpoints."""
    return {name.removeprefix(BANK): tensor for name, tensor in model.state_dict().items()}


def save(model: FgclipModel, directory: Path) -> None:
    """Writes `config.json` and `model.safetensors`."""
    model.config.save(directory / "config.json")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights(model).items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint directory or of one weights file. No pickle of it is trusted."""
    if path.is_dir():
        names = ("model.safetensors", "pytorch_model.bin")
        found = next((path / name for name in names if (path / name).is_file()), None)
        if found is None:
            raise FileNotFoundError(f"{path}: no {' and no '.join(names)}")
        path = found
    if path.suffix == ".safetensors":
        return load_file(path)
    tensors: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return tensors


def restore(model: FgclipModel, directory: Path) -> None:
    """Loads every tensor of a checkpoint of this very model; nothing may be missing or left over."""
    tensors = read(directory)
    buffers = {name for name, _ in model.named_buffers(prefix="") if name.startswith(BANK)}
    inside = {name.removeprefix(BANK): name for name in buffers}
    model.load_state_dict({inside.get(name, name): tensor for name, tensor in tensors.items()})


def load(directory: Path) -> FgclipModel:
    """The model that `save` wrote."""
    model = FgclipModel(FgclipConfig.load(directory / "config.json"))
    restore(model, directory)
    return model


def from_base(directory: Path, config: FgclipConfig) -> FgclipModel:
    """A model of `config` with the weights of a base, whose heads, scales and tables that the base lacks are copies.

    Nothing that the base does have is left at its initial value: a tower that is not covered is an error.
    """
    model = FgclipModel(config)
    tensors = read(directory)
    names = set(model.state_dict())
    missing, unexpected = model.load_state_dict({k: v for k, v in tensors.items() if k in names}, strict=False)
    del unexpected
    copied = {
        "text_filip_projection.weight",
        "roi_projection.weight",
        "logit_scale_finegraind",
        "logit_scale_hardneg",
        "text_model.embeddings.position_embedding_res.weight",
        "text_model.embeddings.position_embedding_ori.weight",
    }
    absent = {name for name in missing if not name.startswith(BANK)}
    if absent - copied:
        raise ValueError(f"{directory}: nothing for {', '.join(sorted(absent - copied))}")
    model.copy_heads(*(name.removesuffix(".weight") for name in absent))
    return model
