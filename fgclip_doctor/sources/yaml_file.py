"""YAML that others wrote: plain mappings of text and numbers, small, and without the aliases that a few bytes can blow
up with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from fgclip_doctor.sources.facts import typed
from fgclip_doctor.sources.files import Unreadable, open_regular, read_at

LIMIT = 256 << 10  # bytes; PyYAML takes about a second for them


class _Loader(yaml.BaseLoader):
    """Reads every scalar as text, whatever its tag: `typed` says what it is, and takes 5e-6 for the number it is."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not followed")
        return super().compose_node(parent, index)


def read(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises `Unreadable`."""
    with open_regular(path) as descriptor:
        size = os.fstat(descriptor).st_size
        if size > LIMIT:
            raise Unreadable(path, f"is too large for YAML ({size:,} bytes; the limit is {LIMIT:,})")
        data = read_at(descriptor, path, 0, size)
    try:
        content = yaml.load(data, Loader=_Loader)  # noqa: S506 - a BaseLoader: it makes text, lists and dicts alone
    except RecursionError as error:
        raise Unreadable(path, "is nested too deeply for YAML") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: bytes that are no UTF-8
        raise Unreadable(path, f"is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise Unreadable(path, "is not a YAML mapping")
    return {str(key): _typed(value) for key, value in content.items()}


def _typed(value: object) -> object:
    if isinstance(value, dict):
        return {str(key): _typed(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_typed(inner) for inner in value]
    return typed(value) if isinstance(value, str) else value
