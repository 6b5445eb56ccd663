"""What a training was configured with, as its own objects say: arguments, the model's configuration, constants."""

from __future__ import annotations

import argparse
import dataclasses
import gc
import re
import sys
from collections.abc import Iterator, Mapping

from fgclip_doctor.live.subject import Subject

MAX_KEYS, MAX_LENGTH, MAX_DEPTH = 400, 40, 2
WORDS = re.compile(r"sched|clock|unit|hidden_act|loss_kind|model_type")  # keys whose words matter; others may be secret
STATE = "transformers.trainer_callback"

Plain = dict[str, object]


def configurations(subject: Subject) -> Iterator[tuple[str, Plain]]:
    """Where it was found, and its numbers, switches and few of its words; what counts most comes first."""
    kinds: tuple[type, ...] = (argparse.Namespace,)
    if "transformers.training_args" in sys.modules:
        kinds = (sys.modules["transformers.training_args"].TrainingArguments, *kinds)
    states = [sys.modules[STATE].TrainerState] if STATE in sys.modules else []
    found = gc.get_referrers(*_with_subclasses(kinds), *states)
    for one in sorted(found, key=lambda one: issubclass(type(one), kinds[-1])):
        if issubclass(type(one), kinds):
            yield type(one).__name__, _plain(vars(one))
        elif type(one) in states and one.max_steps > 0:  # as epochs came to
            yield type(one).__name__, {"max_steps": one.max_steps}
    seen: set[int] = set()
    for name, module in subject.modules():
        if name.count(".") > 1 or len(seen) > MAX_KEYS:
            continue
        for key, value in vars(module).items():
            fields = None if key.startswith("_") or id(value) in seen else _fields(value)
            if fields is not None:
                seen.add(id(value))
                yield f"{name}.{key}".strip("."), _plain(fields)
    main = vars(sys.modules["__main__"])
    yield "__main__", {key.lower(): value for key, value in _plain(main).items()}


def _with_subclasses(kinds: tuple[type, ...]) -> list[type]:
    """Objects refer to their class: asking for those takes half the time of going through all that there are."""
    every = list(kinds)
    for kind in every:
        below: list[type] = kind.__subclasses__()
        every += [one for one in below if one not in every]
    return every


def _fields(value: object) -> Mapping[str, object] | None:
    """Those of what a configuration is kept in."""
    if isinstance(value, Mapping):
        return value
    name = type(value).__name__
    if (
        dataclasses.is_dataclass(value)
        or isinstance(value, argparse.Namespace)
        or name.endswith(("Config", "Namespace"))
    ):
        return getattr(value, "__dict__", None)
    return None


def _plain(fields: Mapping[str, object], depth: int = MAX_DEPTH) -> Plain:
    plain: Plain = {}
    for key, value in list(fields.items()):
        if not isinstance(key, str) or key.startswith("_") or len(plain) >= MAX_KEYS:
            continue
        if isinstance(value, (bool, int, float)) or (
            isinstance(value, str) and len(value) <= MAX_LENGTH and WORDS.search(key.lower())
        ):
            plain[key] = value.value if hasattr(value, "value") else value  # an enum of words, or of numbers
        elif depth and (nested := _fields(value)) is not None:
            plain[key] = _plain(nested, depth - 1)
    return plain
