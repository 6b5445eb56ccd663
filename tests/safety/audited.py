"""The whole way of `audit` in this process: artefacts -> run -> every check -> both reports. Needs no torch."""

from __future__ import annotations

import json
from pathlib import Path

from fgclip_doctor.diagnosis import Report, diagnose
from fgclip_doctor.reports import json as json_report
from fgclip_doctor.reports import text
from fgclip_doctor.run import Run
from fgclip_doctor.sources import load
from fgclip_doctor_checks import CHECKS


def audited(path: Path) -> tuple[Run, Report]:
    """What an audit of `path` finds. Raises `Unreadable` where the command prints one line, and nothing else.

    A check or an observation that crashed, and anything in a report that a terminal would act on, fails.
    """
    run = load([path])
    report = diagnose(run, CHECKS)
    assert not report.crashed, report.crashed
    assert not any(line.startswith("observing ") for line in report.problems), report.problems
    shown = text.render(report, verbose=True)
    assert printable(shown), f"a terminal would act on {shown!r}"
    document = json_report.render(report, version="0")
    assert document.isascii()
    json.loads(document)
    return run, report


def printable(shown: str) -> bool:
    """True if `shown` has nothing but printable characters and the ends of its lines."""
    return all(char.isprintable() or char == "\n" for char in shown)
