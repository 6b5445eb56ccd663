"""Several runs in one place, which are not one run: the lines that say so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

SHOWN = 4


def only_the_newest(where: Path, runs: Sequence[str]) -> str:
    """Of the `runs` in `where`, from the newest on, the first alone was read."""
    newest, *others = runs
    return f"{where}: holds {len(runs):,} runs; read was the newest, {newest}, and not {_listed(others)}"


def each_apart(where: Path, runs: Sequence[str]) -> str:
    """The `runs` in `where` were read as if they were parts of one."""
    return (
        f"{where}: holds {len(runs):,} runs with the same tags, {_listed(runs)}; no loss can be told from them "
        f"together: audit one of them"
    )


def _listed(runs: Sequence[str]) -> str:
    more = f" and {len(runs) - SHOWN:,} more" if len(runs) > SHOWN else ""
    return f"{', '.join(runs[:SHOWN])}{more}"
