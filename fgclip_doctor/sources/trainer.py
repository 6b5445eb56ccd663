"""Trainer state and configuration -> facts and series, each with the file and key that it was read from.

Every source is a flat mapping of keys; `FACT_KEYS` maps the names of the usual trainers onto the doctor's. Where two
sources state a fact, the caller lets the first win.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from fgclip_doctor.run import Fact, Series, Source
from fgclip_doctor.sources.facts import valid

if TYPE_CHECKING:
    from numpy.typing import NDArray

CUT_OFF = "None of the inputs have requires_grad=True"  # as torch.utils.checkpoint warns

# Fact -> the keys that state it, the most specific first, of transformers, open_clip, DeepSpeed, Lightning, plain loops
FACT_KEYS: dict[str, tuple[str, ...]] = {
    "micro_batch": (
        "per_device_train_batch_size",
        "train_micro_batch_size_per_gpu",
        "micro_batch_size",
        "micro_batch",
        "batch_size",
    ),
    "accumulation": (
        "gradient_accumulation_steps",
        "accumulation_steps",
        "grad_accumulation_steps",
        "accumulate_grad_batches",
        "accum_freq",
        "grad_accum_steps",
        "accumulation",
    ),
    "world_size": ("world_size",),
    "max_steps": ("max_steps", "total_steps", "num_training_steps", "max_train_steps", "num_train_steps"),
    "num_epochs": ("num_train_epochs", "num_epochs", "epochs"),
    "global_step": ("global_step",),
    "dataset_size": ("dataset_size", "train_num_samples", "num_train_samples"),
    "regions_per_sample": ("regions_per_sample",),
    "dimension": ("projection_dim", "embed_dim"),
    "learning_rate": ("learning_rate", "lr"),
    "weight_decay": ("weight_decay", "wd"),
    "max_grad_norm": ("max_grad_norm", "grad_clip_norm", "gradient_clip_val", "grad_clip", "clip_grad_norm"),
    "warmup_ratio": ("warmup_ratio",),
    "schedule": ("lr_scheduler_type", "lr_scheduler", "lr_schedule", "scheduler_type"),
    "bf16": ("bf16",),
    "fp16": ("fp16",),
    "cut_off": (CUT_OFF,),
    "gradient_checkpointing": ("gradient_checkpointing", "activation_checkpointing", "grad_checkpointing"),
    "label_smoothing": ("label_smoothing_factor", "label_smoothing"),
    "logit_scale_init": ("logit_scale_init_value", "logit_scale_init"),
    "hidden_act": ("hidden_act",),
    "started_from": ("model_name_or_path", "_name_or_path", "base_model"),
    "loss_kind": ("loss_kind",),
}

# What a script of its own calls its length; beside epochs it may be that of one of them, and a small number a count
LOOSE = ("num_steps", "n_steps", "train_steps", "steps", "max_iters", "num_iterations", "num_updates", "updates")
FEWEST = 20

_BANK = r"(?:\w*_)?(?:memory_?bank|bank|xbm|queue|moco)"
BANK_ENABLED = re.compile(rf"(?:use|enable|with)_{_BANK}|{_BANK}_(?:enabled?|on)")
BANK_SIZE = re.compile(rf"{_BANK}_(?:size|len|length|capacity|rows|k)")
_KEPT = r"(?:\w*_)?(?:memory|dict(?:ionary)?|stash|pool|cache|store|archive|history|negatives|reservoir|buffer)"
_AFTER = r"(?:warm_?up|start|delay|begin|from|after|wait)"
_UNITS = r"(?:steps?|updates?|iters?|iterations?|forwards?)"
BANK_WARMUP = re.compile(
    rf"{_BANK}_(?:warm_?up|start|delay|begin)(?:_(?:steps?|iters?|iterations?|forwards?|at|after|\w+_steps))?"
    rf"|(?:{_BANK}|{_KEPT})_{_AFTER}_{_UNITS}"
)
BANK_CLOCK = re.compile(rf"{_BANK}_(?:(?:warm_?up|start)_)?(?:clock|unit)")
PART_RATE = re.compile(
    r"(?=.*(?:text|vision|visual|image|proj|head|logit_scale|temperature))(?!.*(?:min|end|final|warm|decay))"
    r"(?:\w+_(?:lr|learning_rate)|(?:lr|learning_rate)_\w+)"
)
CLIP_ACTIVATION = "quick_gelu"  # of transformers' CLIPTextConfig and CLIPVisionConfig
FORWARD_WORDS = re.compile(r"forward|micro")
STEP_WORDS = re.compile(r"optimi[sz]er|global_step|update")


def facts(mapping: Mapping[str, Any], path: str) -> Iterator[Fact]:
    """The facts that `mapping` states: the fields of a TrainingArguments, an argparse namespace, a config.json."""
    for name, keys in FACT_KEYS.items():
        for key in keys:
            value = valid(name, mapping.get(key))
            if value is not None:
                yield Fact(name, value, Source(path, key))
                break
    yield from _length(mapping, path)
    yield from _warmup(mapping, path)
    yield from _rates(mapping, path)
    yield from _bank(mapping, path)
    for key in ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):
        kwargs = mapping.get(key)
        if isinstance(kwargs, Mapping) and isinstance(kwargs.get("use_reentrant"), bool):
            yield Fact("reentrant", kwargs["use_reentrant"], Source(path, f"{key}.use_reentrant"))


def config_facts(config: Mapping[str, Any], path: str) -> Iterator[Fact]:
    """The facts of a model's config.json: its own keys, and what only the towers' configurations say."""
    yield from facts(config, path)
    for tower in ("vision_config", "text_config"):
        nested = config.get(tower)
        activation = nested.get("hidden_act") if isinstance(nested, Mapping) else None
        if isinstance(activation, str):
            yield Fact("hidden_act", activation, Source(path, f"{tower}.hidden_act"))
        elif isinstance(nested, Mapping) and config.get("model_type") == "clip":
            yield Fact("hidden_act", CLIP_ACTIVATION, Source(path, f"{tower}, which leaves hidden_act at its default"))
    if "siglip" in str(config.get("model_type", "")).lower():
        yield Fact("loss_kind", "sigmoid", Source(path, "model_type"))


def arguments(mapping: Mapping[str, Any], path: str) -> Iterator[Fact]:
    """The facts of a trainer's and a model's arguments in one mapping, as loggers keep them."""
    told = {fact.name: fact for fact in reversed(list(config_facts(mapping, path)))}
    if "max_steps" in told:  # it overrides the epochs, whose default stays in the arguments
        told.pop("num_epochs", None)
    yield from told.values()


def _length(mapping: Mapping[str, Any], path: str) -> Iterator[Fact]:
    """The length of a run by a looser name, where nothing else tells it."""
    told = [next((key for key in FACT_KEYS[name] if key in mapping), None) for name in ("max_steps", "num_epochs")]
    epochs, each = (valid("num_epochs", mapping.get(key)) for key in (told[1] or "", "steps_per_epoch"))
    if told[0] is None and epochs and each:
        yield Fact("max_steps", epochs * each, Source(path, f"{told[1]} x steps_per_epoch"))
    if any(told):
        return
    for key in LOOSE:
        steps = valid("max_steps", mapping.get(key))
        if steps is not None and steps >= FEWEST:
            yield Fact("max_steps", steps, Source(path, key))
            return


def _warmup(mapping: Mapping[str, Any], path: str) -> Iterator[Fact]:
    """transformers 5 reads `warmup_steps` below one as a share of the run; 4 lets it win over `warmup_ratio` if set."""
    key = next((key for key in ("warmup_steps", "num_warmup_steps", "warmup") if key in mapping), None)
    steps = valid("warmup_steps", mapping.get(key)) if key else None
    ratio = valid("warmup_ratio", mapping.get("warmup_ratio"))
    if key is None or steps is None:
        return
    if 0 < steps < 1:
        yield Fact("warmup_ratio", steps, Source(path, key))
    elif steps or not ratio:
        yield Fact("warmup_steps", int(steps), Source(path, key))


def _rates(mapping: Mapping[str, Any], path: str) -> Iterator[Fact]:
    """The learning rates of parts of the model: `text_model_lr`, `lr_head`, under whatever key."""
    for key, value in mapping.items():
        rate = valid("learning_rate", value)
        if rate is not None and len(key) <= 80 and PART_RATE.fullmatch(key.lower()):
            yield Fact(f"learning_rate.{key}", rate, Source(path, key))


def _bank(mapping: Mapping[str, Any], path: str) -> Iterator[Fact]:
    """What custom arguments say about a memory bank, whatever they call it, and in a section of their own or not."""
    for key, value in _flat(mapping):
        word, source = key.lower().replace(".", "_"), Source(path, key)
        if isinstance(value, bool) and BANK_ENABLED.fullmatch(word):
            yield Fact("bank_enabled", value, source)
        elif BANK_SIZE.fullmatch(word) and valid("bank_size", value):
            yield Fact("bank_size", int(value), source)
        elif BANK_WARMUP.fullmatch(word) and valid("bank_warmup", value) is not None:
            yield Fact("bank_warmup", value, source)
            if FORWARD_WORDS.search(word):
                yield Fact("bank_clock", "forward", source)
            elif STEP_WORDS.search(word):
                yield Fact("bank_clock", "step", source)
        elif isinstance(value, str) and BANK_CLOCK.fullmatch(word):
            unit = "forward" if FORWARD_WORDS.search(value.lower()) else "step" if "step" in value.lower() else ""
            if unit:
                yield Fact("bank_clock", unit, source)


def _flat(mapping: Mapping[str, Any], depth: int = 2) -> Iterator[tuple[str, Any]]:
    """The keys of `mapping`, and those of the sections in it as ``section.key``."""
    for key, value in mapping.items():
        if not isinstance(key, str) or len(key) > 80:
            continue
        if not isinstance(value, Mapping):
            yield key, value
        elif depth:
            yield from ((f"{key}.{inner}", one) for inner, one in _flat(value, depth - 1))


def scheduler_facts(scheduler: Mapping[str, Any], path: str) -> Iterator[Fact]:
    """The peak learning rate, where one rate holds for every group."""
    rates = scheduler.get("base_lrs")
    known = {rate for rate in rates if valid("learning_rate", rate) is not None} if isinstance(rates, list) else set()
    if len(known) == 1:
        yield Fact("learning_rate", known.pop(), Source(path, "base_lrs"))


def derived(known: Mapping[str, Fact]) -> Iterator[Fact]:
    """Facts that follow exactly from others."""
    ratio, steps = known.get("warmup_ratio"), known.get("max_steps")
    if ratio and steps and "warmup_steps" not in known:
        source = Source(ratio.source.path, f"{ratio.source.key} x max_steps")
        yield Fact("warmup_steps", math.ceil(steps.value * ratio.value), source)


LOGGED = re.compile(r"(?:train(?:ing)?[/_.])?(\w+)")
EFFECTIVE = "batch_size"  # may be that of a forward or that of a step, where the two differ


def logged(series: Mapping[str, Series], known: Mapping[str, Fact]) -> Iterator[Fact]:
    """The batch, the accumulation and the ranks that a log gives with every record, and that nothing else states.

    Not a batch that the data's size and the steps of an epoch contradict.
    """
    told = dict(known)
    for fact in ("world_size", "accumulation", "micro_batch"):
        for name, one in series.items() if fact not in known else ():
            key = LOGGED.fullmatch(name.lower())
            constant = one.values.size > 2 and one.values[0] == one.values.min() == one.values.max()
            if key is None or key[1] not in FACT_KEYS[fact] or not constant or one.values[0] % 1:
                continue
            value = valid(fact, int(one.values[0]))
            parts = _factor(told, "accumulation") * _factor(told, "world_size")
            if value is None or (key[1] == EFFECTIVE and parts > 1) or not _fits_epoch(fact, value * parts, known):
                continue
            told[fact] = Fact(fact, value, one.source)
            yield told[fact]
            break


def _factor(known: Mapping[str, Fact], name: str) -> int:
    return int(known[name].value) if name in known else 1


def _fits_epoch(fact: str, batch: int, known: Mapping[str, Fact]) -> bool:
    """Whether so large a batch passes over the data in the steps that the trainer counted, with a short last one."""
    samples, steps = known.get("dataset_size"), known.get("steps_per_epoch")
    if fact != "micro_batch" or samples is None or steps is None:
        return True
    return abs(float(samples.value) / batch - float(steps.value)) <= max(1.0, 0.02 * float(steps.value))


def series(history: object, path: str) -> dict[str, Series]:
    """The `log_history` of a trainer_state.json: one series a key, NaN and infinities included."""
    columns: dict[str, list[tuple[int, float]]] = {}
    for entry in history if isinstance(history, list) else []:
        step = entry.get("step") if isinstance(entry, Mapping) else None
        if (
            not isinstance(entry, Mapping)
            or not isinstance(step, int)
            or isinstance(step, bool)
            or abs(step) >= 1 << 63
        ):
            continue
        for key, value in entry.items():
            number = _logged(value)
            if number is not None and key not in ("step", "epoch"):
                columns.setdefault(str(key), []).append((step, number))
    return {
        key: Series(
            key,
            _array([s for s, _ in rows], "int64"),
            _array([v for _, v in rows], "float64"),
            Source(path, f"log_history.{key}"),
        )
        for key, rows in columns.items()
    }


def _logged(value: object) -> float | None:
    """A logged number. Loggers that may not write NaN into JSON write it as a string."""
    if isinstance(value, str):
        lower = value.lower().removeprefix("-")
        return float(value) if lower in ("nan", "inf", "infinity") else None
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _array(values: list[Any], dtype: str) -> NDArray[Any]:
    import numpy as np

    array: NDArray[Any] = np.array(values, dtype=dtype)
    return array
