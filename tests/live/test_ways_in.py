"""However a training is started, it is watched: a shell script, accelerate, a `sitecustomize` of its own, Lightning."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).parent / "programs"
PLAIN = [sys.executable, str(PROGRAMS / "plain.py")]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
SECONDS = 120


def watch(command: list[str], directory: Path, **variables: str) -> set[str]:
    """The codes of errors and warnings that watching a command tells."""
    words = [sys.executable, "-m", "fgclip_doctor", "watch", "--record", "seen", "--interval", "0.5", "--", *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **variables}
    done = subprocess.run(
        words, cwd=directory, env=environment, capture_output=True, text=True, check=False, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr
    told = [line.split() for line in done.stderr.splitlines() if line.startswith(("error: ", "warning: "))]
    return {words[1] for words in told}


def test_a_shell_script(tmp_path: Path) -> None:
    script = tmp_path / "train.sh"
    script.write_text(f'#!/bin/sh\ncd "$1" && "{sys.executable}" "{PLAIN[1]}" --updates 25 --fault detached | cat\n')
    assert watch(["sh", str(script), "."], tmp_path) == {"FGD103"}


@pytest.mark.skipif(find_spec("accelerate") is None, reason="accelerate isn't installed")
def test_accelerate_launch(tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    options = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    assert watch([*launch, *options, PLAIN[1], "--updates", "25", "--fault", "detached"], tmp_path) == {"FGD103"}


def test_a_sitecustomize_that_is_there_runs_too(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "sitecustomize.py").write_text(
        "import os\nwith open(os.environ['PROOF'], 'a') as file:\n    file.write(f'{__name__}\\n')\n"
    )
    paths = os.pathsep.join([str(tmp_path / "own"), *filter(None, [os.environ.get("PYTHONPATH")])])
    program = "import sitecustomize, sys, torch; sys.exit(sitecustomize.__file__ != sys.argv[1])"
    own = [sys.executable, "-c", program, str(tmp_path / "own" / "sitecustomize.py")]
    watch(own, tmp_path, PYTHONPATH=paths, PROOF=str(tmp_path / "proof"))
    assert set((tmp_path / "proof").read_text().splitlines()) == {"sitecustomize"}
    watch([*PLAIN, "--updates", "2"], tmp_path, PYTHONPATH=paths, PROOF=str(tmp_path / "proof"))
    assert (tmp_path / "seen" / "rank-0.000.jsonl").exists()


@pytest.mark.parametrize(("fault", "codes"), [("", set()), ("detached", {"FGD103"})])
def test_parameters_that_are_sharded(fault: str, codes: set[str], tmp_path: Path) -> None:
    assert watch([*TORCHRUN, str(PROGRAMS / "sharded.py"), "--fault", fault], tmp_path) == codes
    for rank in (0, 1):
        lines = (tmp_path / "seen" / f"rank-{rank}.000.jsonl").read_text().splitlines()
        seen = [json.loads(line) for line in lines]
        assert seen[-1]["kind"] == "end"
        assert {name for one in seen if one["kind"] == "gradients" for name in one["zero"]} == set()
        reached = {name for one in seen if one["kind"] == "gradients" for name in one["reached"]}
        assert ("scale" in reached) == (rank == 0)  # the other has none of it, and says nothing


@pytest.mark.skipif(find_spec("lightning") is None, reason="Lightning isn't installed")
def test_the_callback_of_lightning(tmp_path: Path) -> None:
    program = [sys.executable, str(PROGRAMS / "with_lightning.py"), "seen"]
    subprocess.run(program, cwd=tmp_path, check=True, capture_output=True, timeout=SECONDS)
    audit = [sys.executable, "-m", "fgclip_doctor", "audit", "seen"]
    done = subprocess.run(audit, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert "FGD103" in done.stdout
    last = json.loads((tmp_path / "seen" / "rank-0.000.jsonl").read_text().splitlines()[-1])
    assert (last["kind"], last["backwards"], last["steps"]) == ("end", 50, 25)
