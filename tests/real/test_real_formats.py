"""What other people's tools wrote is read as they meant it: the values are those that their trainings had.

`tests/sources/fixtures/make_fixtures.py` made the files and wrote down, in `expected.json`, what the training had at
each step.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fgclip_doctor.run import Checkpoint, Run, Series
from fgclip_doctor.sources import load

FIXTURES = Path(__file__).parents[1] / "sources" / "fixtures"


def recorded(kind: str) -> list[Any]:
    """Each file of the fixtures with what it is to give of `kind`: series, tensors, moments or facts."""
    return [
        pytest.param(path.parent / name, content, id=f"{path.parent.name}/{name}")
        for path in sorted(FIXTURES.glob("*/expected.json"))
        for name, content in json.loads(path.read_text(encoding="utf-8")).get(kind, {}).items()
    ]


def found(run: Run, name: str) -> Series:
    """A series by its name, or by the one that the Trainer gives it in TensorBoard."""
    section, _, rest = name.rpartition("eval_")
    return (
        run.series[name]
        if name in run.series
        else run.series[f"{'eval' if section or name != rest else 'train'}/{rest}"]
    )


@pytest.mark.parametrize(("path", "expected"), recorded("series"))
def test_series(path: Path, expected: dict[str, list[tuple[int, float]]]) -> None:
    run = load([path])
    for name, rows in expected.items():
        series = found(run, name)
        assert series.steps.tolist() == [step for step, _ in rows], name
        digits = 6e-4 if path.suffix == ".log" and "transformers" in str(path) else 2e-7  # four digits; float32
        np.testing.assert_allclose(series.values, [value for _, value in rows], digits, (series.resolution or 0) * 0.51)
    assert run.problems == []
    assert [event for event in run.events if event.kind == "resume"] == []


@pytest.mark.parametrize(("path", "expected"), recorded("facts"))
def test_facts(path: Path, expected: dict[str, Any]) -> None:
    run = load([path])
    assert {name: run.facts[name].value for name in expected if name in run.facts} == expected
    assert run.problems == []


@pytest.mark.parametrize(("path", "expected"), recorded("tensors"))
def test_weights(path: Path, expected: dict[str, Any]) -> None:
    run = load([path])
    assert run.problems == []
    assert run.tensors.keys() == expected.keys()
    for name, (shape, mean, norm) in expected.items():
        tensor = run.tensors[name]
        assert list(tensor.shape) == shape, name
        assert (tensor.statistics.mean, tensor.statistics.norm) == pytest.approx((mean, norm), rel=1e-5), name


@pytest.mark.parametrize(("path", "expected"), recorded("moments"))
def test_optimizer_by_name(path: Path, expected: dict[str, Any]) -> None:
    checkpoint: Checkpoint = load([path]).checkpoint
    optimizer = checkpoint.optimizer
    assert optimizer is not None
    assert optimizer.step == 3
    candidates = {name: [index for index, names in optimizer.names.items() if name in names] for name in expected}
    for name, (shape, mean, norm) in expected.items():
        moments = [optimizer.states[index].exp_avg_sq for index in candidates[name]]
        found = [(one.statistics.mean, one.statistics.norm) for one in moments if one is not None]
        assert pytest.approx((mean, norm), rel=1e-5) in found, name
        alike = sum(one == shape for one, _, _ in expected.values())
        assert len(found) == (alike if path.parent.name == "peft" else 1), name  # its file doesn't keep the order


def test_every_fixture_is_small_and_names_no_machine() -> None:
    for path in FIXTURES.rglob("*"):
        assert path.is_dir() or path.stat().st_size <= 100_000, path
        assert path.is_dir() or path.suffix == ".py" or b"/tmp/tools" not in path.read_bytes(), path
