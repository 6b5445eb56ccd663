"""Checks: how one is declared, and how those of installed packs are found.

A pack is any distribution with an entry point in the group ``fgclip_doctor.checks`` that names a module with a
``CHECKS`` sequence, and with ``CAUSES`` where it has any. The built-in pack is found in the same way.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from fgclip_doctor.findings import Finding, Severity
from fgclip_doctor.run import Run

GROUP = "fgclip_doctor.checks"
SECTIONS = ("Why", "Evidence", "Benign", "Fix", "Sources")  # of a check's docstring, in this order
CODE = re.compile(r"[A-Z]{2,8}\d{3}")
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")

Function = Callable[..., Iterator[Finding]]


class RegistryError(ValueError):
    """A check or a pack breaks the contract."""


@dataclass(frozen=True, slots=True)
class Cause:
    """One edge of a pack's graph of causes: the rule `code` explains the rule `symptom`, where `when` holds.

    A symptom's check names the `case` that it found, where an edge asks for one; with `same_place` both findings have
    to be at one tensor or series.
    """

    code: str
    symptom: str
    when: str
    case: str = ""
    same_place: bool = False


@dataclass(frozen=True)
class Check:
    """One check: a code, a name, a severity and a function from `Run` to findings. Its docstring is its explanation."""

    code: str
    name: str
    severity: Severity
    function: Function

    def __call__(self, run: Run, **thresholds: Any) -> Iterator[Finding]:
        return self.function(run, **thresholds)

    @cached_property
    def thresholds(self) -> dict[str, Any]:
        """The keyword-only arguments of the function with their defaults; the configuration sets the same names."""
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    @cached_property
    def defect(self) -> str:
        """The first line of the docstring: the defect in one sentence."""
        return self.explanation.partition("\n")[0]

    @cached_property
    def explanation(self) -> str:
        """The whole docstring, unindented."""
        return inspect.getdoc(self.function) or ""

    @cached_property
    def sections(self) -> dict[str, str]:
        """The sections of the docstring (`SECTIONS`), each as one paragraph."""
        found: dict[str, str] = {}
        pattern = rf"^({'|'.join(SECTIONS)}):(.*?)(?=^(?:{'|'.join(SECTIONS)}):|\Z)"
        for match in re.finditer(pattern, self.explanation, re.MULTILINE | re.DOTALL):
            found[match[1]] = " ".join(match[2].split())
        return found

    @cached_property
    def guide(self) -> dict[str, str]:
        """The sections (``## Title``) of the Markdown file beside the check that bears its name; none where it isn't.

        The built-in ones give the formula, and the fix in code.
        """
        file = Path(inspect.getsourcefile(self.function) or "").with_name(f"{self.name.replace('-', '_')}.md")
        if not file.is_file():
            return {}
        parts = re.split(r"^## (.+)$", file.read_text("utf-8"), flags=re.MULTILINE)
        return {title.strip(): text.strip() for title, text in zip(parts[1::2], parts[2::2], strict=True)}

    @property
    def preview(self) -> bool:
        """Preview checks (the hundred 900) run only when they are selected by name."""
        return self.code.startswith("FGD9")


def check(code: str, name: str, severity: Severity) -> Callable[[Function], Check]:
    """Declare a check::

    @check("LAB001", "no-logit-scale", Severity.WARNING)
    def no_logit_scale(run: Run) -> Iterator[Finding]:
        \"\"\"The checkpoint holds no logit scale. ...\"\"\"
    """
    if not CODE.fullmatch(code):
        raise RegistryError(f"{code!r} is not a rule code: two to eight capitals and three digits")
    if not NAME.fullmatch(name):
        raise RegistryError(f"{name!r} is not a rule name: lower-case words joined by hyphens")

    def declare(function: Function) -> Check:
        if not (inspect.getdoc(function) or "").strip():
            raise RegistryError(f"{code} {name} has no docstring, and `explain {code}` prints it")
        return Check(code, name, severity, function)

    return declare


def installed_checks() -> tuple[list[Check], list[str]]:
    """Every check of every installed pack, by code, and a line for each pack that could not be loaded."""
    checks: dict[str, Check] = {}
    problems: list[str] = []
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: (entry.name != "builtin", entry.name)):
        try:
            pack: Iterable[Check] = entry.load().CHECKS
            for one in pack:
                if not isinstance(one, Check):
                    raise RegistryError(f"{one!r} is not a check")
                if checks.setdefault(one.code, one) is not one:
                    raise RegistryError(f"the code {one.code} is taken")
        except Exception as error:  # noqa: BLE001 - a broken pack of somebody else must not take the rest with it
            problems.append(f"pack {entry.name} ({entry.value}): {type(error).__name__}: {error}")
    return [checks[code] for code in sorted(checks)], problems


def installed_causes() -> list[Cause]:
    """The graphs of causes of every installed pack that can be loaded, as one; `installed_checks` names the others."""
    causes: list[Cause] = []
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: (entry.name != "builtin", entry.name)):
        with suppress(Exception):
            causes += getattr(entry.load(), "CAUSES", ())
    return causes


def selected(checks: Iterable[Check], select: Iterable[str], ignore: Iterable[str]) -> list[Check]:
    """The checks that `select` and `ignore` leave. Each entry is a code, a prefix of one (FGD2), a name, or ``all``.

    Nothing selected means everything but the preview checks. An entry that matches nothing raises `RegistryError`.
    """
    checks = list(checks)
    chosen, dropped = list(select), list(ignore)
    for entry in [*chosen, *dropped]:
        if not any(_matches(one, entry) for one in checks):
            raise RegistryError(f"no rule matches {entry!r}; `fgclip-doctor rules` lists them")
    return [
        one
        for one in checks
        if (any(_matches(one, entry) for entry in chosen) if chosen else not one.preview)
        and not any(_matches(one, entry) for entry in dropped)
    ]


def _matches(check: Check, entry: str) -> bool:
    return entry.lower() == "all" or check.name == entry.lower() or check.code.startswith(entry.upper())
