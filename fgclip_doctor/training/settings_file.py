"""TOML and ``--set key=value`` -> `TrainConfig`, with one clear line for whatever doesn't fit.

::

    max_steps = 2000
    micro_batch = 64
    base = "openai-clip/"

    [model]
    preset = "b32"
    use_memory_bank = true
"""

from __future__ import annotations

import difflib
import json
import tomllib
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, asdict, fields, is_dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from fgclip_doctor.core.config import PRESETS, FgclipConfig
from fgclip_doctor.training.settings import TrainConfig

ALIASES = {"steps": "max_steps"}
PRESET = "preset"  # a key of the model table only: what its other keys change
MAX_BYTES = 1 << 20
SAVED = "settings.json"  # in output_dir: the settings that a resumed run goes on with


class SettingsError(ValueError):
    """A setting can't be read, doesn't exist or can't be what it was set to. The message starts with its origin."""


class Typed(str):
    """A value as it was typed on the command line, to be read as whatever the setting is."""


def read(path: Path | None, assignments: Sequence[str] = (), *, saved: Path | None = None, **rest: Any) -> TrainConfig:
    """The settings in `path` with `assignments` (``key=value``) over them.

    Under both lie the settings that an earlier run left in `saved`, and under those `rest`.
    """
    document: dict[str, Any] = dict(rest)
    origin = str(path) if path is not None else "--set"
    if saved is not None and saved.is_file():
        merge(document, _parsed(saved, json.loads))
    if path is not None:
        merge(document, aliased(_parsed(path, tomllib.loads)))
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not (key.strip() and equals):
            raise SettingsError(f"--set takes KEY=VALUE, not {assignment!r}")
        nested: dict[str, Any] = {}
        *tables, last = [part.strip() for part in key.split(".")]
        inner = nested
        for table in tables:
            inner = inner.setdefault(table, {})
        inner[last] = Typed(text.strip())
        merge(document, aliased(nested))
    try:
        config: TrainConfig = build(TrainConfig, document)
    except SettingsError as error:
        raise SettingsError(f"{origin}: {error}") from None
    return config


def save(config: TrainConfig) -> None:
    """Leaves the settings in `output_dir`, for a run that resumes."""
    config.output_dir.mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(config), indent=2, default=str)
    (config.output_dir / SAVED).write_text(text + "\n", encoding="utf-8")


def _parsed(path: Path, parse: Any) -> dict[str, Any]:
    try:
        if path.exists() and not path.is_file():
            raise SettingsError(f"{path}: not a file")
        if path.stat().st_size > MAX_BYTES:
            raise SettingsError(f"{path}: too large for settings")
        document = parse(path.read_text(encoding="utf-8"))
    except SettingsError:
        raise
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # of decoding, TOML or JSON
        raise SettingsError(f"{path}: {error}") from None
    if not isinstance(document, dict):
        raise SettingsError(f"{path}: not a table of settings")
    return document


def aliased(document: Mapping[str, Any]) -> dict[str, Any]:
    return {ALIASES.get(key, key): value for key, value in document.items()}


def merge(under: dict[str, Any], over: Mapping[str, Any]) -> None:
    """Puts `over` on `under`, table by table. Another preset of the model starts it anew."""
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(under.get(key), dict) and PRESET not in value:
            merge(under[key], value)
        else:
            under[key] = dict(value) if isinstance(value, Mapping) else value


def build(kind: type[Any], values: Mapping[str, Any], *, start: Any = None, prefix: str = "") -> Any:
    """A dataclass of `kind` with `values` over those of `start`, or over its defaults."""
    known = {one.name: one for one in fields(kind)}
    types_of = get_type_hints(kind)
    converted = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            raise SettingsError(f"unknown setting {name!r}" + (f"; did you mean {prefix}{near[0]}?" if near else ""))
        here = _default(known[key]) if start is None else getattr(start, key)
        converted[key] = convert(types_of[key], value, name, here)
    needed = [key for key, one in known.items() if one.default is one.default_factory is MISSING]
    if start is None and (absent := [f"{prefix}{key}" for key in needed if key not in converted]):
        raise SettingsError(f"{' and '.join(absent)} must be set")
    try:
        return kind(**converted) if start is None else replace(start, **converted)
    except ValueError as error:
        raise SettingsError(str(error)) from None


def _default(one: Field[Any]) -> Any:
    if one.default_factory is not MISSING:
        return one.default_factory()
    return None if one.default is MISSING else one.default


def convert(kind: Any, value: Any, name: str, here: Any = None) -> Any:
    """`value` as a setting of the type `kind`. A table changes what is `here`, unless it names a preset to change."""
    options = [*get_args(kind)]
    if get_origin(kind) in (Union, types.UnionType):
        if value is None or (isinstance(value, Typed) and value.lower() == "none"):
            if type(None) in options:
                return None
            raise SettingsError(f"{name} can't be none")
        return convert(next(one for one in options if one is not type(None)), value, name, here)
    if is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, Mapping):
            raise SettingsError(f"{name} is a table, and takes its settings one by one: {name}.KEY")
        if kind is FgclipConfig and PRESET in value:
            preset = convert(Literal[*PRESETS], value[PRESET], f"{name}.{PRESET}")
            here = FgclipConfig.preset(preset)
            value = {key: one for key, one in value.items() if key != PRESET}
        return build(kind, value, start=here, prefix=f"{name}.")
    if get_origin(kind) is Literal:
        if str(value) not in options:
            raise SettingsError(f"{name} must be {' or '.join(options)}, not {str(value)!r}")
        return str(value)
    if get_origin(kind) is tuple:
        return _tuple(options, value, name)
    if kind in (str, Path):
        if not isinstance(value, str) or not value:
            raise SettingsError(f"{name} must be text, not {_shown(value)}")
        return kind(str(value))
    given = _literal(value) if isinstance(value, Typed) else value
    whole = isinstance(given, int) and not isinstance(given, bool) and abs(given) < 1 << 62
    fits = {
        bool: isinstance(given, bool),
        int: whole,
        float: whole or (isinstance(given, float) and isfinite(given)),
    }
    if not fits[kind]:
        words = {bool: "true or false", int: "a whole number", float: "a number"}
        raise SettingsError(f"{name} must be {words[kind]}, not {_shown(value)}")
    return kind(given)


def _shown(value: Any) -> str:
    return repr(str(value)) if isinstance(value, str) else repr(value)


def _tuple(options: list[Any], value: Any, name: str) -> tuple[Any, ...]:
    if isinstance(value, Typed):
        value = [Typed(part.strip(" '\"")) for part in value.strip("[]() ").split(",") if part.strip()]
    if not isinstance(value, (list, tuple)):
        raise SettingsError(f"{name} must be a list, not {_shown(value)}")
    kinds = [options[0]] * len(value) if options[-1] is Ellipsis else options
    if len(kinds) != len(value):
        raise SettingsError(f"{name} must be a list of {len(kinds)}, not of {len(value)}")
    return tuple(convert(kind, one, name) for kind, one in zip(kinds, value, strict=True))


def _literal(text: str) -> Any:
    """A number or true or false as TOML writes it; else the text, which then fits nothing."""
    try:
        return tomllib.loads(f"value = {text}")["value"] if "\n" not in text else text
    except tomllib.TOMLDecodeError:
        return str(text)
