"""Choose from what a fuzzer gathered the small inputs that together reach most of the code, for `corpus/`::

python -m tests.fuzz.keep pickles DIRECTORY
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

from fgclip_doctor.run import Missing
from tests.safety.audited import audited

CORPUS = Path(__file__).parent / "corpus"
MOST = 28  # files of a target
LARGEST = 6_000  # bytes
LOOKED_AT = 600  # files, the smallest first

Step = tuple[str, int, int]  # a file of ours, and two lines that followed each other in it


def reached(target: str, data: bytes, folder: Path) -> set[Step]:
    """The steps through our code that an audit of `data` makes."""
    steps: set[Step] = set()

    def within(frame: FrameType, event: str, _: Any) -> Any:
        last = frame.f_lineno

        def line(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal last
            steps.add((frame.f_code.co_filename, last, frame.f_lineno))
            last = frame.f_lineno
            return line

        return line if "/fgclip_doctor/sources/" in frame.f_code.co_filename else None

    path = import_module(f"tests.fuzz.{target}").write(data, folder)
    sys.settrace(within)
    try:
        with suppress(Missing):
            audited(path)
    finally:
        sys.settrace(None)
    return steps


def main(target: str, gathered: Path) -> None:
    """Add to the corpus of `target`, while what is there counts as reached."""
    kept = CORPUS / target
    kept.mkdir(parents=True, exist_ok=True)
    known: set[Step] = set()
    old = sorted(kept.iterdir())
    new = sorted(gathered.iterdir(), key=lambda path: path.stat().st_size)[:LOOKED_AT]
    gains: list[tuple[int, bytes]] = []
    with tempfile.TemporaryDirectory() as there:
        for path in [*old, *new]:
            data, folder = path.read_bytes(), Path(there) / "run"
            if not 1 < len(data) <= LARGEST:
                continue
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            steps = reached(target, data, folder)
            if path not in old and steps - known:
                gains.append((len(steps - known), data))
            known |= steps
    for _, data in sorted(gains, reverse=True)[: MOST - len(old)]:
        (kept / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    print(f"{target}: {len(known):,} steps reached, {len(list(kept.iterdir()))} files kept")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
