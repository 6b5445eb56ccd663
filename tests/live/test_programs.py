"""Programs that have never heard of the doctor, started by `watch -- CMD`: faults are named, nothing else changes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROGRAMS = Path(__file__).parent / "programs"
PLAIN = [sys.executable, str(PROGRAMS / "plain.py")]
TRAINER = [sys.executable, str(PROGRAMS / "with_trainer.py")]
RANKS = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", PLAIN[1]]
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def run(command: list[str], directory: Path, *, expect: int = 0) -> str:
    """What a command says on stderr."""
    done = subprocess.run(
        command, cwd=directory, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == expect, done.stderr
    return done.stderr


def found(command: list[str], directory: Path) -> set[str]:
    """The codes of errors and warnings that watching a command tells."""
    watch = [sys.executable, "-m", "fgclip_doctor", "watch", "--record", "seen", "--interval", "0.5", "--", *command]
    lines = run(watch, directory).splitlines()
    told = [line.split() for line in lines if line.startswith(("error: ", "warning: "))]
    assert any("checks passed" in line for line in lines)
    return {words[1] for words in told}


@pytest.mark.parametrize(
    ("fault", "codes"),
    [
        ("", set()),
        ("queue_off", {"FGD201"}),
        ("detached", {"FGD103"}),
        ("warmup_clock", {"FGD401"}),
        ("eval_mode", {"FGD110"}),
    ],
)
def test_a_plain_script(fault: str, codes: set[str], tmp_path: Path) -> None:
    assert found([*PLAIN, "--fault", fault], tmp_path) == codes


@pytest.mark.parametrize(
    ("fault", "codes"),
    [("", set()), ("bank_off", {"FGD201"}), ("head_detached", {"FGD103"}), ("warmup_clock", {"FGD401"})],
)
def test_a_script_with_the_trainer_of_transformers(fault: str, codes: set[str], tmp_path: Path) -> None:
    assert found([*TRAINER, "run", fault], tmp_path) == codes


@pytest.mark.parametrize(
    ("fault", "codes"), [("", set()), ("own_queues", {"FGD208", "FGD804"}), ("same_pairs", {"FGD805", "FGD206"})]
)
def test_two_ranks(fault: str, codes: set[str], tmp_path: Path) -> None:
    told = found([*RANKS, "--fault", fault, "--accumulation-steps", "2"], tmp_path)
    assert told <= codes
    assert [code in told for code in ("FGD208", "FGD805")] == [fault == "own_queues", fault == "same_pairs"]


@pytest.mark.parametrize(
    "command", [[*PLAIN], [*RANKS, "--accumulation-steps", "2", "--updates", "25"]], ids=["alone", "ranks"]
)
def test_losses_and_weights_are_those_of_an_unwatched_run(command: list[str], tmp_path: Path) -> None:
    found([*command, "--out", "watched"], tmp_path)
    run([*command, "--out", "alone"], tmp_path)
    ranks = sorted(file.suffix for file in tmp_path.glob("alone.*"))
    assert ranks == ([".0", ".1"] if "--nproc-per-node=2" in command else [".0"])
    for rank in ranks:
        watched, alone = (torch.load(tmp_path / f"{name}{rank}") for name in ("watched", "alone"))
        assert torch.equal(watched["losses"], alone["losses"])
        assert watched["model"].keys() == alone["model"].keys()
        assert all(torch.equal(value, alone["model"][name]) for name, value in watched["model"].items())
