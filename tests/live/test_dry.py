"""What a dry run sees of the model beside what it saves, and that it leaves everything as it was."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fgclip_doctor.live import dry
from fgclip_doctor.live.subject import Subject

ROWS, WIDTH = 18, 4  # rows for six batches of three


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


class Banked(nn.Module):
    """A bank with its pointer, saved or not, and what healthy models keep beside."""

    def __init__(self, *, persistent: bool = True) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("queue", unit(ROWS, WIDTH), persistent=persistent)
        self.register_buffer("queue_ptr", torch.zeros((), dtype=torch.long), persistent=persistent)
        self.register_buffer("positions", torch.arange(ROWS), persistent=False)  # constant
        self.features: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        features = F.normalize(self.head(images), dim=-1)  # (B, WIDTH)
        self.features = features.detach()  # what was computed last
        self.graph = features
        place = int(self.queue_ptr)
        self.queue[place : place + len(images)] = self.features
        self.queue_ptr.fill_((place + len(images)) % ROWS)
        return features.sum()


class Shifting(Banked):
    """A second bank, of plain attributes, as a tensor and as a list; and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.shifted = unit(ROWS, WIDTH)
        self.batches: list[Tensor] = []
        self.forwards = 0

    def forward(self, images: Tensor) -> Tensor:
        loss: Tensor = super().forward(images)
        assert self.features is not None
        self.shifted = torch.cat([self.features, self.shifted])[:ROWS]
        self.batches = [*self.batches, self.features][-3:]
        self.forwards += 1
        return loss


class Keeping(Shifting):
    """The same, which saves it by itself."""

    def get_extra_state(self) -> dict[str, Any]:
        return {"shifted": self.shifted, "batches": self.batches, "forwards": self.forwards}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class Forgetful(Banked):
    def load_state_dict(self, state: Any, *args: Any, **kwargs: Any) -> Any:
        return super().load_state_dict({**state, "queue": torch.zeros_like(self.queue)}, *args, **kwargs)


class Late(Banked):
    def forward(self, images: Tensor) -> Tensor:
        if not hasattr(self, "made"):
            self.register_buffer("made", torch.zeros(3))
        return super().forward(images)  # type: ignore[no-any-return]


class Uncopied(Banked):
    def __deepcopy__(self, memo: Any) -> nn.Module:
        raise TypeError("holds a socket")


def dry_run(model: nn.Module, steps: int = 6) -> dict[str, dict[str, Any]]:
    """The records of a dry run over some steps, by kind."""
    torch.manual_seed(1)
    records: dict[str, dict[str, Any]] = {}

    def write(kind: str, **fields: Any) -> None:
        records[kind] = fields

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    state = dry.State(Subject([("", model)], [optimizer]), write)
    for _ in range(steps):
        model(torch.randn(3, WIDTH)).backward()
        optimizer.step()
        state.look()
    state.finish(steps)
    return records


def test_a_bank_that_is_saved_leaves_nothing_to_tell() -> None:
    records = dry_run(Banked())
    expected = {"step": 6, "unsaved": [], "changed": [], "late": [], "failed": "", "skipped": ""}
    assert records["state"] == expected


def test_a_bank_that_is_not_saved_is_told_with_its_pointer() -> None:
    told = {one["name"]: one for one in dry_run(Banked(persistent=False))["state"]["unsaved"]}
    assert {name: one["bank"] for name, one in told.items()} == {"queue": True, "queue_ptr": False}


def test_plain_attributes_are_told_unless_the_model_saves_them_by_itself() -> None:
    told = {one["name"]: one for one in dry_run(Shifting())["state"]["unsaved"]}
    assert {name: (one["kind"], one["bank"], one["counts"]) for name, one in told.items()} == {
        "shifted": ("tensor", True, False),
        "batches": ("list", True, False),
        "forwards": ("number", False, True),
    }
    assert (told["forwards"]["first"], told["forwards"]["last"]) == (0, 6)
    assert dry_run(Keeping())["state"]["unsaved"] == []


@pytest.mark.parametrize(("model", "field", "value"), [(Forgetful, "changed", ["queue"]), (Late, "late", ["made"])])
def test_what_a_load_changes_is_named(model: Callable[[], nn.Module], field: str, value: list[str]) -> None:
    assert dry_run(model())["state"][field] == value


def test_a_model_that_refuses_its_own_state_is_quoted() -> None:
    class Renaming(Banked):
        def load_state_dict(self, state: Any, *args: Any, **kwargs: Any) -> Any:
            return super().load_state_dict({f"model.{key}": one for key, one in state.items()}, *args, **kwargs)

    assert "Missing key" in dry_run(Renaming())["state"]["failed"]


def test_what_can_not_be_compared_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "holds a socket" in dry_run(Uncopied())["state"]["skipped"]
    monkeypatch.setattr(dry, "MAX_MODEL", 10)
    assert "of which no copy is made" in dry_run(Banked())["state"]["skipped"]


def test_the_model_and_all_random_states_stay_as_they_were() -> None:
    def trained(watched: bool) -> tuple[list[Tensor], list[float]]:
        for seed in (torch.manual_seed, random.seed, np.random.seed):
            seed(3)
        model = Shifting()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        state = dry.State(Subject([("", model)], [optimizer]), lambda kind, **fields: None) if watched else None
        for step in range(6):
            model(torch.randn(3, WIDTH)).backward()
            optimizer.step()
            if state:
                state.look()
                if step == 2:
                    state.finish(step)
        drawn = [random.random(), float(np.random.rand()), float(torch.rand(()))]
        return [*model.state_dict().values(), model.shifted, *model.batches], drawn

    (plain, drawn), (watched, drawn_too) = trained(False), trained(True)
    assert all(map(torch.equal, plain, watched))
    assert drawn == drawn_too


def test_a_model_is_given_its_first_batch_again_whatever_becomes_of_it() -> None:
    replay, model = dry.Replay(), nn.Linear(2, 2)
    first = torch.ones(2)
    (given,), _ = replay(model, (first,), {})
    given.zero_()
    first.zero_()
    (again,), words = replay(model, (torch.full((2,), 5.0),), {"texts": 1})
    assert (again.tolist(), words) == ([1.0, 1.0], {})
