"""What only a dry run can judge, by the real command: saving, resuming, overfitting, plans and configurations."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

TRAINING = """
import sys, time
import torch
from torch import nn
from torch.nn import functional as F

torch.set_num_threads(1)
torch.manual_seed(0)
asked = set(sys.argv)
ROWS, BATCH = 256, 8


class Towers(nn.Module):
    def __init__(self):
        super().__init__()
        self.vision_model, self.text_model = (nn.Sequential(nn.Linear(16, 8)) for _ in range(2))
        self.visual_projection, self.text_projection = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))
        if "--bank" in asked:
            saved = "--unsaved" not in asked
            rows = F.normalize(torch.randn(2, ROWS, 8), dim=-1)
            self.register_buffer("image_queue", rows[0], persistent=saved)
            self.register_buffer("text_queue", rows[1], persistent=saved)
            self.register_buffer("queue_ptr", torch.zeros((), dtype=torch.long), persistent=saved)

    def forward(self, images, texts):
        image = F.normalize(self.visual_projection(self.vision_model(images)), dim=-1)
        text = F.normalize(self.text_projection(self.text_model(texts)), dim=-1)
        if "--detached" in asked:
            image, text = image.detach(), text.detach()
        candidates = text
        if "--bank" in asked:
            place = int(self.queue_ptr)
            candidates = torch.cat([text, self.text_queue[:place].clone()])
            self.image_queue[place : place + BATCH] = image.detach()
            self.text_queue[place : place + BATCH] = text.detach()
            self.queue_ptr.fill_((place + BATCH) % ROWS)
        logits = self.logit_scale.exp() * image @ candidates.T
        return F.cross_entropy(logits, torch.arange(BATCH))


model = Towers()
if "--frozen" in asked:
    model.text_projection.requires_grad_(False)
trained = [one for one in model.parameters() if one.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 12))
parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
if "--resume" in asked:
    saved = torch.load("checkpoint.pt")
    for name in ["model"] if "--weights-only" in asked else parts:
        parts[name].load_state_dict(saved[name])
for step in range(1_000_000):
    images = torch.randn(BATCH, 16)
    model(images, images + 0.1 * torch.randn(BATCH, 16)).backward()
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()
    if step == 9 and "--resume" not in asked:
        torch.save({name: part.state_dict() for name, part in parts.items()}, "checkpoint.pt")
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


def report(tmp_path: Path, *arguments: str) -> tuple[int, dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """Exit code, the report, and its findings at warning or above by code."""
    done = gate(tmp_path, "--format", "json", *arguments)
    assert done.stdout, done.stderr
    parsed = json.loads(done.stdout)
    found: dict[str, list[dict[str, Any]]] = {}
    for one in parsed["findings"]:
        if one["severity"] != "info":
            found.setdefault(one["code"], []).append(one)
    return done.returncode, parsed, found


def skipped(parsed: dict[str, Any]) -> dict[str, str]:
    return {one["code"]: one["reason"] for one in parsed["skipped"]}


def test_a_bank_that_is_saved_goes_on_after_a_resume(tmp_path: Path, training: Path) -> None:
    again = f"{sys.executable} {training} --bank --resume"
    asked = ["--steps", "12", "--resume", again, "--fact", "candidates=24"]
    code, parsed, found = report(tmp_path, *asked, "--", *again.split()[:-1])
    assert (code, found) == (0, {})
    assert not {"FGD114", "FGD115", "FGD203", "FGD410", "FGD411"} & skipped(parsed).keys()


def test_a_bank_that_is_not_saved_and_a_resume_without_its_state_fail_the_gate(tmp_path: Path, training: Path) -> None:
    words = [sys.executable, str(training), "--bank", "--unsaved"]
    again = " ".join([*words, "--resume", "--weights-only"])
    code, _, found = report(tmp_path, "--steps", "12", "--resume", again, "--fact", "candidates=999", "--", *words)
    assert (code, found.keys()) == (1, {"FGD203", "FGD410", "FGD411"})
    assert {one["where"] for one in found["FGD410"]} == {"Adam's count of steps", "the learning rate", "the pointer"}
    assert found["FGD203"][0]["where"] == "image_queue, queue_ptr, text_queue"


def test_one_batch_is_not_learnt_by_heart_where_nothing_reaches_it(tmp_path: Path, training: Path) -> None:
    command = [sys.executable, str(training), "--detached"]
    _, parsed, found = report(tmp_path, "--steps", "14", "--overfit", "--select", "FGD510", "--", *command)
    assert found.keys() == {"FGD510"}
    assert skipped(parsed) == {}


def test_each_of_several_commands_is_judged_as_far_as_its_time_goes(tmp_path: Path, training: Path) -> None:
    """The second has frozen a head, which fails the gate, unless that was planned."""
    slow = tmp_path / "slow.py"
    slow.write_text(TRAINING.replace("sleep(0.01)", "sleep(1)"))
    frozen = f"{sys.executable} {training} --frozen"
    arguments = ["--steps", "12", "--max-time", "10", "--command", frozen, "--", sys.executable, str(slow)]
    code, parsed, found = report(tmp_path, *arguments)
    assert (code, found.keys()) == (1, {"FGD101"})
    assert found["FGD101"][0]["where"] == f"{frozen}: text_projection.weight"
    ended = [one["why"] for one in parsed["observations"] if one["name"] == "optimizer steps run"]
    assert [why.startswith("ended after --max-time") for why in ended] == [True, False]

    config = tmp_path / "doctor.toml"
    config.write_text('[plan]\nfrozen = ["text_projection.*"]\n')
    assert report(tmp_path, str(tmp_path / "rec" / "2"))[2].keys() == {"FGD101"}
    assert report(tmp_path, "--config", str(config), str(tmp_path / "rec" / "2"))[::2] == (0, {})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--resume", "true", "--", "true"], "no optimizer step of torch was seen"),
        (["--resume", "true", "--config-only", "--", "true"], "--resume goes on from one command that is run"),
        (["--resume", "true", "--command", "true", "--", "true"], "--resume goes on from one command that is run"),
        (["--command", "echo 'open"], "echo 'open: no closing quotation"),
        (["--config-only", "no.bin"], "no.bin: does not exist"),
        (["--config-only", "no.toml"], "no.toml: No such file or directory"),
        ([], "gate takes a PATH, or -- and a command to run"),
    ],
)
def test_what_can_not_be_done_is_one_line_and_2(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = gate(tmp_path, *arguments)
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_configurations_are_judged_from_arguments_settings_and_command_lines(tmp_path: Path) -> None:
    from transformers import TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(tmp_path / "out"), per_device_train_batch_size=4, gradient_accumulation_steps=16, use_cpu=True
    )
    torch.save(arguments, tmp_path / "training_args.bin")
    (tmp_path / "settings.toml").write_text("micro_batch = 4\naccumulation = 16\n")
    line = ["--", "python", "train.py", "--per_device_train_batch_size", "4", "--gradient_accumulation_steps=16"]
    for judged in (["training_args.bin"], ["settings.toml"], line):
        facts = ["--fact", "scale=14.24", "--fact", "dimension=512"]
        _, parsed, _ = report(tmp_path, "--config-only", *facts, *judged)
        told = " ".join(str(one["value"]) for one in parsed["observations"])
        assert " 1.39 " in told, judged  # ln 4
        assert not (tmp_path / "rec").exists()
