"""What a project has decided to live with: ignores with a reason, and a baseline of findings that were there before."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from fgclip_doctor.config import ConfigError
from fgclip_doctor.diagnosis import Report
from fgclip_doctor.findings import Finding

VERSION = 1
MAX_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Accepted:
    """One finding of a baseline."""

    fingerprint: str
    code: str
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.code} {self.where}"


def applied(
    report: Report,
    *,
    set_aside: Iterable[Mapping[str, str]] = (),
    baseline: Mapping[str, Accepted] | None = None,
) -> Report:
    """`report` without the findings that the project has set aside, which are told with the reason.

    `set_aside` holds tables with `rule`, `reason` and maybe `where`, a pattern. What the baseline holds and was not
    found, though its check did run, is stale.
    """
    baseline = baseline or {}
    reasons = list(set_aside)
    kept: list[Finding] = []
    aside: list[tuple[Finding, str]] = list(report.suppressed)
    for finding in report.findings:
        reason = next((one["reason"] for one in reasons if _meant(one, finding)), None)
        if reason is None and finding.fingerprint in baseline:
            reason = "in the baseline"
        if reason is None:
            kept.append(finding)
        else:
            aside.append((finding, reason))
    found = {finding.fingerprint for finding in report.findings}
    ran = {*report.passed, *(finding.code for finding in report.findings)}
    gone = [one for key, one in baseline.items() if key not in found and one.code in ran]
    stale = tuple(map(str, sorted(gone, key=lambda one: (one.code, one.where))))
    return replace(report, findings=tuple(kept), suppressed=tuple(aside), stale=stale)


def _meant(ignore: Mapping[str, str], finding: Finding) -> bool:
    named = ignore["rule"] in (finding.code, finding.name)
    return named and fnmatchcase(finding.where, ignore.get("where", "*"))


def read_baseline(path: Path) -> dict[str, Accepted]:
    """By fingerprint. Raises `ConfigError` for a file that is none."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: too large for a baseline")
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["baseline_version"] != VERSION:
            raise ConfigError(f"{path}: a baseline of another version")
        entries = [Accepted(**{key: str(one[key]) for key in Accepted.__slots__}) for one in document["findings"]]
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ConfigError(f"{path}: not a baseline; --update-baseline writes one") from None
    return {one.fingerprint: one for one in entries}


def baseline_of(report: Report) -> str:
    """The findings of a report, those set aside by an earlier baseline included, as a baseline."""
    found = [*report.findings, *(finding for finding, _ in report.suppressed)]
    entries = sorted({one.fingerprint: one for one in found}.values(), key=lambda one: (one.code, one.where))
    document = {
        "baseline_version": VERSION,
        "findings": [{key: getattr(one, key) for key in Accepted.__slots__} for one in entries],
    }
    return json.dumps(document, indent=2) + "\n"
