"""The gate runs the first steps of a real command, judges them, and leaves nothing behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fgclip_doctor.live.gate import left_behind, run_steps

TRAINING = """
import sys, time
import torch
from torch import nn
from torch.nn import functional as F

torch.set_num_threads(1)
torch.manual_seed(0 if "--seeded" in sys.argv else None or int(time.time() * 1e6) % 2**31)


class Towers(nn.Module):
    def __init__(self):
        super().__init__()
        self.image_encoder = nn.Linear(16, 8)
        self.text_encoder = nn.Linear(16, 8)
        self.visual_projection = nn.Linear(8, 8, bias=False)
        self.text_projection = nn.Linear(8, 8, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))

    def forward(self, images, texts):
        text_features = self.text_projection(self.text_encoder(texts))
        if "--detached" in sys.argv:
            text_features = text_features.detach()
        image_features = F.normalize(self.visual_projection(self.image_encoder(images)), dim=-1)
        logits = self.logit_scale.exp() * image_features @ F.normalize(text_features, dim=-1).T
        return F.cross_entropy(logits, torch.arange(len(images)))


model = Towers()
if "--ranks" in sys.argv:
    torch.distributed.init_process_group("gloo")
    called = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    torch.manual_seed(1 + torch.distributed.get_rank())  # each rank has pairs of its own
else:
    called = model
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)  # which would pull at the scale
for step in range(1_000_000):
    pairs = torch.randn(8, 16)
    called(pairs, pairs + 0.1 * torch.randn(8, 16)).backward()
    optimizer.step()
    optimizer.zero_grad()
    print("step", step, flush=True)
    if "--stuck" in sys.argv and step == 3:
        signal = __import__("signal")
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    time.sleep(0.01)
"""


@pytest.fixture
def training(tmp_path: Path) -> Path:
    script = tmp_path / "train.py"
    script.write_text(TRAINING)
    return script


def gate(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fgclip_doctor", "gate", "--record", str(tmp_path / "rec"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=180)


def report(tmp_path: Path, *arguments: str) -> tuple[int, dict[str, dict[str, str]]]:
    """Exit code, and findings at warning or above by code."""
    done = gate(tmp_path, "--format", "json", *arguments)
    assert done.stdout, done.stderr
    findings = json.loads(done.stdout)["findings"]
    return done.returncode, {one["code"]: one for one in findings if one["severity"] != "info"}


def test_a_sound_command_passes_repeats_itself_and_learns_a_batch_and_nothing_of_it_is_left(
    tmp_path: Path, training: Path
) -> None:
    asked = ["--steps", "14", "--repeat", "--overfit", "--format", "json"]
    done = gate(tmp_path, *asked, "--", sys.executable, str(training), "--seeded")
    judged = json.loads(done.stdout)
    assert (done.returncode, judged["summary"]["errors"], judged["summary"]["warnings"]) == (0, 0, 0)
    assert {"FGD103", "FGD407", "FGD510"} <= set(judged["passed"])
    assert not any(map(left_behind, (tmp_path / "rec", tmp_path / "rec/repeat", tmp_path / "rec/overfit")))


def test_a_tower_without_a_gradient_fails_the_gate_and_a_repeat_without_a_seed_disagrees(
    tmp_path: Path, training: Path
) -> None:
    code, found = report(tmp_path, "--steps", "12", "--repeat", "--", sys.executable, str(training), "--detached")
    assert (code, found.keys()) == (1, {"FGD103", "FGD407"})
    assert "text_projection" in found["FGD103"]["where"]


def test_two_ranks_leave_no_process_behind(tmp_path: Path, training: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(training)]
    local = ["--ignore", "negatives-local"]  # each rank contrasts its own batch here
    assert report(tmp_path, "--steps", "6", *local, "--", *command, "--ranks", "--seeded") == (0, {})
    assert left_behind(tmp_path / "rec") == []


def test_a_command_that_ignores_signals_is_ended(
    tmp_path: Path, training: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fgclip_doctor.live.gate.PATIENCE", (0.5, 0.5, 5.0))
    outcome = run_steps([sys.executable, str(training), "--stuck"], tmp_path / "rec", steps=4, max_time=100)
    assert (outcome.reason, outcome.step, outcome.code) == ("steps", 4, 128 + signal.SIGKILL)
    assert left_behind(tmp_path / "rec") == []


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([signal.SIGINT], 130),
        ([signal.SIGHUP], 129),  # a terminal is closed
        ([signal.SIGTERM, signal.SIGTERM, signal.SIGINT], 143),  # nobody waits, and it takes none of them
    ],
)
def test_a_gate_that_is_stopped_takes_its_command_along(
    tmp_path: Path, training: Path, numbers: list[signal.Signals], expected: int
) -> None:
    command = [sys.executable, "-m", "fgclip_doctor", "gate", "--record", "rec", "--steps", "100000", "--"]
    words = [sys.executable, str(training), *["--stuck"] * (len(numbers) > 1)]
    running = subprocess.Popen([*command, *words], cwd=tmp_path, stderr=subprocess.DEVNULL)
    printed, until = tmp_path / "rec" / "output.txt", time.monotonic() + 60
    while not (printed.exists() and b"step 3" in printed.read_bytes()) and time.monotonic() < until:
        time.sleep(0.1)
    for number in numbers:
        running.send_signal(number)
        time.sleep(0.5)
    assert running.wait(40) == expected
    assert left_behind(tmp_path / "rec") == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sh", "-c", "echo out of luck; exit 3"], "ended with 3 after 0 optimizer steps; it printed: out of luck"),
        (["true"], "no optimizer step of torch was seen"),
        (["no-such-command"], "no-such-command: No such file"),
    ],
)
def test_what_can_not_be_judged_is_one_line_and_2(tmp_path: Path, words: list[str], said: str) -> None:
    done = gate(tmp_path, "--", *words)
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_arguments_alone_are_judged_without_running_anything(tmp_path: Path) -> None:
    words = ["python", "train.py", "--per_device_train_batch_size", "4", "--gradient_accumulation_steps=8"]
    done = gate(tmp_path, "--config-only", "--fact", "scale=14.24", "--fact", "dimension=512", "--", *words)
    assert "4 candidates" in done.stdout or "candidates" in done.stdout
    assert not (tmp_path / "rec").exists()
