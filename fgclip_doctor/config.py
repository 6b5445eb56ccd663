"""The configuration: ``[tool.fgclip-doctor]`` of a ``pyproject.toml``, or a TOML file of its own.

::

    [tool.fgclip-doctor]
    select = ["FGD2", "logit-scale-above-cap"]
    ignore = ["FGD108", { rule = "FGD204", where = "text_queue", reason = "normalised on read" }]
    fail-on = "warning"

    [tool.fgclip-doctor.severity]
    FGD504 = "warning"
    cache = "/scratch/fgclip-doctor"  # of measurements; false for none

    [tool.fgclip-doctor.thresholds.logit-scale-above-cap]
    cap = 4.7

    [tool.fgclip-doctor.roles]
    "bank.image_keys" = "memory.keys"

    [tool.fgclip-doctor.facts]
    accumulation = 8

    [tool.fgclip-doctor.plan]  # what is meant to be so; a `plan.toml` beside a run holds the same keys
    bank-on = 50
    frozen = ["vision_model.*"]
    scale-at-cap = true
    restarts = [1000, 2000]
    candidates = { 0 = 4, 50 = 132 }
"""

from __future__ import annotations

import math
import stat
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fgclip_doctor.findings import Severity
from fgclip_doctor.registry import Check
from fgclip_doctor.run import Plan

TABLE = "fgclip-doctor"
PLAN_FILE = "plan.toml"
MAX_BYTES = 1 << 20


class ConfigError(ValueError):
    """The configuration can't be read or says something that doesn't exist. The message starts with the file."""


@dataclass(frozen=True)
class Config:
    """What the user decided. `fail_on` is None for ``never``."""

    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    fail_on: Severity | None = Severity.ERROR
    thresholds: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    plan: Plan = field(default_factory=Plan)
    set_aside: tuple[Mapping[str, str], ...] = ()  # `rule`, `reason` and maybe `where`: findings that are shown as such
    severity: Mapping[str, Severity] = field(default_factory=dict)
    cache: str | bool = True  # a directory, the usual one or none
    path: str = ""

    def check_against(self, checks: Iterable[Check]) -> None:
        """Raise `ConfigError` for a rule that isn't there, or a threshold that a rule doesn't have."""
        known = {key: check for check in checks for key in (check.code, check.name)}
        for rule in (*self.severity, *(one["rule"] for one in self.set_aside)):
            if rule not in known:
                raise ConfigError(f"{self.path}: there is no rule {rule!r}")
        for rule, settings in self.thresholds.items():
            if rule not in known:
                raise ConfigError(f"{self.path}: thresholds: there is no rule {rule!r}")
            for name, value in settings.items():
                defaults = known[rule].thresholds
                if name not in defaults:
                    has = ", ".join(defaults) or "none"
                    raise ConfigError(f"{self.path}: thresholds: {rule} has no threshold {name!r} (it has: {has})")
                whole = isinstance(defaults[name], int)
                if type(value) not in ((int,) if whole else (int, float)) or math.isnan(value):
                    must = "a whole number" if whole else "a number"
                    raise ConfigError(f"{self.path}: thresholds: {rule}.{name} must be {must}, not {value!r}")


def parse_fail_on(text: str) -> Severity | None:
    """``error``, ``warning``, ``info`` or ``never`` (None)."""
    if text == "never":
        return None
    try:
        return Severity(text)
    except ValueError:
        raise ConfigError(f"--fail-on takes error, warning, info or never, not {text!r}") from None


def read_config(path: Path | None) -> Config:
    """The configuration in `path`; with None, that of the ``pyproject.toml`` here, which may have none."""
    given = path is not None
    path = path or Path("pyproject.toml")
    if not given and not path.is_file():
        return Config()
    document = _document(path)
    nested = document.get("tool", {}).get(TABLE) if isinstance(document.get("tool", {}), dict) else None
    if nested is None:
        if path.name == "pyproject.toml" or not given:
            return Config()
        nested = document
    return _parse(nested, str(path))


def plan_beside(paths: Iterable[Path]) -> Plan:
    """The first `plan.toml` in one of these directories, or beside one of these files; an empty plan if none has one.

    Raises `ConfigError` for one that can't be read.
    """
    for path in paths:
        file = (path if path.is_dir() else path.parent) / PLAN_FILE
        if file.is_file():
            return _plan(_document(file), str(file))
    return Plan()


def _document(path: Path) -> dict[str, Any]:
    """A TOML file, whole. Raises `ConfigError`."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"{path}: not a file")  # a pipe or a device might never end
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: too large for a configuration")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{path}: {reason}") from None


def _plan(table: object, path: str) -> Plan:
    """What is declared to be intended. Raises `ConfigError` for a key or a value that declares nothing."""
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: plan must be a table")
    parsed: dict[str, Any] = {}
    for key, value in table.items():
        if key not in PLANNED:
            raise ConfigError(f"{path}: plan: unknown setting {key!r} (there are {', '.join(PLANNED)})")
        must, fits, take = PLANNED[key]
        if not fits(value):
            raise ConfigError(f"{path}: plan: {key} must be {must}, not {value!r}")
        parsed[key.replace("-", "_")] = take(value)
    return Plan(source=path, **parsed)


def _is_step(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_list(value: object, fits: Callable[[object], bool]) -> bool:
    return isinstance(value, list) and all(fits(one) for one in value)


def _is_candidates(value: object) -> bool:
    """A table from steps to numbers; TOML's keys are texts."""
    return isinstance(value, dict) and all(
        key.isdecimal() and isinstance(count, (int, float)) and not isinstance(count, bool) and 1 <= count < math.inf
        for key, count in value.items()
    )


PLANNED: dict[str, tuple[str, Callable[[Any], bool], Callable[[Any], Any]]] = {  # what a value must be, and becomes
    "bank-on": ("an optimizer step", _is_step, int),
    "frozen": ("a list of patterns", lambda value: _is_list(value, lambda one: isinstance(one, str)), tuple),
    "scale-at-cap": ("true or false", lambda value: isinstance(value, bool), bool),
    "restarts": ("a list of optimizer steps", lambda value: _is_list(value, _is_step), tuple),
    "candidates": (
        "a table from steps to candidates",
        _is_candidates,
        lambda value: {int(step): float(count) for step, count in sorted(value.items(), key=lambda item: int(item[0]))},
    ),
}


def _set_aside(table: dict[str, Any], path: str) -> tuple[dict[str, Any], tuple[Mapping[str, str], ...]]:
    """The table with plain rules left in ``ignore``, and of that list the tables, which have to give a reason."""
    entries = table.get("ignore", [])
    if not isinstance(entries, list):
        return table, ()  # refused with the other lists
    reasoned = [entry for entry in entries if isinstance(entry, dict)]
    for entry in reasoned:
        texts = all(isinstance(value, str) for value in entry.values())
        known = {"rule", "reason"} <= entry.keys() <= {"rule", "reason", "where"}
        if not (texts and known and entry["reason"].strip()):
            raise ConfigError(f"{path}: ignore: {entry!r} must have a rule and a reason, and may have where")
    return {**table, "ignore": [entry for entry in entries if not isinstance(entry, dict)]}, tuple(reasoned)


def _parse(table: object, path: str) -> Config:
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: [tool.{TABLE}] is not a table")
    unknown = set(table) - {"select", "ignore", "fail-on", "thresholds", "roles", "facts", "plan", "cache", "severity"}
    if unknown:
        raise ConfigError(f"{path}: unknown setting {sorted(unknown)[0]!r}")
    lists = {}
    table, set_aside = _set_aside(table, path)
    for key in ("select", "ignore"):
        value = table.get(key, [])
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            raise ConfigError(f"{path}: {key} must be a list of codes or names")
        lists[key] = tuple(value)
    tables = {}
    for key in ("thresholds", "roles", "facts", "severity"):
        value = table.get(key, {})
        inner = all(isinstance(entry, dict) for entry in value.values()) if isinstance(value, dict) else False
        if not isinstance(value, dict) or (key == "thresholds" and not inner):
            raise ConfigError(f"{path}: {key} must be a table" + (" of tables" if key == "thresholds" else ""))
        tables[key] = value
    if not all(isinstance(name, str) for name in tables["roles"].values()):
        raise ConfigError(f"{path}: roles must name tensors or series")
    cache = table.get("cache", True)
    if not isinstance(cache, (str, bool)):
        raise ConfigError(f"{path}: cache must be a directory, or false for none")
    try:
        fail_on = parse_fail_on(str(table.get("fail-on", "error")))
        severity = {rule: Severity(str(value)) for rule, value in tables["severity"].items()}
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: severity: {error}; it takes error, warning and info") from None
    return Config(
        select=lists["select"],
        ignore=lists["ignore"],
        fail_on=fail_on,
        thresholds=tables["thresholds"],
        roles=tables["roles"],
        facts=tables["facts"],
        plan=_plan(table["plan"], path) if "plan" in table else Plan(),
        cache=cache,
        set_aside=set_aside,
        severity=severity,
        path=path,
    )
