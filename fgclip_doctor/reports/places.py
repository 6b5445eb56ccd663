"""Where a finding stands, for formats that want a file and a line."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from fgclip_doctor.diagnosis import Report
from fgclip_doctor.findings import Finding

SOURCE = re.compile(r"(?P<path>.+?)(?::(?P<line>\d+))?(?:: .*)?", re.DOTALL)  # as `run.Source` prints itself
RECORDED = re.compile(r"rank-\d+\.\d+\.jsonl")
CODE = (".toml", ".yaml", ".yml", ".json", ".py", ".sh")  # of a command, what people change: configurations first


def place(finding: Finding, report: Report) -> tuple[str, int | None]:
    """The file that proves it, from here on if it is in this directory, and the line: that of the first evidence which
    names one, else the subject of the report. For what a command was seen to do, its configuration or its script."""
    for evidence in finding.evidence:
        match = SOURCE.fullmatch(evidence.source)
        if match and not evidence.source.startswith("--"):  # what the user stated is in no file
            recorded = RECORDED.fullmatch(Path(match["path"]).name)
            if recorded and (code := _code(finding, report)):
                return code, None
            return here(match["path"]), int(match["line"]) if match["line"] else None
    return here(report.subject.split(", ")[0]), None


def _code(finding: Finding, report: Report) -> str | None:
    """The configuration, else the script, that the command names which a report is of: of several, the finding's."""
    command = next((one for one in report.subject.split(", ") if finding.where.startswith(f"{one}: ")), report.subject)
    try:
        words = [word.rpartition("=")[2] for word in shlex.split(command)]
        files = [word for word in words if word.endswith(CODE) and Path(word).is_file()]
    except (ValueError, OSError):  # no command, or words that can't be the name of a file
        return None
    known = [path for path in map(here, files) if not Path(path).is_absolute()]
    return min(known, key=lambda path: CODE.index(Path(path).suffix), default=None)


def here(path: str) -> str:
    """`path` relative to this directory where it is inside it."""
    try:
        return str(Path(path).absolute().relative_to(Path.cwd())) if path else path
    except (ValueError, OSError):
        return path
