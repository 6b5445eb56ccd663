"""A folder in which each artefact is made once, by whoever asks first, however many processes share it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

Make = Callable[[Path], object]


class Kept:
    """Makes each artefact beside where it will lie, so that nobody sees an unfinished one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def once(self, name: str, make: Make) -> Path:
        path, unfinished = self.folder / name, self.folder / f"{name}.unfinished"
        with FileLock(f"{path}.lock"):
            if not path.exists():
                make(unfinished)
                unfinished.rename(path)
        return path
