"""What the names in a log mean, whoever wrote it: clocks, epochs, ranks, evaluations, means; and what a line says.

A `Reading` is what all lines of one skeleton say: which of their numbers are the step, the epoch, and values under
which names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, auto
from typing import Any

from fgclip_doctor.sources.decimals import Number
from fgclip_doctor.sources.remarks import Said

MAX_RECORDS = 64  # on a line
MAX_SERIES = 2_000
MAX_ALL_POINTS = 1 << 23  # values kept of all series together, 16 bytes each
MAX_STEP = 1 << 53


class Clock(IntEnum):
    """Where a step was read, the weakest first: a file's strongest clock is the one that counts."""

    NONE = 0
    SHARE = auto()  # a share of an epoch, and how many steps an epoch has
    BAR = auto()  # a progress bar
    COUNT = auto()  # "[10/1000]"
    ITERATION = auto()
    STEP = auto()
    UPDATES = auto()


_CLOCKS = {
    Clock.UPDATES: r"(?:num_updates|(?:(?:train|trainer|training)/)?global_?steps?|optimi[sz]er_?steps?)",
    Clock.STEP: r"(?:(?:trainer|train|training|at|current|_)?[_/]?steps?|updates?)",
    Clock.ITERATION: r"(?:(?:train|training|at|current)?[_/]?(?:iter|iters|iteration|it|n_iter|batch|batch_idx))",
}
CLOCKS = {clock: re.compile(rf"(?:\w+\.)?{pattern}") for clock, pattern in _CLOCKS.items()}
NO_CLOCK = re.compile(  # counted in steps, but no time
    r"(?:^|[_/])(?:total|max|num|n|warm_?up|accum\w*|gradient|optimization|logging|log|save|saving|eval\w*|per|every|until)_"
)
EPOCH = re.compile(r"(?:\w+[_/])?epoch(?:_(?:train|val|test))?")
RANK = re.compile(r"(?:local_|global_)?rank")
HELD_OUT = re.compile(
    r"(?:^|[\W_])(?:eval|evaluation|evaluating|val|valid|validation|test|testing|sanity)(?:[\W_]|$)", re.I
)
MEAN = re.compile(r"\b(?:averaged?|mean|summary)\b", re.I)  # of an epoch: not a value of its own
NO_SERIES = re.compile(r"(?:^|_)(?:cuda|gpu|port|pid|seed|version|v_num|device)$", re.I)
METRIC = re.compile(
    r"loss|lr|learning|acc(?!um)|norm|scale|temp|ppl|nll|margin|sim|auc|recall|precision|top|bits|cos|logit|candidates|"
    r"entropy|gradient|nce|itc|itm|error|metric|r@|mae|mse|score|perplexity|^(?:total|global|region|hard)$",
    re.I,
)
LOSS = re.compile(r"loss(?!\w*(?:weight|coef|scale|type|kind|smoothing|lambda))", re.I)
BRANCHES = {
    "total",
    "global",
    "region",
    "regional",
    "hard",
    "hard_negative",
    "hardneg",
}  # of a loss, when they stand bare


def clock(name: str) -> Clock:
    """The clock that a number under this name reads."""
    lower = name.lower()
    for one, pattern in CLOCKS.items():
        if pattern.fullmatch(lower):
            return one
    words = lower.rsplit("_", 1)
    if len(words) == 2 and not NO_CLOCK.search(f"{words[0]}_") and CLOCKS[Clock.STEP].fullmatch(words[1]):
        return (
            Clock.STEP if re.fullmatch(r"(?:\w+_)?(?:at|on|enabled|activated|finished|from)", words[0]) else Clock.NONE
        )
    return Clock.NONE


@dataclass(slots=True)
class Record:
    """What one line, or a part of one, says at one step."""

    values: dict[str, Number] = field(default_factory=dict)
    step: Number | None = None
    clock: Clock = Clock.NONE
    total: Number | None = None  # of a count within an epoch
    epoch: Number | None = None
    rank: Number | None = None
    samples: bool = False  # the count is of samples
    share: Number | None = None  # epochs done, with what is done of the current one
    heading: str = ""  # "eval" or "mean": what the values are of, where not of the training
    left_out: dict[str, Number] = field(default_factory=dict)  # for whoever wants to see what was understood

    @property
    def empty(self) -> bool:
        return not (self.values or self.step or self.epoch or self.share)

    def finished(self) -> Record:
        """With the names that the line as a whole gives, and its epoch as a time where it has no other."""
        if self.step is None and self.epoch is not None:  # a share that came out even: "0.5", "1", "1.5"
            self.share, self.clock = self.share or self.epoch, max(self.clock, Clock.SHARE)
        self.values = {name: number for name, number in self.values.items() if not NO_SERIES.search(name)}
        if self.heading:
            self.values = {
                name if HELD_OUT.search(name) else f"{self.heading}/{name}": number
                for name, number in self.values.items()
            }
        elif len({name.lower() for name in self.values} & BRANCHES) > 1:  # "Total: 3.1 | Global: 1.5 | Region: 1.6"
            self.values = {
                f"loss/{name.lower()}" if name.lower() in BRANCHES else name: number
                for name, number in self.values.items()
            }
        return self


@dataclass(slots=True)
class Reading:
    """What a kind of line means. `fixed` are the runs of digits that stand in its names."""

    records: tuple[Record, ...] = ()
    fixed: tuple[int, ...] = ()
    bank_on: str = ""  # the line, if it says that the bank was switched on
    facts: Mapping[str, object] = field(default_factory=dict)
    stated: bool = False  # the facts are arguments, wherever they stand
    said: Said | None = None  # in words
    unfinished: bool = False  # goes on on the next line

    @property
    def says(self) -> bool:
        """True if anything is understood of it."""
        return bool(self.records or self.bank_on or self.facts or self.said)

    @property
    def measures(self) -> bool:
        """True if this is a line of the training itself, and no longer one of its arguments."""
        return any(record.values and (record.step or any(map(LOSS.search, record.values))) for record in self.records)


NOTHING = Reading()
Understand = Callable[[str, str], Reading]  # of the skeleton of a line, and the line


def plain(facts: Mapping[str, Any]) -> dict[str, object]:
    """Arguments as they are printed -> numbers, switches and text."""
    return {key.removeprefix("--").replace("-", "_"): _plain(value) for key, value in facts.items()}


def _plain(value: object) -> object:
    if not isinstance(value, str):
        return value
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    for kind in (int, float):
        try:
            return kind(value.replace(",", ""))
        except ValueError:
            continue
    return value
