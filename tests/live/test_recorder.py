"""The recorder sees what a training does, and changes none of it."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fgclip_doctor.live import looks as looking
from fgclip_doctor.live import subject
from fgclip_doctor.live.fetch import Fetcher, together
from fgclip_doctor.live.looks import Looks
from fgclip_doctor.live.recorder import Recorder, watching
from fgclip_doctor.live.subject import Subject
from fgclip_doctor.recorded import UNHELD
from fgclip_doctor.sources.recording import read


class Pair(nn.Module):
    """Two towers of one layer, a head that no loss reaches, dropout, and a bank in a plain attribute's hands."""

    def __init__(self) -> None:
        super().__init__()
        self.eye = nn.Sequential(nn.Linear(16, 32), nn.Dropout(0.1), nn.Linear(32, 8))
        self.ear = nn.Linear(16, 8)
        self.unused = nn.Linear(8, 8)
        self.sharpness = nn.Parameter(torch.tensor(2.66))
        self.register_buffer("memory", torch.randn(32, 8))
        self.use_memory = False

    def forward(self, images: Tensor, texts: Tensor) -> Tensor:
        image_features = F.normalize(self.eye(images), dim=-1)  # (B, 8)
        text_features = F.normalize(self.ear(texts), dim=-1)  # (B, 8)
        logits = self.sharpness.exp() * image_features @ text_features.T  # (B, B)
        labels = torch.arange(len(images))
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def train(directory: Path | None, *, steps: int = 30, accumulation: int = 2, compiled: bool = False) -> list[bytes]:
    """Losses and final weights, as bytes."""
    recorder = Recorder(directory) if directory else None
    if recorder:
        recorder.start()
    torch.manual_seed(0)
    model = Pair()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    called: Any = torch.compile(model, backend="eager") if compiled else model
    seen: list[bytes] = []
    try:
        for _ in range(steps):
            optimizer.zero_grad()
            for _ in range(accumulation):
                images = torch.randn(4, 16)
                loss = called(images, images + 0.1 * torch.randn(4, 16)) / accumulation
                loss.backward()
                seen.append(loss.detach().numpy().tobytes())
            optimizer.step()
            scheduler.step()
    finally:
        if recorder:
            recorder.stop(0)
    return [
        *seen,
        *(one.detach().numpy().tobytes() for one in model.parameters()),
        torch.get_rng_state().numpy().tobytes(),
    ]


def records(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "rank-0.000.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("compiled", [False, True])
def test_losses_weights_and_random_state_are_those_of_an_unwatched_run(tmp_path: Path, compiled: bool) -> None:
    assert train(tmp_path, compiled=compiled) == train(None, compiled=compiled)


def test_each_clock_is_counted_by_itself(tmp_path: Path) -> None:
    train(tmp_path, steps=30, accumulation=2)
    end = records(tmp_path)[-1]
    assert end["kind"] == "end"
    assert {clock: end[clock] for clock in ("forwards", "backwards", "steps", "scheduler_steps", "zero_grads")} == {
        "forwards": 60,
        "backwards": 60,
        "steps": 30,
        "scheduler_steps": 30,
        "zero_grads": 30,
    }


def test_a_loss_is_seen_where_it_is_computed(tmp_path: Path) -> None:
    train(tmp_path)
    losses = [one for one in records(tmp_path) if one["kind"] == "loss"]
    assert {one["name"].partition(" ")[0].partition(":")[0] for one in losses} == {"test_recorder.py"}
    assert {(one["anchors"], one["candidates"], one["first"], one["last"]) for one in losses} == {(4.0, 4.0, 0.0, 0.0)}
    assert {one["of"] for one in losses} == {"softmax"}


def test_further_candidates_are_told_at_their_very_forward_between_looks(tmp_path: Path) -> None:
    watcher = Recorder(tmp_path)
    watcher.start()
    tower = nn.Linear(16, 8)
    optimizer = torch.optim.SGD(tower.parameters(), lr=0.1)
    for step in range(30):
        for forward in range(2):
            features = F.normalize(tower(torch.randn(4, 16)), dim=-1)
            logits = [features @ features.T, features @ torch.ones(4, 8).T, features @ torch.ones(2, 8).T]
            if (step, forward) == (25, 1):  # of three losses of one line, the second alone
                logits[1] = features @ torch.ones(64, 8).T
            torch.stack([F.cross_entropy(one, torch.zeros(4, dtype=torch.long)) for one in logits]).sum().backward()
        optimizer.step()
    watcher.stop(0)
    seen = records(tmp_path)
    assert not any(one["kind"] == "loss" and one["step"] == 25 for one in seen)
    names = {one["site"]: one["name"][-3:] for one in seen if one["kind"] == "loss"}
    columns = [
        (one["step"], one["forward"], one["columns"], names[one["site"]]) for one in seen if one["kind"] == "columns"
    ]
    assert [one[:3] for one in columns[:3]] == [
        (0, 2, 4),
        (0, 2, 4),
        (0, 2, 2),
    ]  # the model is found in a backward pass
    assert columns[3:] == [(25, 52, 64, " #2"), (26, 53, 4, " #2")]
    recording = read(tmp_path).recording
    assert recording is not None
    told = {site.name[-3:]: [one.columns for one in site.changes] for site in recording.ranks[0].sites}
    assert told[" #2"] == [4, 64, 4], "the first shape, which is told before its loss is measured, is what grows"


def test_who_had_a_gradient_is_written_once(tmp_path: Path) -> None:
    train(tmp_path)
    reached = [name for one in records(tmp_path) if one["kind"] == "gradients" for name in one["reached"]]
    assert sorted(reached) == sorted(set(reached))
    assert {"eye.0.weight", "ear.bias", "sharpness"} <= set(reached)
    assert not {"unused.weight", "unused.bias"} & set(reached)


def test_what_was_patched_is_as_it_was_after_the_end(tmp_path: Path) -> None:
    before = (torch.autograd.backward, torch._C._nn.cross_entropy_loss, torch.optim.Optimizer.__init__, torch.compile)
    train(tmp_path, steps=2)
    after = (torch.autograd.backward, torch._C._nn.cross_entropy_loss, torch.optim.Optimizer.__init__, torch.compile)
    assert before == after
    assert "__call__" not in Pair.__dict__


def test_a_resumed_run_is_known_by_the_updates_that_adam_had_applied(tmp_path: Path) -> None:
    model = Pair()
    optimizer = torch.optim.AdamW(model.parameters())

    def step() -> None:
        model(torch.randn(4, 16), torch.randn(4, 16)).backward()
        optimizer.step()

    for _ in range(7):
        step()
    with watching(model, optimizer, tmp_path):
        step()
    assert read(tmp_path).watched.first.updates_before == 7


@pytest.mark.parametrize(("kept", "updates"), [(torch.tensor(7.0), 7), (7, 7), (None, 0)])
def test_updates_are_read_however_an_optimizer_keeps_them(kept: object, updates: int) -> None:
    model, seen = Pair(), list[dict[str, Any]]()
    optimizer = torch.optim.AdamW(model.parameters())
    if kept is not None:
        optimizer.state[model.sharpness]["step"] = kept
    Looks(Subject([("", model)], [optimizer]), Fetcher(), lambda kind, **fields: seen.append({kind: fields})).begin(
        optimizer
    )
    assert seen == [{"begun": {"updates": updates}}]


def test_moments_are_those_of_adam_by_part(tmp_path: Path) -> None:
    model = Pair()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with watching(model, optimizer, tmp_path):
        for _ in range(10):
            optimizer.zero_grad()
            model(torch.randn(4, 16), torch.randn(4, 16)).backward()
            optimizer.step()
    series = read(tmp_path).series
    assert "first moment/unused" not in series
    states = [optimizer.state[one] for one in (model.ear.weight, model.ear.bias)]
    first, second = (torch.cat([of[name].reshape(-1) for of in states]) for name in ("exp_avg", "exp_avg_sq"))
    assert series["first moment/ear"].steps.tolist() == [10]
    assert series["first moment/ear"].values[0] == pytest.approx(first.square().mean().sqrt().item())
    assert series["second moment/ear"].values[0] == pytest.approx(second.mean().sqrt().item())


def test_a_part_of_which_a_rank_holds_nothing_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)]), list[dict[str, Any]]()
    whole = subject.sample
    monkeypatch.setattr(looking, "sample", lambda one: whole(one)[: 0 if one.shape == (4, 4) else None])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    looks = Looks(Subject([("", model)], [optimizer]), Fetcher(), lambda kind, **fields: seen.append({kind: fields}))
    sum((one(torch.ones(4)).sum() for one in model), torch.zeros(())).backward()
    looks.sample_before(optimizer)
    before = model[1].bias.detach().clone()
    optimizer.step()
    looks.updates(10)
    looks.moments(10)
    [ratios] = [one["updates"]["ratios"] for one in seen if "updates" in one]
    assert ratios["1"] == pytest.approx((model[1].bias - before).norm().item() / before.norm().item(), rel=1e-4)
    [moments] = [one["moments"]["values"] for one in seen if "moments" in one]
    assert moments["1"] == pytest.approx([0.1, 0.001**0.5], rel=1e-4)  # of a gradient of 1, once


def test_values_of_several_devices_are_brought_to_an_accelerator() -> None:
    here, there = torch.ones(2), torch.ones(2, device="meta")
    assert {one.device.type for one in together([here, there])} == {"meta"}
    assert together([here, here])[0] is here


def test_a_second_stage_with_an_optimizer_of_its_own_is_looked_at_like_a_run(tmp_path: Path) -> None:
    """A probe that trained a tower first is gone then, and the heads join."""
    recorder = Recorder(tmp_path)
    recorder.start()
    model, probe = Pair(), nn.Linear(8, 4)
    optimizer = torch.optim.Adam([*model.eye.parameters(), *probe.parameters()])
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(probe(model.eye(torch.randn(6, 16))), torch.randint(0, 4, (6,))).backward()
        optimizer.step()
    first = {name for name, one in read(tmp_path).watched.first.parameters.items() if one.group is not None}
    del optimizer, probe
    gc.collect()  # now and not at some later step, for the numbers below
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(12):
        optimizer.zero_grad()
        model(torch.randn(4, 16), torch.randn(4, 16)).backward()
        optimizer.step()
    recorder.stop(0)
    run = read(tmp_path)
    held = {name for name, one in run.watched.first.parameters.items() if one.group is not None}
    assert not run.problems
    assert ("model.ear.weight" in first, "model.ear.weight" in held) == (False, True)
    steps = run.series["learning_rate"].steps.tolist()
    assert steps == [1, 2, 3, 5, 10, 15, 20, 30, 31, 32, 33, 35, 40]
    assert run.watched.step == 42


def test_where_masters_are_updated_the_model_is_watched(tmp_path: Path) -> None:
    """As DeepSpeed's wrappers do: flat copies in the optimizer's groups, one step for each, and one before the run."""
    recorder = Recorder(tmp_path)
    recorder.start()
    model = Pair().bfloat16()
    groups = [[*model.eye.parameters(), model.sharpness], [*model.ear.parameters(), *model.unused.parameters()]]
    optimizer = torch.optim.AdamW([{"params": group, "lr": 1e-2} for group in groups])
    masters = [torch.cat([one.detach().float().reshape(-1) for one in group]).requires_grad_() for group in groups]

    def update() -> None:
        for of, group, master in zip(optimizer.param_groups, groups, masters, strict=True):
            gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in group]
            master.grad = torch.cat([one.float().reshape(-1) for one in gradients])
            of["params"] = [master]
            optimizer.step()
            of["params"] = []
            values = master.detach().split([one.numel() for one in group])
            for one, value in zip(group, values, strict=True):
                one.data.copy_(value.view_as(one))
                one.grad = None

    for of in optimizer.param_groups:
        of["params"] = []
    update()  # of nothing, to make room for its state
    for _ in range(10):
        for _ in range(2):
            images = torch.randn(4, 16).bfloat16()
            model(images, images).backward()
        update()
    recorder.stop(0)
    run = read(tmp_path)
    parameters = run.watched.first.parameters
    clocks = run.watched.first.clocks
    assert (clocks["steps"], clocks["forwards"], clocks["backwards"]) == (10, 20, 20)
    assert {name for name, one in parameters.items() if one.gradient == "none"} == {"unused.weight", "unused.bias"}
    assert [parameters[name].group for name in ("eye.0.weight", "ear.weight")] == [0, 1]
    assert not {"grad_norm", "update ratio/ear"} & run.series.keys()
    assert not model.ear.weight._backward_hooks


def test_towers_with_an_optimizer_each_are_watched_together(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.start()
    pictures, words = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 8)), nn.Linear(16, 8)
    of_pictures, of_words = (torch.optim.AdamW(one.parameters()) for one in (pictures, words))
    for _ in range(12):
        x = torch.randn(4, 16)
        logits = 10 * F.normalize(pictures(x), dim=-1) @ F.normalize(words(x), dim=-1).T
        F.cross_entropy(logits, torch.arange(4)).backward()
        for optimizer in (of_pictures, of_words):
            optimizer.step()
            optimizer.zero_grad()
    recorder.stop(0)
    rank = read(tmp_path).watched.first
    assert {name: one.group for name, one in rank.parameters.items() if one.name.endswith("weight")} == {
        "pictures.0.weight": 0,
        "pictures.2.weight": 0,
        "words.weight": 1,
    }
    assert {one.gradient for one in rank.parameters.values()} == {"some"}
    assert rank.clocks["steps"] == 12


@pytest.mark.parametrize("momentum", [0.9, 1.0])
def test_what_no_optimizer_holds_is_told_by_a_digest(tmp_path: Path, momentum: float) -> None:
    model = nn.ModuleDict({"tower": nn.Linear(16, 8), "tower_ema": nn.Linear(16, 8).requires_grad_(False)})
    optimizer = torch.optim.AdamW(model["tower"].parameters(), lr=1e-2)
    with watching(model, optimizer, tmp_path):
        for _ in range(30):
            features = F.normalize(model["tower"](torch.randn(4, 16)), dim=-1)
            F.cross_entropy(features @ features.T, torch.arange(4)).backward()
            optimizer.step()
            for own, copy in zip(model["tower"].parameters(), model["tower_ema"].parameters(), strict=True):
                copy.mul_(momentum).add_(own.detach(), alpha=1 - momentum)
    recording = read(tmp_path).recording
    assert recording is not None
    digests = recording.first.digests[UNHELD]
    assert sorted(digests) == [10, 20, 30]
    assert len(set(digests.values())) == (1 if momentum == 1 else 3)


def test_two_schedulers_that_step_once_each_are_one_clock(tmp_path: Path) -> None:
    towers = [nn.Linear(16, 8), nn.Linear(16, 8)]
    optimizers = [torch.optim.SGD(one.parameters(), lr=0.1) for one in towers]
    schedulers = [torch.optim.lr_scheduler.CosineAnnealingLR(one, 20) for one in optimizers]
    recorder = Recorder(tmp_path)
    recorder.start()
    for _ in range(10):
        rows = [F.normalize(tower(torch.randn(4, 16)), dim=-1) for tower in towers]
        F.cross_entropy(rows[0] @ rows[1].T, torch.arange(4)).backward()
        for one in (*optimizers, *schedulers):
            one.step()
    recorder.stop(0)
    assert recorder.clocks["scheduler_steps"] == 10
