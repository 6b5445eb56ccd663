"""How the ring of a memory bank moved: its pointer over the steps, and which rows were written between two looks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from fgclip_doctor.bank import Bank, banks, memory_bank
from fgclip_doctor.run import Missing, Run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

REGIONS = re.compile(r"region|roi|box", re.IGNORECASE)
POINTER = re.compile(r"(?:bank|queue|xbm|memory)\w*?_?(?:ptr|pointer|cursor)$", re.IGNORECASE)


@dataclass(frozen=True)
class Pointers:
    """Where the pointer of a ring of `size` rows stood after how many optimizer steps."""

    steps: NDArray[np.int64]
    values: NDArray[np.int64]
    turned: NDArray[np.bool_]  # whether the ring had been full by then
    size: int
    source: str


@dataclass(frozen=True)
class Span:
    """Two looks at one bank, and which of its rows are bit-identical in both, (K,)."""

    old: Bank
    new: Bank
    kept: NDArray[np.bool_]

    @property
    def steps(self) -> tuple[int, int]:
        return self.old.checkpoint.step or 0, self.new.checkpoint.step or 0


def pointers(run: Run) -> Pointers:
    """As logged or recorded, else as saved; `Missing` where the pointer is known at fewer than two steps."""
    import numpy as np

    bank = memory_bank(run)
    name = run.roles.get("bank.pointer", "")
    logged = [one for key, one in run.series.items() if key == name or POINTER.search(key)]
    if logged and len(logged[0].values) > 1:
        series = logged[0].standing
        kept = np.isfinite(series.values) & (series.values >= 0)
        steps, values = series.steps[kept], series.values[kept].astype(np.int64)
        values %= bank.size
        turned = np.maximum.accumulate(np.diff(values, prepend=0) < 0)
        return Pointers(steps, values, turned, bank.size, str(series.source))
    saved = [
        (one.checkpoint.step, one.pointer % bank.size, one.full or False)
        for one in banks(run)
        if one.pointer is not None and one.checkpoint.step is not None and one.size == bank.size
    ]
    if len(saved) < 2:
        raise Missing("the pointer of the bank is known at fewer than two steps")
    steps, values, full = np.array(saved, dtype=np.int64).T
    return Pointers(steps, values, full > 0, bank.size, bank.sources)


def spans(run: Run) -> list[Span]:
    """Each look at the bank beside the next one, where both are of one size."""
    looks = banks(run)
    found = []
    for old, new in pairwise(looks):
        if old.keys.keys() != new.keys.keys() or old.size != new.size or old.dimension != new.dimension:
            continue
        if old.checkpoint.step is None or new.checkpoint.step is None or old.checkpoint.step >= new.checkpoint.step:
            continue
        kept = [(old.rows(name) == new.rows(name)).all(axis=1) for name in new.keys]
        found.append(Span(old, new, kept[0] if len(kept) == 1 else kept[0] & kept[1]))
    if not found:
        raise Missing("the rows of the bank are known at one step only")
    return found


def rows_per_forward(run: Run) -> float:
    """Rows that one rank has for the bank in a forward: its batch, or of a bank of regions its regions."""
    bank = memory_bank(run)
    of_regions = any(REGIONS.search(tensor.name) for tensor in bank.keys.values())
    regions = run.number("regions_per_sample") if of_regions else run.number("regions_per_sample", 1.0)
    return run.number("micro_batch") * regions


def rows_per_step(run: Run) -> float:
    """Rows that an optimizer step should bring, from all its forwards and all ranks."""
    return rows_per_forward(run) * run.number("accumulation") * run.number("world_size", 1.0)
