"""What the guided search kept is audited again: inputs that each reach another part of the code, and every bug."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORPUS = Path(__file__).parent / "corpus"
TARGETS = ("events", "json_files", "pickles", "safetensors_header", "text_log", "torch_zip", "wandb")
SECONDS = 2.0  # of processor time for one input; three times, since other work on the machine costs some too
REPLAY = """
import json, shutil, sys, time
from importlib import import_module
from pathlib import Path
from fgclip_doctor.run import Missing
from tests.safety.audited import audited
target, corpus, folder = import_module(f"tests.fuzz.{sys.argv[1]}"), Path(sys.argv[2]), Path(sys.argv[3])
taken = {}
for path in sorted(corpus.iterdir()):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    start = time.process_time()
    try:
        audited(target.write(path.read_bytes(), folder))
    except Missing as error:
        assert "\\n" not in str(error)
    taken[path.name] = time.process_time() - start
peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024
print(json.dumps([peak, taken]))
"""


@pytest.mark.parametrize("target", TARGETS)
def test_replay(tmp_path: Path, target: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", REPLAY, target, str(CORPUS / target), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    peak, taken = json.loads(done.stdout)
    assert len(taken) == len(list((CORPUS / target).iterdir())) > 10
    assert peak < 500  # MiB
    assert max(taken.values()) < 3 * SECONDS


def test_every_target_is_replayed_and_the_corpus_is_small() -> None:
    targets = {path.stem for path in CORPUS.parent.glob("*.py")} - {"__init__", "guided", "keep"}
    assert {one for one in targets if not one.startswith("test_")} == set(TARGETS)
    assert all(hasattr(import_module(f"tests.fuzz.{target}"), "WORDS") for target in TARGETS)
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert len(files) <= 200
    assert sum(path.stat().st_size for path in files) <= 500_000
