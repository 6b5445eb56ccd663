"""The checks on a run that goes on: each finding told once, with the step at which the evidence sufficed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fgclip_doctor.diagnosis import Report
from fgclip_doctor.findings import Finding
from fgclip_doctor.run import Missing, Run

DATING = 3.0  # seconds at most, to find the steps at which what is new was there first
SHARE = 0.1  # of the time that passes, for diagnosing: where it takes longer, it is done more rarely
TWICE = 2  # times in a row that a finding has to be there to be told


@dataclass(frozen=True, slots=True)
class Told:
    """A finding that was told, and at which step of the run the evidence for it was there."""

    finding: Finding
    step: int


@dataclass
class Changes:
    """What one look at the run has changed."""

    step: int
    new: list[Told] = field(default_factory=list)
    withdrawn: list[Told] = field(default_factory=list)  # told before, and cleared by what came later


class Follower:
    """Diagnoses a run whenever it has changed."""

    def __init__(
        self,
        poll: Callable[[], Run | None],
        diagnose: Callable[[Run], Report],
        until: Callable[[int], Run | None] = lambda _: None,
    ) -> None:
        """`poll` gives the run if it has changed, `diagnose` judges it, and `until` gives it as it was after a step,
        if that is known."""
        self.poll = poll
        self.diagnose = diagnose
        self.until = until
        self.run: Run | None = None
        self.report: Report | None = None
        self.told: dict[str, Told] = {}
        self.seen: dict[str, int] = {}  # how often in a row, by fingerprint
        self.since: dict[str, int] = {}  # the step at which it was there for the first time of those
        self.judged = 0  # the step up to which the run was judged
        self.not_before = 0.0

    def look(self, *, last: bool = False) -> Changes | None:
        """What is new, or None if the run hasn't changed. The last look tells what is there for the first time, too."""
        if not last and time.monotonic() < self.not_before:
            return None
        began = time.monotonic()
        run = self.poll()
        if run is None and self.run is not None and self.report is not None and not last:
            waiting = any(count < TWICE for count in self.seen.values())  # nothing has spoken against it
            return self._changes(self.report, step_of(self.run), last=False) if waiting else None
        if run is None and self.run is None:
            return None
        self.run = run or self.run
        assert self.run is not None  # noqa: S101 - by the lines above
        self.report = self.diagnose(self.run)
        step = step_of(self.run)
        self._date([finding.fingerprint for finding in self.report.findings], step)
        self.judged = step
        self.not_before = time.monotonic() + (time.monotonic() - began) * (1 / SHARE - 1)
        return self._changes(self.report, step, last=last)

    def _date(self, found: Sequence[str], step: int) -> None:
        """At which step each was there first: between two looks of ours a fast run does thousands."""
        self.since = {key: self.since.get(key, step) for key in found}
        assert self.run is not None  # noqa: S101 - it was just judged
        looked = self.run.series.get("watching/elapsed")
        every = {*looked.steps.tolist()} if looked is not None else set()
        steps = sorted(one for one in every if self.judged < one < step)
        known: dict[int, frozenset[str]] = {}
        deadline = time.monotonic() + DATING
        for key in [key for key in found if key not in self.seen]:
            low, high = 0, len(steps)  # it is there at steps[high], if there is such a step
            while low < high and time.monotonic() < deadline:
                middle = (low + high) // 2
                if (at := steps[middle]) not in known:
                    run = self.until(at)
                    known[at] = (
                        frozenset(one.fingerprint for one in self.diagnose(run).findings) if run else frozenset()
                    )
                low, high = (low, middle) if key in known[at] else (middle + 1, high)
            if high < len(steps):
                self.since[key] = steps[high]

    def _changes(self, report: Report, step: int, *, last: bool) -> Changes:
        found = {finding.fingerprint: finding for finding in report.findings}
        self.seen = {key: self.seen.get(key, 0) + 1 for key in found}
        changes = Changes(step)
        for key, finding in found.items():
            if key not in self.told and (last or self.seen[key] >= TWICE):
                self.told[key] = Told(finding, self.since[key])
                changes.new.append(self.told[key])
        for key, told in list(self.told.items()):
            if key not in found and told.finding.code not in {code for code, _ in (*report.skipped, *report.crashed)}:
                changes.withdrawn.append(self.told.pop(key))
        return changes


def step_of(run: Run) -> int:
    """The optimizer steps that are known to be done: by a recording, a checkpoint, or the longest series."""
    if run.recording is not None:
        return run.recording.step
    try:
        saved = run.step
    except Missing:
        saved = 0
    return max([saved, *(int(series.steps.max()) for series in run.series.values() if len(series.steps))])
