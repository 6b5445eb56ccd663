from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fgclip_doctor.run import Optimizer, Source, Tensor
from fgclip_doctor.sources import optimizer as optimizers
from fgclip_doctor.sources import torch_file
from fgclip_doctor.sources.files import Unreadable
from fgclip_doctor.sources.naming import Weights


class Two(nn.Module):
    """Two heads of one shape, in an order that a sorted file doesn't show."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = nn.Linear(24, 16, bias=False)
        self.roi = nn.Linear(24, 16, bias=False)
        self.odd = nn.Linear(7, 3)


def written(path: Path, content: object) -> Any:
    torch.save(content, path)
    return torch_file.read(path)


def weights(path: Path, state: Mapping[str, torch.Tensor], *, in_order: bool = False) -> Weights:
    names = list(state) if in_order else sorted(state)
    return Weights(written(path, {name: state[name].clone() for name in names}), in_order)


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, dead: tuple[str, ...] = ()) -> None:
    torch.manual_seed(0)
    targets = {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}
    for _ in range(steps):
        for name, parameter in model.named_parameters():
            noise = 0.1 * torch.randn_like(parameter)
            parameter.grad = None if name in dead else parameter.detach() - targets[name] + noise
        optimizer.step()


def named(tmp_path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, *, before: Any = None) -> Optimizer:
    payload = written(tmp_path / "optimizer.pt", optimizer.state_dict())
    read = optimizers.read(payload, Source("optimizer.pt"))
    earlier = weights(tmp_path / "before.pt", before).tensors if before else None
    return optimizers.named(
        read, optimizers.shapes(payload), weights(tmp_path / "model.pt", model.state_dict()), earlier
    )


def test_groups_states_and_steps_are_read(tmp_path: Path) -> None:
    model = Two()
    optimizer = torch.optim.AdamW(
        [{"params": model.odd.parameters(), "lr": 0.5, "weight_decay": 0.25}, {"params": model.roi.parameters()}],
        lr=0.1,
    )
    trained(model, optimizer, 3, dead=("roi.weight",))
    read = optimizers.read(written(tmp_path / "optimizer.pt", optimizer.state_dict()), Source("optimizer.pt"))
    assert [group.parameters for group in read.groups] == [(0, 1), (2,)]
    assert (read.groups[0].lr, read.groups[0].weight_decay, read.groups[1].lr) == (0.5, 0.25, 0.1)
    assert read.step == 3
    assert set(read.states) == {0, 1}
    moment = read.states[0].exp_avg_sq
    assert isinstance(moment, Tensor)
    torch.testing.assert_close(torch.tensor(moment.values()), optimizer.state[model.odd.weight]["exp_avg_sq"])


def test_names_that_torch_stored_are_taken(tmp_path: Path) -> None:
    model = Two()
    found = named(tmp_path, model, torch.optim.AdamW(model.named_parameters()))
    assert found.names == {0: ("visual.weight",), 1: ("roi.weight",), 2: ("odd.weight",), 3: ("odd.bias",)}
    assert "stored" in found.naming


def test_equal_shapes_stay_open_without_evidence(tmp_path: Path) -> None:
    model = Two()
    optimizer = torch.optim.AdamW(model.parameters())
    trained(model, optimizer, 1)
    found = named(tmp_path, model, optimizer)
    assert found.names[2] == ("odd.weight",)
    assert set(found.names[0]) == set(found.names[1]) == {"visual.weight", "roi.weight"}
    assert "2 of 4 stay open" in found.naming


def test_what_moved_was_trained(tmp_path: Path) -> None:
    model = Two()
    optimizer = torch.optim.AdamW(model.parameters())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained(model, optimizer, 1, dead=("roi.weight",))
    found = named(tmp_path, model, optimizer, before=before)
    assert found.names[0] == ("visual.weight",)
    assert found.names[1] == ("roi.weight",)
    assert 1 not in found.states


def test_a_parameter_moves_where_its_moments_push(tmp_path: Path) -> None:
    model = Two()
    optimizer = torch.optim.AdamW(model.parameters())
    trained(model, optimizer, 20)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained(model, optimizer, 20)
    found = named(tmp_path, model, optimizer, before=before)
    assert found.names == {0: ("visual.weight",), 1: ("roi.weight",), 2: ("odd.weight",), 3: ("odd.bias",)}


def test_weights_that_move_alike_stay_open(tmp_path: Path) -> None:
    model = Two()
    model.roi.load_state_dict(model.visual.state_dict())
    optimizer = torch.optim.AdamW(model.parameters())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(5):
        for parameter in model.parameters():
            parameter.grad = torch.linspace(-1, 1, parameter.numel()).view_as(parameter)
        optimizer.step()
    assert len(named(tmp_path, model, optimizer, before=before).names[0]) == 2


def test_an_optimizer_of_another_model_has_no_names(tmp_path: Path) -> None:
    other = nn.Linear(5, 5)
    optimizer = torch.optim.AdamW(other.parameters())
    trained(other, optimizer, 1)
    found = named(tmp_path, Two(), optimizer)
    assert found.names == {}
    assert found.naming == optimizers.NO_FIT
    assert found.may_hold("visual.weight")


@pytest.mark.parametrize(
    "payload",
    [
        [],
        {"state": {}},
        {"state": {}, "param_groups": [{"lr": 1.0}]},
        {"state": {}, "param_groups": [{"params": ["weight", 0]}]},
        {"state": {}, "param_groups": [{"params": [0]}, {"params": [0]}]},
    ],
)
def test_what_is_no_optimizer_is_refused(payload: object) -> None:
    with pytest.raises(Unreadable, match=r"^optimizer.pt: "):
        optimizers.read(payload, Source("optimizer.pt"))


@pytest.mark.parametrize("step", [float("nan"), float("inf"), "three", None, 1 << 80])
def test_a_senseless_step_is_no_step(step: object) -> None:
    read = optimizers.read({"state": {0: {"step": step}}, "param_groups": [{"params": [0]}]}, Source("optimizer.pt"))
    assert read.states[0].step is None
