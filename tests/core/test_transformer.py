"""What makes the towers fast changes nothing that they compute."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fgclip_doctor.core.config import FgclipConfig
from fgclip_doctor.core.losses import total
from fgclip_doctor.core.model import Batch, FgclipModel
from fgclip_doctor.core.transformer import Encoder, Layer, Packing, quick_gelu
from fgclip_doctor.training.data import collate
from fgclip_doctor.training.synthetic import Scenes, WordTokenizer

TOWER = FgclipConfig.preset("tiny").text_config


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def batch(count: int = 4) -> Batch:
    return collate([Scenes(count)[index] for index in range(count)], WordTokenizer())


def model(**changes: object) -> FgclipModel:
    torch.manual_seed(0)
    return FgclipModel(FgclipConfig.preset("tiny", roi_projection=True, **changes)).train()


def loss_and_gradients(module: FgclipModel) -> tuple[Tensor, dict[str, Tensor | None]]:
    module.zero_grad()
    loss = total(module(batch(), step=0))
    torch.autograd.backward(loss)
    return loss, {name: parameter.grad for name, parameter in module.named_parameters()}


def test_quick_gelu_is_openais() -> None:
    x = 10 * random(1000)
    assert torch.allclose(quick_gelu(x), x * torch.sigmoid(1.702 * x), rtol=1e-6, atol=0)


@pytest.mark.parametrize("causal", [False, True])
def test_one_row_of_a_layer_is_that_row_of_it(causal: bool) -> None:
    layer, x = Layer(TOWER, causal=causal), random(3, 7, 64)
    position = torch.tensor([6, 0, 3]) if causal else torch.tensor([2, 5, 0])
    expected = layer(x)[torch.arange(3), position]
    assert torch.allclose(layer.at(x, position), expected, rtol=0, atol=1e-6)


def test_a_packed_layer_is_the_layer_of_its_sequences() -> None:
    layer = Layer(TOWER, causal=True)
    packing = Packing(torch.tensor([[0, 1, 2], [0, 1, 3]]), torch.tensor([0, 1, 2, 5]))
    x = random(4, 64)
    expected = layer(x[packing.path])  # (2, 3, C)
    assert torch.allclose(layer(x, packing), expected.flatten(0, 1)[packing.origin], rtol=0, atol=1e-6)
    ends = torch.tensor([1, 2])
    assert torch.allclose(layer.at(x, ends, packing), expected[torch.arange(2), ends], rtol=0, atol=1e-6)


def test_checkpointing_changes_no_bit() -> None:
    ours = model()
    loss, gradients = loss_and_gradients(ours)
    passes: list[int] = []
    for tower in (ours.vision_model, ours.text_model):
        for layer in tower.encoder.layers[:-1]:
            layer.register_forward_pre_hook(lambda *_: passes.append(1))
    loss_and_gradients(ours)
    once = len(passes)
    ours.checkpoint_layers()
    again, found = loss_and_gradients(ours)
    assert len(passes) == 3 * once  # forward, and once more in the backward pass
    assert torch.equal(again, loss)
    for name, gradient in gradients.items():
        assert gradient is not None
        assert torch.equal(found[name], gradient), name


def test_the_step_never_waits_for_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device nothing has a value, so whatever needs one on the host raises.

    On a GPU, `benchmarks/train_step.py` counts with CUDA's own debug mode.
    """
    meta = torch.device("meta")
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it doesn't know the device
    ours = model(use_memory_bank=True, memory_bank_size=8).to(meta)
    torch.autograd.backward(total(ours(batch().to(meta), step=0)))
    ours.clamp_scales()
    with pytest.raises(RuntimeError, match="meta"):
        ours.logit_scale.item()


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:`torch.jit:DeprecationWarning"
)  # torch's own compiler still uses what it deprecates
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_layers_are_the_same_with_any_number_of_rows() -> None:
    eager = Encoder(replace(TOWER, num_hidden_layers=2), causal=True)
    compiled = Encoder(replace(TOWER, num_hidden_layers=2), causal=True)
    compiled.load_state_dict(eager.state_dict())
    compiled.compile_layers()
    assert compiled.state_dict().keys() == eager.state_dict().keys()
    for texts in (5, 8, 11):
        packing = Packing(torch.arange(texts * 6).view(texts, 6), torch.arange(texts * 6))
        x = random(texts * 6, 64)
        outputs = [encoder(x, packing) for encoder in (eager, compiled)]
        assert torch.allclose(*outputs, rtol=0, atol=1e-5)
        for encoder, output in zip((eager, compiled), outputs, strict=True):
            encoder.zero_grad()
            (output * random(*output.shape).flip(0)).sum().backward()
        for ours, theirs in zip(eager.parameters(), compiled.parameters(), strict=True):
            assert same_gradient(ours, theirs)


def same_gradient(one: nn.Parameter, other: nn.Parameter) -> bool:
    if one.grad is None or other.grad is None:  # of the last layer, which the stack leaves to its caller
        return one.grad is other.grad
    return bool((one.grad - other.grad).norm() <= 1e-4 * one.grad.norm() + 1e-5)  # those of k_proj.bias are 0
