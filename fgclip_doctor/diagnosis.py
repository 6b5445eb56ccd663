"""Checks x `Run` -> `Report`: fired, passed, skipped or crashed; causes before their symptoms."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fgclip_doctor.findings import Evidence, Finding, Severity, Value
from fgclip_doctor.observations import observe
from fgclip_doctor.registry import Check
from fgclip_doctor.run import Missing, Run


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as in the good run."""

    kind: str  # "fact", "clock", "trajectory", "gradient", "tensor"
    what: str
    here: Value
    there: Value
    why: str  # why it is more than chance
    explained_by: tuple[str, ...] = ()  # codes of findings of this run alone that account for it


@dataclass(frozen=True, slots=True)
class Comparison:
    """`new` findings are those of this run alone, `fixed` those of the other alone."""

    against: str
    differences: tuple[Difference, ...]
    new: tuple[Finding, ...]
    fixed: tuple[Finding, ...]
    unchanged: tuple[Finding, ...]

    @property
    def unexplained(self) -> tuple[Difference, ...]:
        return tuple(one for one in self.differences if not one.explained_by)


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of one diagnosis. `findings` are in reading order: causes first, each before what it explains."""

    subject: str
    detected: Mapping[str, str]
    findings: tuple[Finding, ...]
    passed: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]  # code and reason
    crashed: tuple[tuple[str, str], ...]  # code and the exception in one line
    problems: tuple[str, ...]  # what could not be read
    observations: tuple[Evidence, ...] = ()  # what was measured, whether or not it is a fault
    suppressed: tuple[tuple[Finding, str], ...] = ()  # findings that the user set aside, and why
    notes: tuple[str, ...] = ()  # what was chosen while reading, where there was a choice
    comparison: Comparison | None = None  # with a run that is known to be good
    stale: tuple[str, ...] = ()  # what the baseline sets aside and is no longer found

    def count(self, severity: Severity) -> int:
        return sum(finding.severity is severity for finding in self.findings)

    def exit_code(self, fail_on: Severity | None) -> int:
        """0, 1 or 2 as the contract has it; `fail_on` None never fails on a finding."""
        if self.crashed or not (self.findings or self.passed or self.suppressed):
            return 2  # silence is never a pass: a check that crashed or nothing that could be checked
        if fail_on is not None and any(finding.severity.at_least(fail_on) for finding in self.findings):
            return 1
        return 2 if self.problems else 0  # nor is what could not be read


def diagnose(
    run: Run,
    checks: Iterable[Check],
    *,
    thresholds: Mapping[str, Mapping[str, Any]] | None = None,
    severities: Mapping[str, Severity] | None = None,
    on_check: Callable[[Check], object] = lambda check: None,
) -> Report:
    """Run every check on `run`. One that crashes is reported as such and hides nothing.

    `thresholds` sets keyword arguments by code or by name of the check, `severities` another severity than its own.
    `on_check` is called before each.
    """
    import numpy as np

    thresholds, severities = thresholds or {}, severities or {}
    fired: list[Finding] = []
    passed: list[str] = []
    skipped: list[tuple[str, str]] = []
    crashed: list[tuple[str, str]] = []
    with np.errstate(all="ignore"):  # weights may be any pattern of bits: what overflows is infinite, and no verdict
        for check in checks:
            on_check(check)
            severity = severities.get(check.code, severities.get(check.name, check.severity))
            settings = {**thresholds.get(check.name, {}), **thresholds.get(check.code, {})}
            try:
                findings = [_stamp(finding, check, severity) for finding in check(run, **settings)]
            except Missing as missing:
                skipped.append((check.code, str(missing)))
            except Exception as error:  # noqa: BLE001 - a bug in one check must not hide what the others found
                crashed.append((check.code, _one_line(error)))
            else:
                fired.extend(findings)
                if not findings:
                    passed.append(check.code)
        observations, crashes = observe(run)
    return Report(
        subject=run.subject,
        detected=dict(sorted(run.roles.items())),
        findings=_causes_first(fired),
        passed=tuple(passed),
        skipped=tuple(skipped),
        crashed=tuple(crashed),
        problems=(*run.problems, *crashes),
        observations=tuple(observations),
        notes=tuple(run.notes),
    )


def _stamp(finding: Finding, check: Check, severity: Severity) -> Finding:
    fix = finding.fix or check.sections.get("Fix", "")
    return replace(finding, code=check.code, name=check.name, severity=severity, fix=fix)


def _causes_first(fired: Sequence[Finding]) -> tuple[Finding, ...]:
    """Keep of `explained_by` what fired, and order: unexplained first, worst first, each cause before its symptoms."""
    found = {finding.code for finding in fired} | {f"{finding.code}@{finding.where}" for finding in fired}
    kept = [replace(finding, explained_by=_found_causes(finding, found)) for finding in fired]
    kept.sort(key=lambda finding: (bool(finding.explained_by), finding.severity.rank, finding.code, finding.where))
    ordered: list[Finding] = []
    while kept:
        waiting = {finding.code for finding in kept}
        # two codes that name each other as the cause would wait for ever: then the first in line goes
        ready = next((one for one in kept if not waiting.intersection(one.explained_by)), kept[0])
        kept.remove(ready)
        ordered.append(ready)
    return tuple(ordered)


def _found_causes(finding: Finding, found: Collection[str]) -> tuple[str, ...]:
    codes = (one.partition("@")[0] for one in finding.explained_by if one in found)
    return tuple(code for code in dict.fromkeys(codes) if code != finding.code)


def _one_line(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})".replace("\n", " ")
