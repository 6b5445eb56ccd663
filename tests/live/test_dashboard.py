"""The dashboard on terminals of two sizes: what it shows of clocks and gradients is there in full."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from fgclip_doctor.live import dashboard
from fgclip_doctor.sources import load
from tests.live.test_recorder import train


@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 60)])
def test_no_value_is_cut(width: int, height: int, tmp_path: Path) -> None:
    train(tmp_path, steps=12)
    run = load([tmp_path])
    console = Console(width=width, height=height, file=StringIO())
    console.print(dashboard.screen(run, None, [], state="train.py", width=width, height=height), height=height)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, shown.splitlines())) <= width
    middle = shown[shown.index("─ clocks") : shown.index("─ findings")]
    assert "…" not in middle
    steps = run.watched.step
    for value in (
        f"steps       {steps}",
        f"per step    {run.watched.first.clocks['forwards'] / steps:.3g}",
        "scheduler ",
        "zero grads ",
        "backwards ",  # the last of the clocks
        "eye.0",
        "e+0",
    ):
        assert value in middle
