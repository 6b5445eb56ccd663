"""Where a finding stands, for formats that want a file and a line."""

from __future__ import annotations

import re
from pathlib import Path

from fgclip_doctor.diagnosis import Report
from fgclip_doctor.findings import Finding

SOURCE = re.compile(r"(?P<path>.+?)(?::(?P<line>\d+))?(?:: .*)?", re.DOTALL)  # as `run.Source` prints itself


def place(finding: Finding, report: Report) -> tuple[str, int | None]:
    """The file that proves it, from here on if it is in this directory, and the line: that of the first evidence which
    names one, else the subject of the report."""
    for evidence in finding.evidence:
        match = SOURCE.fullmatch(evidence.source)
        if match and not evidence.source.startswith("--"):  # what the user stated is in no file
            return here(match["path"]), int(match["line"]) if match["line"] else None
    return here(report.subject.split(", ")[0]), None


def here(path: str) -> str:
    """`path` relative to this directory where it is inside it."""
    try:
        return str(Path(path).absolute().relative_to(Path.cwd())) if path else path
    except (ValueError, OSError):
        return path
