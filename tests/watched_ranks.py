"""Runs of several ranks as a recording tells of them, built without any training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fgclip_doctor.recorded import Gather, LossSite, Rank, Reach, Recording
from fgclip_doctor.run import Run
from tests import runs

SAME = dict.fromkeys(range(1, 9), "same")


def site(
    name: str = "loss.py:12",
    *,
    anchors: int = 4,
    candidates: float = 8,
    offset: int = 0,
    bits: float = 2.0,
    top1: float = 0.9,
    calls: int = 20,
    reach: Reach | None = None,
    **changes: Any,
) -> LossSite:
    """A loss whose calls have learnt `bits` each, give or take a fifth of a bit."""
    null = np.full(calls, 3.0)
    learnt = np.log(2) * (bits + 0.2 * (-1.0) ** np.arange(calls))
    steps = np.arange(calls)
    seen: dict[str, Any] = {
        "kind": "softmax",
        "targets": "shifted" if offset else "diagonal",
        "anchors": np.full(calls, anchors),
        "candidates": np.full(calls, float(candidates)),
    }
    measured = {"loss": null - learnt, "null": null, "top1": np.full(calls, top1)}
    fields = {**seen, **measured, **changes}
    return LossSite(name=name, offset=offset, steps=steps, forwards=steps + 1, reach=reach, **fields)


def rank(number: int, *sites: LossSite, gathers: Sequence[Gather] = (), **seen: Any) -> Rank:
    digests: Mapping[str, Mapping[int, str]] = seen.pop("digests", {"parameters": SAME})
    parameters = seen.pop("parameters", {"tower": runs.parameter("tower")})
    path = f"rank-{number}.000.jsonl"
    return Rank(number, 2, path, parameters, sites, tuple(gathers), {"steps": 20}, digests=digests, **seen)


def watched(*ranks: Rank, **facts: Any) -> Run:
    run = runs.run(facts=facts)
    run.recording = Recording(ranks, 20)
    return run
