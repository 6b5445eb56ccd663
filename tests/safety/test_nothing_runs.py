"""Nothing of what is audited is executed: hostile pickles wherever one is read from, watched by an audit hook."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.safety.artefacts import FORMATS, write
from tests.sources.hostile import archives, bypasses, gadgets, rebuilding, touching, zipped

ROOT = Path(__file__).parents[2]
PLACES = (  # every file that may hold a pickle
    "training_args.bin",
    "scheduler.pt",
    "optimizer.pt",
    "shard-1.bin",
    ".metadata",
    "pytorch_model_fsdp_0/.metadata",
    "mp_rank_00_model_states.pt",
    "zero_pp_rank_0_mp_rank_00_optim_states.pt",
    "weights.pt",
    "last.ckpt",
    "arrays.npz",
    "model.pkl",
    "model.safetensors",
    "events.out.tfevents.1",
    "train.log",
    "run-x.wandb",
    "mlflow.db",
    "history.parquet",
    "rank-0.000.jsonl",
)
INDEX = {"weight_map": {"logit_scale": "shard-1.bin"}}
WATCH = """
import json, os, sys
from pathlib import Path
from fgclip_doctor.run import Missing
from tests.safety.audited import audited

def attempt(path):
    try:
        _, report = audited(path)
        return [*report.problems, "read"]
    except Missing as error:
        return [str(error)]

healthy, hostile = map(Path, sys.argv[1:])
for path in sorted(healthy.rglob("*")):  # whatever is imported at its first use
    attempt(path)
READ = {"os.listdir", "os.scandir", "pathlib.Path.glob", "builtins.id", "sqlite3.connect/handle"}
events = []
watching = True
def reads(event, args):
    if event == "open":
        return not args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    return event in READ or (event == "sqlite3.connect" and args[0].endswith("?mode=ro&immutable=1"))
def hook(event, args):
    if watching and not reads(event, args):
        events.append((event, repr(args)[:300], str(path)))
corpus = {path: sorted(file for file in path.rglob("*") if file.is_file()) for path in sorted(hostile.iterdir())}
sys.addaudithook(hook)
said = {}
for path, files in corpus.items():
    said[path.name] = attempt(path)
    for file in files:
        said[path.name] += attempt(file)
seen, watching = events, False
print(json.dumps({"events": seen[:20], "said": said, "imported": sorted(sys.modules)}))
"""


def watched(tmp_path: Path) -> dict[str, Any]:
    """Audit everything in `tmp_path`/hostile in a process that notes all that it does but reading."""
    for number, name in enumerate(FORMATS):
        write(name, tmp_path / "healthy" / str(number))
    spoilt = tmp_path / "healthy" / "spoilt"
    spoilt.mkdir()
    for number, content in enumerate([b"junk", pickle.dumps(["é", 1], 0), zipped(b"junk"), zipped(b"N."), b"]."]):
        (spoilt / f"{number}.pt").write_bytes(content)
    for name in PLACES:
        (spoilt / name).parent.mkdir(exist_ok=True)
        (spoilt / name).write_bytes(b"junk")
    with zipfile.ZipFile(spoilt / "deflated.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"N." * 10)
    done = subprocess.run(
        [sys.executable, "-c", WATCH, str(tmp_path / "healthy"), str(tmp_path / "hostile")],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=500,
    )
    assert not done.stderr, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def plant(folder: Path, content: bytes) -> None:
    """`content` at every place of a checkpoint that a pickle is read from."""
    for place in PLACES:
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(content)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(INDEX))
    (folder / "config.json").write_text("{}")


def nothing_happened(found: dict[str, Any]) -> None:
    assert found["events"] == []
    assert not {"torch", "pandas", "matplotlib", "antigravity"} & set(found["imported"])
    assert all(line and "\n" not in line for lines in found["said"].values() for line in lines)


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "in torch's zip"])
def test_hostile_pickles_do_nothing_wherever_they_stand(tmp_path: Path, wrapped: bool) -> None:
    mark = tmp_path / "was-here"
    corpus = touching(mark) | bypasses(mark) | gadgets(mark)
    for number, content in enumerate(corpus.values()):
        plant(tmp_path / "hostile" / f"{number:03}", zipped(content) if wrapped else content)
    found = watched(tmp_path)
    nothing_happened(found)
    assert not mark.exists()
    assert len(found["said"]) == len(corpus)
    about = Counter(Path(line.partition(": ")[0]).name for lines in found["said"].values() for line in lines)
    assert {name for name in (Path(place).name for place in PLACES) if about[name]} >= {
        "optimizer.pt",
        "shard-1.bin",
        ".metadata",
        "weights.pt",
        "last.ckpt",
        "arrays.npz",
        "model.safetensors",
        "events.out.tfevents.1",
    }


def test_what_rebuilds_tensors_gets_no_nonsense(tmp_path: Path) -> None:
    mark = tmp_path / "was-here"
    for number, content in enumerate(rebuilding(mark).values()):
        folder = tmp_path / "hostile"
        folder.mkdir(exist_ok=True)
        (folder / f"{number:03}.pt").write_bytes(zipped(content))
        (folder / f"{number:03}.pkl").write_bytes(content)
    nothing_happened(watched(tmp_path))
    assert not mark.exists()


def test_no_archive_hides_what_it_would_run(tmp_path: Path) -> None:
    mark = tmp_path / "was-here"
    system = touching(mark)["os.system, protocol 4"]
    for number, content in enumerate(archives(system).values()):
        plant(tmp_path / "hostile" / f"{number:03}", content)
    found = watched(tmp_path)
    nothing_happened(found)
    assert not mark.exists()
    said = dict(zip(archives(system), found["said"].values(), strict=True))
    assert all(
        any("posix.system" in line or "not" in line or "no" in line for line in lines) for lines in said.values()
    )


@pytest.mark.parametrize("name", bypasses(Path("mark")))
def test_python_would_have_run_it(tmp_path: Path, name: str) -> None:
    """The corpus is alive: Python's own unpickler does what each of them asks for."""
    mark = tmp_path / "was-here"
    path = tmp_path / "model.pkl"
    path.write_bytes(bypasses(mark)[name])
    subprocess.run(
        [sys.executable, "-c", "import pickle, sys; pickle.load(open(sys.argv[1], 'rb'))", str(path)],
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert mark.exists()
