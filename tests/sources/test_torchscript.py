"""Archives that torch.jit itself writes. OpenAI's checkpoints of CLIP are such files."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from fgclip_doctor.sources import load
from fgclip_doctor.sources.files import Unreadable

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, about TorchScript


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = torch.nn.Parameter(torch.tensor(2.5))
        self.visual = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
        self.register_buffer("input_resolution", torch.tensor(224))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.visual(x) * self.logit_scale.exp() + self.input_resolution


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    torch.jit.save(torch.jit.trace(Model().half(), torch.ones(1, 3).half()), tmp_path / "ViT.pt")
    return tmp_path / "ViT.pt"


def test_the_weights_have_the_names_of_the_state_dict(archive: Path) -> None:
    expected = torch.jit.load(archive).state_dict()
    run = load([archive])
    assert set(run.tensors) == set(expected)
    assert run.tensors["visual.0.weight"].dtype == "float16"
    assert str(run.tensors["visual.0.weight"].source) == f"{archive}: visual.0.weight"
    for name, tensor in expected.items():
        np.testing.assert_array_equal(run.tensors[name].values(), tensor.float().numpy())


def test_the_code_is_not_looked_at(archive: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(archive, "w") as file:
        for name, content in entries.items():
            code = "/code/" in name
            file.writestr(name, bytes(1 << 22) if code else content, zipfile.ZIP_DEFLATED if code else None)
    assert run_scale(archive) == 2.5


def run_scale(path: Path) -> float:
    return load([path]).tensors["logit_scale"].item()


def test_a_module_without_weights(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.ReLU(), torch.ones(1)), tmp_path / "x.pt")
    with pytest.raises(Unreadable, match="holds no state dict of weights"):
        load([tmp_path / "x.pt"])
