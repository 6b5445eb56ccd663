"""What the fixtures in `fixtures/trackers` were made of, from the script that made them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from fgclip_doctor.run import Run

TRACKERS = Path(__file__).parent / "fixtures" / "trackers"
_SPEC = importlib.util.spec_from_file_location("make_trackers", TRACKERS / "make_trackers.py")
assert _SPEC is not None
assert _SPEC.loader is not None
make_trackers = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(make_trackers)

FACTS = {
    "micro_batch": 4,
    "accumulation": 8,
    "learning_rate": 5e-6,
    "max_steps": 200,
    "bank_size": 128,
    "bank_warmup": 50,
}


def logged(run: int) -> dict[str, list[tuple[int, str]]]:
    """The series of a run as they were logged; values as text, in which NaN equals NaN."""
    found: dict[str, list[tuple[int, str]]] = {}
    for step, row in make_trackers.rows(run):
        for name, value in row.items():
            found.setdefault(name, []).append((step, repr(value)))
    return found


def told(run: Run) -> dict[str, list[tuple[int, str]]]:
    """The series that were read, in the same form, once what a restart redid is left out."""
    series = {name: one.standing for name, one in run.series.items()}
    return {
        name: [(step, repr(value)) for step, value in zip(one.steps.tolist(), one.values.tolist(), strict=True)]
        for name, one in series.items()
    }


def facts(run: Run) -> dict[str, object]:
    return {name: fact.value for name, fact in run.facts.items()}
