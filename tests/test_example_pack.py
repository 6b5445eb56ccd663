"""The pack of the documentation, installed as any other would be, finds what it says, and is configured by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

PACK = Path(__file__).parents[1] / "examples" / "pack"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(target), str(PACK)], check=True)
    return target


def doctor(installed: Path, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", "fgclip_doctor", *words]
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, check=False)


def codes(installed: Path, directory: Path, scale: float, *words: str) -> set[str]:
    save_file({"logit_scale": np.array(scale, dtype=np.float32)}, directory / "model.safetensors")
    done = doctor(installed, "audit", "model.safetensors", "--select", "LAB", "--format", "json", *words, cwd=directory)
    return {one["code"] for one in json.loads(done.stdout)["findings"]}


def test_its_rules_are_listed_and_explained_beside_ours(installed: Path, tmp_path: Path) -> None:
    listed = doctor(installed, "rules", cwd=tmp_path).stdout
    assert "LAB001  scale-too-soft" in listed
    assert "FGD201  bank-never-active" in listed
    assert "keep the scale out of weight decay" in doctor(installed, "explain", "LAB001", cwd=tmp_path).stdout


def test_it_fires_below_its_threshold_which_the_configuration_sets(installed: Path, tmp_path: Path) -> None:
    assert codes(installed, tmp_path, 1.9) == {"LAB001"}
    assert codes(installed, tmp_path, 2.1) == set()
    config = tmp_path / "doctor.toml"
    config.write_text("[tool.fgclip-doctor.thresholds.scale-too-soft]\nleast = 3.0\n")
    assert codes(installed, tmp_path, 2.1, "--config", "doctor.toml") == {"LAB001"}


def test_it_is_skipped_without_a_scale(installed: Path, tmp_path: Path) -> None:
    save_file({"weight": np.ones((4, 4), dtype=np.float32)}, tmp_path / "model.safetensors")
    done = doctor(installed, "audit", "model.safetensors", "--select", "LAB", "--format", "json", cwd=tmp_path)
    assert [one["code"] for one in json.loads(done.stdout)["skipped"]] == ["LAB001"]
    assert done.returncode == 2, "nothing could be checked"
