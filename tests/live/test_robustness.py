"""Whatever goes wrong in the recorder, or around it, the training doesn't notice; what it computes is never touched."""

from __future__ import annotations

import copy
import gc
import io
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from fgclip_doctor.live import looks, recorder, subject
from fgclip_doctor.live.measured import Losses
from fgclip_doctor.live.recorder import Recorder
from fgclip_doctor.sources import recording
from tests.live.test_recorder import Pair, records, train

PLAIN = Path(__file__).parent / "programs" / "plain.py"
OF_OURS: list[tuple[Any, str]] = [
    *(
        (Recorder, name)
        for name in ("_start", "_enter_backward", "_prepare", "_hook_class", "_find", "_take", "_count_schedule")
    ),
    *(
        (Recorder, name)
        for name in ("_see_loss", "_measure", "_tell_columns", "_before_step", "_after_step", "_finish")
    ),
    *(
        (looks.Looks, name)
        for name in (
            "describe",
            "begin",
            "gradients",
            "sample_before",
            "updates",
            "moments",
            "unheld",
            "scalars",
            "banks",
            "rows",
        )
    ),
    *((recorder, name) for name in ("found_for", "configurations", "Journal", "roots_of", "rank_and_world")),
    *((Losses, name) for name in ("add", "measure")),
    (subject.Subject, "is_first"),
    (recorder.Pace, "stepped"),
    (recorder.Fetcher, "take"),
    (recorder.Journal, "write"),
]


@pytest.fixture(scope="module")
def unwatched() -> list[bytes]:
    return train(None, steps=6)


@pytest.mark.parametrize(("owner", "name"), OF_OURS, ids=[name for _, name in OF_OURS])
def test_an_error_in_any_of_our_hooks_ends_the_watching_alone(
    owner: Any,
    name: str,
    unwatched: list[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a bug of ours")

    monkeypatch.setattr(owner, name, broken)
    assert train(tmp_path, steps=6) == unwatched
    said = capsys.readouterr().err.splitlines()
    assert said == ["fgclip-doctor: watching stopped, the training goes on (ZeroDivisionError: a bug of ours)"]
    assert torch.autograd.backward.__module__ == "torch.autograd"
    assert "__call__" not in Pair.__dict__


def test_a_recording_says_where_an_error_ended_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    updates, calls = looks.Looks.updates, []

    def broken(self: looks.Looks, step: int) -> None:
        calls.append(step)
        if step == 5:
            raise ZeroDivisionError("a bug of ours")
        updates(self, step)

    monkeypatch.setattr(looks.Looks, "updates", broken)
    train(tmp_path)
    assert calls == [1, 2, 3, 5]
    assert records(tmp_path)[-1] == {"kind": "off", "step": 5, "reason": "ZeroDivisionError: a bug of ours"}
    problems = recording.read(tmp_path).problems
    assert [line.partition(": ")[2] for line in problems] == [
        "watching ended at step 5, and the training went on: ZeroDivisionError: a bug of ours"
    ]


@pytest.fixture
def small_files() -> Iterator[None]:
    """Every file ends at 20,000 bytes, as on a disk that is full."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk(tmp_path: Path, small_files: None, capsys: pytest.CaptureFixture[str]) -> None:
    seen = train(tmp_path)
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert (tmp_path / "rank-0.000.jsonl").stat().st_size <= 20_000
    assert recording.read(tmp_path).watched.step > 3  # what was written is there
    assert seen == train(None)


def test_a_directory_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert train(tmp_path / "file" / "inside", steps=3) == train(None, steps=3)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_recording_deleted_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stepped = recorder.Pace.stepped

    def delete(self: recorder.Pace, step: int, spent: float) -> None:
        if step == 3:
            shutil.rmtree(tmp_path / "seen")
        stepped(self, step, spent)

    monkeypatch.setattr(recorder.Pace, "stepped", delete)
    assert train(tmp_path / "seen", steps=6) == train(None, steps=6)


def test_a_training_that_is_killed_leaves_all_that_it_wrote(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fgclip_doctor", "watch", "--record", "seen", "--", sys.executable, str(PLAIN)]
    watched = subprocess.Popen([*command, "--updates", "100000"], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    file = tmp_path / "seen" / "rank-0.000.jsonl"
    step = _wait(lambda: _last_step(file) > 20 and _last_step(file))
    os.kill(json.loads(file.read_text().partition("\n")[0])["pid"], signal.SIGKILL)
    _, said = watched.communicate(timeout=100)
    assert watched.returncode == 128 + signal.SIGKILL
    assert "checks passed" in said  # the summary of what was seen
    assert recording.read(tmp_path / "seen").watched.step >= step


def test_a_watcher_that_is_killed_leaves_the_training_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fgclip_doctor", "watch", "--record", "seen", "--", sys.executable, str(PLAIN)]
    watcher = subprocess.Popen([*command, "--updates", "60", "--out", "out"], cwd=tmp_path, stderr=subprocess.DEVNULL)
    _wait(lambda: _last_step(tmp_path / "seen" / "rank-0.000.jsonl") > 2)
    watcher.kill()
    watcher.wait(timeout=100)
    _wait(lambda: (tmp_path / "out.0").exists())


def _wait(until: Callable[[], Any], seconds: float = 60.0) -> Any:
    end = time.monotonic() + seconds
    while not (value := until()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return value


def _last_step(file: Path) -> int:
    lines = file.read_text().splitlines() if file.exists() else []
    return max((json.loads(line)["step"] for line in lines[:-1] if '"kind":"step"' in line), default=0)


def test_what_is_watched_is_saved_copied_and_pickled_without_us(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = Pair()
    alone = pickle.dumps(plain)
    optimizer = torch.optim.AdamW(plain.parameters())
    watcher = Recorder(tmp_path)
    watcher.start(plain, optimizer)
    plain(torch.zeros(4, 16), torch.zeros(4, 16)).backward()
    plain.zero_grad()
    saved = io.BytesIO()
    torch.save(plain, saved)
    torch.save(optimizer, saved)
    whole = saved.getvalue() + pickle.dumps(plain) + pickle.dumps(copy.deepcopy(plain))
    watcher.stop()
    assert b"fgclip_doctor" not in whole
    assert pickle.dumps(plain) == alone


def test_a_model_that_the_training_drops_is_freed(tmp_path: Path) -> None:
    watcher = Recorder(tmp_path)
    watcher.start()
    model = Pair()
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(3):
        model(torch.randn(4, 16), torch.randn(4, 16)).backward()
        optimizer.step()
    alive = weakref.ref(model)
    del model, optimizer
    gc.collect()
    watcher.stop(0)
    assert alive() is None
    assert records(tmp_path)[-1]["kind"] == "end"


def test_of_two_models_at_once_the_larger_is_watched_and_its_clocks_alone_count(tmp_path: Path) -> None:
    def losses(watched: bool) -> list[float]:
        watcher = Recorder(tmp_path) if watched else None
        if watcher:
            watcher.start()
        torch.manual_seed(0)
        models = [Pair(), nn.Linear(16, 8)]
        optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]
        seen = []
        for _ in range(8):
            for model, optimizer, often in zip(models, optimizers, (1, 2), strict=True):
                for _ in range(often):
                    images, texts = pairs()
                    loss = model(images, texts) if isinstance(model, Pair) else model(images).square().mean()
                    loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    seen.append(float(loss.detach()))
        if watcher:
            watcher.stop(0)
        return seen

    assert losses(watched=True) == losses(watched=False)
    first, end = records(tmp_path)[0], records(tmp_path)[-1]
    assert (first["model"], end["kind"], end["forwards"], end["steps"]) == ("Pair", "end", 8, 8)
    assert end["backwards"] == 24  # whose a backward pass is can't be told


def loop(directory: Path, step: Callable[[Pair, torch.optim.Optimizer], object], *, steps: int = 6) -> dict[str, Any]:
    """The last record of a watched loop."""
    watcher = Recorder(directory)
    watcher.start()
    torch.manual_seed(0)
    model = Pair()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    for _ in range(steps):
        step(model, optimizer)
    watcher.stop(0)
    return records(directory)[-1]


def pairs() -> tuple[Tensor, Tensor]:
    images = torch.randn(4, 16)
    return images, images + 0.1


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_forward_that_checkpointing_computes_again_is_counted_once(reentrant: bool, tmp_path: Path) -> None:
    def step(model: Pair, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        images, texts = pairs()
        loss = checkpoint(model, images.requires_grad_(), texts, use_reentrant=reentrant)
        loss.backward()
        optimizer.step()

    end = loop(tmp_path, step)
    # in a reentrant checkpoint the first pass has no gradients, and can't be told from an evaluation
    seen = {name: end[name] for name in ("forwards", "evaluations", "backwards", "steps")}
    expected = {"forwards": 0, "evaluations": 6} if reentrant else {"forwards": 6, "evaluations": 0}
    assert seen == {**expected, "backwards": 6, "steps": 6}
    of_losses = [one for one in records(tmp_path) if one["kind"] == "loss"]
    assert len(of_losses) <= 12


def test_scaled_gradients_that_overflow_are_steps_skipped(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    made: list[int] = []

    def step(model: Pair, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        made.append(1)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(*pairs()) * (torch.inf if len(made) in (2, 3) else 1.0)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    end = loop(tmp_path, step)
    assert (end["steps"], end["skipped"], end["forwards"]) == (4, 2, 6)


def test_a_closure_that_makes_several_passes_a_step(tmp_path: Path) -> None:
    def step(model: Pair, optimizer: torch.optim.Optimizer) -> None:
        batch = pairs()

        def closure() -> float:
            optimizer.zero_grad()
            loss = model(*batch)
            loss.backward()
            return float(loss.detach())

        closure_of_lbfgs(optimizer, closure)

    end = loop(tmp_path, step)
    assert (end["steps"], end["forwards"], end["backwards"]) == (6, 12, 12)


def closure_of_lbfgs(optimizer: torch.optim.Optimizer, closure: Callable[[], float]) -> None:
    closure()
    optimizer.step(closure)


def test_two_optimizers_of_one_model_hold_all_of_it(tmp_path: Path) -> None:
    watcher = Recorder(tmp_path)
    watcher.start()
    model = Pair()
    first = torch.optim.AdamW(model.eye.parameters())
    second = torch.optim.SGD([*model.ear.parameters(), model.sharpness], lr=0.1)
    for _ in range(5):
        model(*pairs()).backward()
        for optimizer in (second, first):
            optimizer.step()
            optimizer.zero_grad()
    watcher.stop(0)
    run = recording.read(tmp_path)
    assert run.watched.first.clocks["steps"] == 5
    held = {name: one.group for name, one in run.watched.first.parameters.items()}
    assert (held["eye.0.weight"], held["ear.weight"], held["unused.weight"]) == (0, 1, None)
    reached = {name for name, one in run.watched.first.parameters.items() if one.gradient == "some"}
    assert {"eye.0.weight", "ear.weight", "sharpness"} <= reached


def test_a_model_in_parts_that_is_never_called_as_a_whole(tmp_path: Path) -> None:
    def step(model: Pair, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        images, texts = pairs()
        logits = model.sharpness.exp() * F.normalize(model.eye(images)) @ F.normalize(model.ear(texts)).T
        F.cross_entropy(logits, torch.arange(4)).backward()
        optimizer.step()

    loop(tmp_path, step)
    run = recording.read(tmp_path)
    assert run.notes == ["the model is never called as a whole: its backward passes are counted for its forwards"]
    assert run.watched.first.clocks["forwards"] == 6
    assert [site.contrastive for site in run.watched.first.sites] == [True]


def test_modules_and_parameters_of_no_module_go_by_the_names_of_their_variables(tmp_path: Path) -> None:
    watcher = Recorder(tmp_path)
    watcher.start()
    eye, ear, warmth = nn.Linear(16, 8), nn.Linear(16, 8), nn.Parameter(torch.tensor(2.66))
    optimizer = torch.optim.AdamW([*eye.parameters(), *ear.parameters(), warmth])
    for _ in range(3):
        images, texts = pairs()
        logits = warmth.exp() * F.normalize(eye(images)) @ F.normalize(ear(texts)).T
        F.cross_entropy(logits, torch.arange(4)).backward()
        optimizer.step()
    watcher.stop(0)
    names = recording.read(tmp_path).watched.first.parameters
    assert set(names) == {"eye.weight", "eye.bias", "ear.weight", "ear.bias", "warmth"}


def test_forked_workers_of_a_loader_write_nothing(tmp_path: Path) -> None:
    def step(model: Pair, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        for images in DataLoader([torch.randn(16) for _ in range(8)], batch_size=4, num_workers=1):  # type: ignore[arg-type]
            model(images, images).backward()
        optimizer.step()

    end = loop(tmp_path, step, steps=2)
    assert [one.name for one in tmp_path.iterdir()] == ["rank-0.000.jsonl"]
    assert [one["kind"] for one in records(tmp_path)].count("end") == 1
    assert end["forwards"] == 4


def test_no_new_graph_breaks(tmp_path: Path) -> None:
    def graphs(watched: bool) -> dict[str, dict[str, int]]:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        train(tmp_path if watched else None, steps=3, compiled=True)
        counters = torch._dynamo.utils.counters
        return {name: dict(counters[name]) for name in ("stats", "graph_break", "frames")}

    assert graphs(watched=True) == graphs(watched=False)


def test_the_recorder_keeps_nothing_of_a_long_run(tmp_path: Path) -> None:
    watcher = Recorder(tmp_path)
    watcher.start()
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    inputs, labels = torch.eye(2), torch.arange(2)

    def steps(count: int) -> int:
        for _ in range(count):
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    steps(150)
    before, after = steps(50), steps(200)
    tracemalloc.stop()
    watcher.stop(0)
    assert after - before < 20_000
