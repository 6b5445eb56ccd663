"""What a check says: a finding, its severity and the evidence that proves it. Frozen data, nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

Value = str | int | float | bool | None


class Severity(StrEnum):
    """How bad a finding is. Compare with `at_least`; the enum itself orders as text."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"

    @property
    def rank(self) -> int:
        """0 for the worst."""
        return list(Severity).index(self)

    def at_least(self, other: Severity) -> bool:
        """True when this severity is as bad as `other`, or worse."""
        return self.rank <= other.rank


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One measured number beside the number that was expected, how that was derived, and where it was read."""

    name: str
    value: Value
    expected: Value = None
    why: str = ""
    source: str = ""
    step: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One fault with its proof.

    A check fills in `message`, `where` and `evidence`. `explained_by` names the codes that would explain this finding
    if they fire too (``FGD501@region_loss``: if it fires at that place); the diagnosis drops those that did not. Code,
    name, severity and, unless the check has a more precise one, the fix are those of the check, and are stamped on by
    the diagnosis.
    """

    message: str
    where: str
    evidence: tuple[Evidence, ...]
    fix: str = ""
    explained_by: tuple[str, ...] = ()
    code: str = ""
    name: str = ""
    severity: Severity = Severity.WARNING

    @property
    def fingerprint(self) -> str:
        """Names the fault across runs of the doctor: its code and its place, not the numbers, which drift."""
        import hashlib  # loads OpenSSL, which only a report has need of

        return hashlib.sha256(f"{self.code}\0{self.where}".encode("utf-8", "surrogatepass")).hexdigest()[:16]
