"""What of a run's evidence is there: its weights without a log, its log, a recording, both files, or its base too."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

Entry = dict[str, Any]


class View(StrEnum):
    CHECKPOINT = "checkpoint"
    LOG = "log"
    RECORDING = "recording"
    BOTH = "both"
    BASE = "both and base"


# What loops commonly log. Our own logs candidates, margins and the bank too: these are seen in `BOTH` only.
USUAL = ("step", "epoch", "loss", "grad_norm", "learning_rate", "logit_scale")
STATE = "trainer_state.json"


@dataclass(frozen=True)
class Evidence:
    """What an audit is given."""

    paths: Sequence[Path]
    base: Path | None = None
    facts: dict[str, str] = field(default_factory=dict)


def checkpoints(run: Path) -> list[Path]:
    return sorted(run.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))


def recording(run: Path) -> Path:
    """What was seen of a run while it went on, beside it."""
    return run.with_name("recording")


def history(run: Path) -> list[Entry]:
    """What the run logged, as its last checkpoint has it."""
    entries: list[Entry] = json.loads((checkpoints(run)[-1] / STATE).read_text("utf-8"))["log_history"]
    return [entry for entry in entries if "train_runtime" not in entry]


def usual(entry: Entry) -> Entry:
    return {
        name: value
        for name, value in entry.items()
        if name in USUAL or name.startswith(("loss_", "logit_scale_")) or name.endswith("_loss")
    }


def without_log(run: Path, target: Path) -> Path:
    """The checkpoints of a run as links, and nothing logged in them."""
    for checkpoint in checkpoints(run):
        copy = target / checkpoint.name
        copy.mkdir(parents=True)
        for file in checkpoint.iterdir():
            if file.name == STATE:
                state = json.loads(file.read_text("utf-8"))
                (copy / STATE).write_text(json.dumps({**state, "log_history": []}), "utf-8")
            elif file.is_file():
                os.link(file, copy / file.name)
    return target


def as_json_lines(entries: Sequence[Entry], path: Path) -> Path:
    path = path.with_suffix(".jsonl")
    safe = [{k: v if math.isfinite(v) else str(v) for k, v in entry.items()} for entry in entries]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in safe), "utf-8")
    return path


def as_table(entries: Sequence[Entry], path: Path) -> Path:
    path = path.with_suffix(".csv")
    columns = list(dict.fromkeys(name for entry in entries for name in entry))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(entries)
    return path


def as_lines(entries: Sequence[Entry], path: Path) -> Path:
    """As loops print: rounded, and the step first."""
    path = path.with_suffix(".log")
    lines = []
    for entry in entries:
        shown = (f"{name}: {value:.6g}" for name, value in entry.items() if name != "step")
        lines.append(f"step {entry['step']} | {' | '.join(shown)}\n")
    path.write_text("".join(lines), "utf-8")
    return path


FORMATS: tuple[Callable[[Sequence[Entry], Path], Path], ...] = (as_json_lines, as_table, as_lines)


def evidence(view: View, run: Path, *, base: Path | None, facts: dict[str, str], form: int, target: Path) -> Evidence:
    """The evidence of a run in one view, made below `target` where it isn't the run itself."""
    match view:
        case View.CHECKPOINT:
            shutil.rmtree(target / "checkpoints", ignore_errors=True)
            return Evidence([without_log(run, target / "checkpoints")])
        case View.LOG:
            target.mkdir(parents=True, exist_ok=True)
            entries = [usual(entry) for entry in history(run)]
            return Evidence([FORMATS[form % len(FORMATS)](entries, target / "log")], facts=facts)
        case View.RECORDING:
            return Evidence([recording(run)], facts=facts)
        case View.BOTH:
            return Evidence([run])
        case View.BASE:
            return Evidence([run], base=base)
