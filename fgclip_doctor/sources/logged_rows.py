"""Rows of named numbers -> series, where the rows come as values and not as text.

What names mean is said by the dialect in `records`, as for the lines of a log: which column is the clock, which are no
series.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fgclip_doctor.run import Series, Source
from fgclip_doctor.sources import records
from fgclip_doctor.sources.records import BRANCHES, EPOCH, NO_SERIES, RANK

MAX_NAME = 200  # characters
MAX_COLUMNS = 2_000
MAX_VALUES = 1 << 23  # of all columns together, 16 bytes each
MAX_STEP = 1 << 53


@dataclass
class LoggedColumn:
    """The values of one name, and the rows that have one."""

    rows: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))


@dataclass
class LoggedRows:
    """What was logged together is one row. Names and values beyond the limits are counted, and left out."""

    row: int = 0  # how many rows there are
    columns: dict[str, LoggedColumn] = field(default_factory=dict)
    held: int = 0
    left_out: int = 0

    def append(self, row: Mapping[str, float]) -> None:
        for name, value in row.items():
            column = self.columns.get(name)
            if column is None and len(self.columns) < MAX_COLUMNS and len(name) <= MAX_NAME:
                column = self.columns[name] = LoggedColumn()
            if column is None or self.held >= MAX_VALUES:
                self.left_out += 1
                continue
            column.rows.append(self.row)
            column.values.append(value)
            self.held += 1
        self.row += 1

    def series(self, path: str) -> dict[str, Series]:
        """Every column but the clocks. A row without the clock is of the step of the one before it."""
        clocks = {name: records.clock(name) for name in self.columns}
        clock = max(self.columns, key=lambda name: (clocks[name], len(self.columns[name].rows)), default=None)
        named = {name.lower() for name in self.columns} & BRANCHES
        found = {}
        for name, column in self.columns.items():
            lower = name.lower()
            if clocks[name] or EPOCH.fullmatch(lower) or RANK.fullmatch(lower) or NO_SERIES.search(name):
                continue
            rows = np.frombuffer(column.rows, np.int64)
            steps = self._steps(clock, rows) if clock and clocks[clock] else np.arange(1, len(rows) + 1)
            kept = f"loss/{lower}" if lower in BRANCHES and len(named) > 1 else name
            found[kept] = Series(kept, steps, np.frombuffer(column.values, np.float64), Source(path, name))
        return found

    def _steps(self, clock: str, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        column = self.columns[clock]
        at = np.searchsorted(np.frombuffer(column.rows, np.int64), rows, side="right") - 1
        return whole(np.frombuffer(column.values, np.float64))[np.maximum(at, 0)]


def whole(steps: NDArray[np.float64]) -> NDArray[np.int64]:
    """Steps as whole numbers; 0 for what is none."""
    return np.where(np.abs(steps) < MAX_STEP, steps, 0).astype(np.int64)  # neither NaN nor an infinity is less
