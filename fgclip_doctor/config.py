"""The configuration: ``[tool.fgclip-doctor]`` of a ``pyproject.toml``, or a TOML file of its own.

::

    [tool.fgclip-doctor]
    select = ["FGD2", "logit-scale-above-cap"]
    ignore = ["FGD108"]
    fail-on = "warning"

    [tool.fgclip-doctor.thresholds.logit-scale-above-cap]
    cap = 4.7

    [tool.fgclip-doctor.roles]
    "bank.image_keys" = "memory.keys"

    [tool.fgclip-doctor.facts]
    accumulation = 8
"""

from __future__ import annotations

import math
import stat
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fgclip_doctor.findings import Severity
from fgclip_doctor.registry import Check

TABLE = "fgclip-doctor"
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
    path: str = ""

    def check_against(self, checks: Iterable[Check]) -> None:
        """Raise `ConfigError` for a threshold of a rule that isn't there, or that the rule doesn't have."""
        known = {key: check for check in checks for key in (check.code, check.name)}
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
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"{path}: not a file")  # a pipe or a device might never end
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: too large for a configuration")
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{path}: {reason}") from None
    nested = document.get("tool", {}).get(TABLE) if isinstance(document.get("tool", {}), dict) else None
    if nested is None:
        if path.name == "pyproject.toml" or not given:
            return Config()
        nested = document
    return _parse(nested, str(path))


def _parse(table: object, path: str) -> Config:
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: [tool.{TABLE}] is not a table")
    unknown = set(table) - {"select", "ignore", "fail-on", "thresholds", "roles", "facts"}
    if unknown:
        raise ConfigError(f"{path}: unknown setting {sorted(unknown)[0]!r}")
    lists = {}
    for key in ("select", "ignore"):
        value = table.get(key, [])
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            raise ConfigError(f"{path}: {key} must be a list of codes or names")
        lists[key] = tuple(value)
    tables = {}
    for key in ("thresholds", "roles", "facts"):
        value = table.get(key, {})
        inner = all(isinstance(entry, dict) for entry in value.values()) if isinstance(value, dict) else False
        if not isinstance(value, dict) or (key == "thresholds" and not inner):
            raise ConfigError(f"{path}: {key} must be a table" + (" of tables" if key == "thresholds" else ""))
        tables[key] = value
    if not all(isinstance(name, str) for name in tables["roles"].values()):
        raise ConfigError(f"{path}: roles must name tensors or series")
    try:
        fail_on = parse_fail_on(str(table.get("fail-on", "error")))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return Config(
        select=lists["select"],
        ignore=lists["ignore"],
        fail_on=fail_on,
        thresholds=tables["thresholds"],
        roles=tables["roles"],
        facts=tables["facts"],
        path=path,
    )
