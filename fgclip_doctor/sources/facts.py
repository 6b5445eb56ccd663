"""What a fact may be: nonsense in a file states nothing, and nonsense that the user states is refused in words."""

from __future__ import annotations

from typing import Any

from fgclip_doctor.run import FACTS, Fact, Source
from fgclip_doctor.sources.files import Unreadable

TEXTS = {"schedule", "hidden_act", "started_from", "loss_kind", "bank_clock", "adapter_targets"}
SWITCHES = {"bf16", "fp16", "bank_enabled", "gradient_checkpointing", "reentrant", "cut_off"}
CHOICES = {"bank_clock": ("step", "forward"), "loss_kind": ("softmax", "sigmoid")}
LIMITS = {  # of the numbers: far beyond what a run may have, and still computed with without care
    "micro_batch": (1, 1e7),
    "batch_in_use": (1, 1e7),
    "accumulation": (1, 1e6),
    "world_size": (1, 1e6),
    "max_steps": (1, 1e12),
    "num_epochs": (1e-6, 1e9),
    "global_step": (0, 1e12),
    "epochs_done": (0, 1e9),
    "skipped_steps": (0, 1e12),
    "dataset_size": (1, 1e12),
    "steps_per_epoch": (1e-3, 1e12),
    "regions_per_sample": (1e-3, 1e4),
    "candidates": (2, 1e9),
    "bank_size": (0, 1e9),
    "bank_warmup": (0, 1e12),
    "scale": (1e-3, 1e3),
    "dimension": (2, 1e6),
    "learning_rate": (0, 1e6),
    "weight_decay": (0, 1e6),
    "max_grad_norm": (0, 1e30),
    "clipping_asked": (0, 1e30),
    "warmup_steps": (0, 1e12),
    "warmup_ratio": (0, 1),
    "label_smoothing": (0, 1),
    "logit_scale_init": (-1e3, 1e3),
    "adapter_rank": (1, 1e6),
    "adapter_alpha": (1e-6, 1e9),
}


def valid(name: str, value: object) -> Any:
    """`value` if it can state the fact `name`, else None. Trainers write -1, 0 or null for what wasn't set."""
    if name in TEXTS:
        return value if isinstance(value, str) and value in CHOICES.get(name, (value,)) and value else None
    if name in SWITCHES:
        return value if isinstance(value, bool) else None
    least, most = LIMITS[name.partition(".")[0]]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if least <= value <= most else None


def stated(name: str, text: str) -> Fact:
    """The fact that a user types as `name` and `text`. Raises `Unreadable` for one that can't be."""
    source = Source("--fact", name)
    known, _, term = name.partition(".")
    if known not in FACTS or (term and known != "candidates"):
        raise Unreadable(str(source), f"there is no such fact; there are {', '.join(FACTS)}")
    value = valid(name, typed(text))
    if value is None:
        raise Unreadable(str(source), f"{name} must be {_must(known)}, not {text!r}")
    return Fact(name, value, source)


def _must(name: str) -> str:
    if name in SWITCHES:
        return "true or false"
    if name in TEXTS:
        return " or ".join(CHOICES.get(name, ("text",)))
    least, most = LIMITS[name]
    return f"a number from {least:g} to {most:g}"


def typed(text: str) -> int | float | bool | str:
    """A value that was typed or printed: a whole number, a number, true or false, else text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
