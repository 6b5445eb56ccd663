"""What is dropped into other people's repositories: it parses, and does what it says as far as it can here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from fgclip_doctor.config import read_config
from fgclip_doctor.registry import installed_checks
from tests.live.test_gate import TRAINING

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/ci.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def loaded(text: str) -> Any:
    return yaml.safe_load(text)


def scripts_on_path(directory: Path, programs: dict[str, str]) -> dict[str, str]:
    """An environment in which these programs are shell scripts."""
    for name, body in programs.items():
        script = directory / "bin" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(f"#!/bin/sh\n{body}\n")
        script.chmod(0o755)
    return {**os.environ, "PATH": f"{directory / 'bin'}{os.pathsep}{os.environ['PATH']}"}


def test_the_action_judges_a_command_as_its_inputs_say(tmp_path: Path) -> None:
    action = loaded((ROOT / "action.yml").read_text("utf-8"))
    judge = action["runs"]["steps"][1]
    (tmp_path / "train.py").write_text(TRAINING)
    summary = tmp_path / "summary.md"
    given = {
        "command": f"{sys.executable} train.py --detached",
        "steps": "12",
        "sarif": "doctor.sarif",
        "python": sys.executable,
    }
    inputs = {name: given.get(name, one["default"]) for name, one in action["inputs"].items()}
    variables = {
        name: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda match: inputs[match[1]], value)
        for name, value in judge["env"].items()
    }
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", judge["run"]],
        cwd=tmp_path,
        env={**os.environ, **variables, "GITHUB_STEP_SUMMARY": str(summary)},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 1, done.stderr
    assert re.search(r"^::error file=.*title=FGD103", done.stdout, re.MULTILINE)
    assert "FGD103" in summary.read_text()
    assert '"ruleId": "FGD103"' in (tmp_path / "doctor.sarif").read_text()


def test_every_input_that_the_page_gives_is_one_of_the_action() -> None:
    inputs = loaded((ROOT / "action.yml").read_text("utf-8"))["inputs"]
    workflow = loaded(blocks("yaml")[0])
    (step,) = [one for one in workflow["jobs"]["doctor"]["steps"] if "fgclip-doctor/" in one.get("uses", "")]
    assert set(step["with"]) <= set(inputs)


def test_the_hooks_of_the_page_are_those_of_the_repository_and_their_commands_exist(tmp_path: Path) -> None:
    hooks = {hook["id"]: hook for hook in loaded((ROOT / ".pre-commit-hooks.yaml").read_text("utf-8"))}
    (page,) = [loaded(block) for block in blocks("yaml") if block.startswith("repos:")]
    assert {hook["id"] for hook in page["repos"][0]["hooks"]} == set(hooks)
    data = tmp_path / "annotations.json"
    data.write_text("[]")
    for hook in hooks.values():
        words = hook["entry"].split()
        done = subprocess.run(
            [sys.executable, "-m", "fgclip_doctor", *words[1:], "--help"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0
        assert re.compile(hook["files"])


def test_the_gitlab_snippet_names_a_report_that_its_command_writes() -> None:
    (job,) = [loaded(block)["doctor"] for block in blocks("yaml") if block.startswith("doctor:")]
    assert f"--output {job['artifacts']['reports']['junit']}" in job["script"][1]
    assert "--format junit" in job["script"][1]


@pytest.mark.parametrize(("gate", "trains"), [(0, True), (1, False), (2, False)])
def test_the_slurm_prologue_trains_only_after_the_gate(tmp_path: Path, gate: int, trains: bool) -> None:
    (script,) = blocks("bash")
    body = f'echo "$@" >> {tmp_path}/called; [ "$1" = gate ] && exit {gate}; exit 0'
    environment = scripts_on_path(tmp_path, {"fgclip-doctor": body}) | {"SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "2"}
    done = subprocess.run(["bash", "-c", script], env=environment, cwd=tmp_path, check=False, timeout=60)
    called = (tmp_path / "called").read_text().splitlines()
    assert [line.split()[0] for line in called] == (["gate", "watch"] if trains else ["gate"])
    assert done.returncode == gate
    assert "--nproc-per-node 2 train.py" in called[0]


def test_the_configuration_of_the_page_is_read(tmp_path: Path) -> None:
    (text,) = blocks("toml")
    tomllib.loads(text)
    (tmp_path / "pyproject.toml").write_text(text)
    config = read_config(tmp_path / "pyproject.toml")
    config.check_against(installed_checks()[0])
    assert config.set_aside[0]["reason"] == "normalised on read"
    assert config.plan.bank_on == 50


@pytest.mark.parametrize("name", ["plain_pytorch", "hf_trainer"])
def test_the_examples_record_themselves(tmp_path: Path, name: str) -> None:
    shutil.copy(ROOT / "examples" / f"{name}.py", tmp_path)
    program = f"import torch; torch.set_num_threads(1); import {name}; {name}.main('run', steps=12)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr
    (said,) = re.findall(r"now: fgclip-doctor (.*)", done.stdout)
    audit = subprocess.run(
        [sys.executable, "-m", "fgclip_doctor", *said.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert audit.returncode == 0, audit.stdout
    assert "error:" not in audit.stdout
