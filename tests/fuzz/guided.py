"""Fuzz one target, guided by the branches that an input reaches, with atheris, which is in no list of dependencies::

    python -m venv fuzzing && fuzzing/bin/pip install atheris numpy rich
    fuzzing/bin/pip install --no-deps --editable .
    fuzzing/bin/python -m tests.fuzz.guided pickles --seconds 600 --corpus DIRECTORY --findings DIRECTORY

Every new kind of failure is kept as a file in the directory of findings, and the search goes on: an exception that is
not `Missing` (as `Unreadable` is), over 2 seconds of processor time, or over 500 MB more than the process had.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
from importlib import import_module
from pathlib import Path

import atheris

SLOW = 2.0  # seconds
LARGE = 500 << 20  # bytes
LIMITS = ("-max_len=8192", "-timeout=60", "-rss_limit_mb=0")  # the limits that are meant are those above

with atheris.instrument_imports(include=["fgclip_doctor", "fgclip_doctor_checks"]):
    from fgclip_doctor.run import Missing
    from tests.safety.audited import audited


class Fuzz:
    """One target, and where its failures go."""

    def __init__(self, target: str, findings: Path, seconds: float) -> None:
        self.target, self.findings = target, findings
        module = import_module(f"tests.fuzz.{target}")
        self.write, self.words = module.write, module.WORDS
        self.folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{os.getpid()}-", dir="/dev/shm"))
        self.end = time.monotonic() + seconds
        self.known: set[str] = set()
        self.count = 0

    def one(self, data: bytes) -> None:
        """Audit what `data` stands for."""
        self.count += 1
        if time.monotonic() > self.end:
            print(f"{self.target}: {self.count:,} inputs, {len(self.known)} kinds of failure", flush=True)
            shutil.rmtree(self.folder)
            os._exit(0)
        if not data:
            return
        folder = self.folder / "run"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        start = time.process_time()
        try:
            audited(self.write(data, folder))
        except Missing:
            pass
        except Exception as error:  # noqa: BLE001 - what is looked for
            self.keep(data, _kind(error), traceback.format_exc())
        if time.process_time() - start > SLOW:
            self.keep(data, f"slow-{len(data).bit_length()}", f"{time.process_time() - start:.1f} s")

    def keep(self, data: bytes, kind: str, details: str) -> None:
        """A failure of a new kind as a file."""
        if kind not in self.known:
            self.known.add(kind)
            name = f"{self.target}-{hashlib.sha256(kind.encode()).hexdigest()[:12]}"
            (self.findings / name).write_bytes(data)
            (self.findings / f"{name}.txt").write_text(f"{kind}\n{details}")


def _kind(error: Exception) -> str:
    """The exception, and the lines of ours that it came through last."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "fgclip_doctor" in frame.filename]
    said = str(error)[:60] if isinstance(error, AssertionError) else ""
    return " ".join([type(error).__name__, said, *(f"{Path(one.filename).name}:{one.lineno}" for one in frames[-2:])])


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


def main() -> None:
    """Fuzz until the time is over."""
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--corpus", type=Path, required=True, help="is read, and grows")
    parser.add_argument("--findings", type=Path, required=True)
    chosen = parser.parse_args()
    for directory in (chosen.corpus, chosen.findings):
        directory.mkdir(parents=True, exist_ok=True)
    fuzz = Fuzz(chosen.target, chosen.findings, chosen.seconds)
    data = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) << 10
    resource.setrlimit(resource.RLIMIT_DATA, (data + LARGE, resource.RLIM_INFINITY))
    shipped = Path(__file__).parent / "corpus" / chosen.target
    words = fuzz.folder / "words"
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in fuzz.words))
    places = [str(chosen.corpus), *([str(shipped)] if shipped.is_dir() else [])]
    atheris.Setup([sys.argv[0], f"-dict={words}", *LIMITS, *places], fuzz.one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
