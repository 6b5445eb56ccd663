"""DeepSpeed's checkpoints, ZeRO stages 0 to 3: the 32-bit masters and Adam's state by parameter, without its code.

Every rank saves, for each parameter group, one flat stretch of the 32-bit masters and of each of Adam's moments.
Stages 1 and 2 cut the group, with all its parameters in a row, into as many stretches as there are ranks; stage 3 cuts
every parameter by itself. `param_shapes` of the model's file has names and shapes in that order. The layout is that of
deepspeed/utils/zero_to_fp32.py and deepspeed/checkpoint/ds_to_universal.py (deepspeedai/DeepSpeed).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fgclip_doctor.run import Fact, Missing, Optimizer, OptimizerGroup, ParameterState, Source, Tensor
from fgclip_doctor.sources import torch_file, trainer
from fgclip_doctor.sources.facts import valid
from fgclip_doctor.sources.files import Unreadable, inside, open_regular, read_at
from fgclip_doctor.sources.measure import Stored, StoredTensor, is_shape
from fgclip_doctor.sources.pickles import Stub
from fgclip_doctor.sources.pieces import in_a_row

MODEL_FILE = re.compile(r"(?:zero_pp_rank_(\d{1,6})_)?mp_rank_(\d{1,6})\w*_model_states\.pt")
OPTIMIZER_FILE = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d{1,6})_mp_rank_(\d{1,6})\w*_optim_states\.pt")
STEP_FOLDER = re.compile(r"global_step(\d{1,15})")
MASTERS = ("single_partition_of_fp32_groups", "fp32_flat_groups", "fp32_groups_flat")  # stages 1 and 2, 3, 0
MOMENTS = ("exp_avg", "exp_avg_sq")
COMPARED = 1 << 20  # elements of a parameter that is compared with the model's copy of it

Partition = Mapping[str, Any]  # "fp32", "exp_avg" and "exp_avg_sq" as flat tensors, "step", and "group"
Span = tuple[int | None, int | None, int, int]  # a rank or all, a partition or all; first element there, and how many


@dataclass(slots=True)
class Saved:
    """What one step's directory holds. `content` is the model's file of the first rank, with all that was added to it.

    `masters` are the parameters that the optimizer keeps in 32 bits, `tensors` what the model's file has.
    """

    content: Mapping[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    masters: dict[str, Tensor] = field(default_factory=dict)
    optimizer: Optimizer | None = None
    facts: list[Fact] = field(default_factory=list)
    partial: str = ""
    problems: list[Unreadable] = field(default_factory=list)


class _NoMap(Exception):  # noqa: N818 - the reason for which it isn't known which parameter is where
    pass


def is_step(directory: Path) -> bool:
    """True for a directory with DeepSpeed's files of one step."""
    return any(
        MODEL_FILE.fullmatch(entry.name) or OPTIMIZER_FILE.fullmatch(entry.name) for entry in directory.iterdir()
    )


def is_checkpoint(directory: Path) -> bool:
    """True also where Lightning put them into a folder of their own."""
    return is_step(directory) or ((directory / "checkpoint").is_dir() and is_step(directory / "checkpoint"))


def place(directory: Path) -> Path | None:
    """The files of one step: `directory` itself, or the folder in it that `latest` names, else that of the last step.

    Raises `Unreadable` if `latest` leads out of the directory.
    """
    if is_step(directory):
        return directory
    latest = directory / "latest"
    if latest.is_file():
        with open_regular(latest) as descriptor:
            tag = read_at(descriptor, latest, 0, min(latest.stat().st_size, 255)).decode("utf-8", "replace").strip()
        named = inside(directory, tag)
        if named.is_dir() and is_step(named):
            return named
    steps = [(int(match[1]), entry) for entry in directory.iterdir() if (match := STEP_FOLDER.fullmatch(entry.name))]
    folders = [entry for _, entry in sorted(steps) if entry.is_dir() and is_step(entry)]
    return folders[-1] if folders else None


def read(directory: Path) -> Saved:
    """What the files of one step tell. A file that can't be read costs a line, and what depends on it."""
    saved = Saved()
    names = sorted(entry.name for entry in directory.iterdir())
    models = _by_rank(names, MODEL_FILE)
    states = {at: _attempt(saved, directory / name) for at, name in models.items()}
    first = states.get(min(states)) if states else None
    saved.content = first or {}
    _model(saved, states, directory)
    shards = {at: _attempt(saved, directory / name) for at, name in _by_rank(names, OPTIMIZER_FILE).items()}
    whole = saved.content.get("optimizer")
    if shards:
        zero = [_mapping(shard.get("optimizer_state_dict")) if shard else {} for _, shard in sorted(shards.items())]
        _optimizer(saved, zero, len({rank for _, rank in [*shards, *models]}), directory)
    elif isinstance(whole, Mapping) and "fp32_groups_flat" in whole:
        _optimizer(saved, [whole], 1, directory)
    _facts(saved, directory)
    return saved


def _by_rank(names: Iterable[str], pattern: re.Pattern[str]) -> dict[tuple[int, int], str]:
    """The files by data-parallel and model-parallel rank."""
    return {(int(match[1] or 0), int(match[2])): name for name in names if (match := pattern.fullmatch(name))}


def _attempt(saved: Saved, path: Path) -> Mapping[str, Any] | None:
    try:
        content = torch_file.read(path)
        if not isinstance(content, Mapping):
            raise Unreadable(path, "is not one of DeepSpeed's files")
    except Unreadable as error:
        saved.problems.append(error.bare())
        return None
    return content


def _mapping(value: object) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}


def _model(saved: Saved, states: Mapping[tuple[int, int], Mapping[str, Any] | None], directory: Path) -> None:
    """The model's tensors: all of them, or under stage 3 the buffers and what is frozen."""
    shapes, buffers = _shapes(saved.content), saved.content.get("buffer_names")
    trained = {name for group in shapes for name in group}
    frozen = _mapping(saved.content.get("frozen_param_shapes"))
    for name, tensor in _mapping(saved.content.get("module")).items():
        stub = tensor.size == 0 if isinstance(tensor, Tensor) else True  # stage 3 leaves an empty tensor behind
        if isinstance(tensor, Tensor) and not (stub and (name in trained or name in frozen)):
            saved.tensors[str(name)] = tensor
    fragments = [_mapping(state.get("frozen_param_fragments")) if state else {} for _, state in sorted(states.items())]
    for name, shape in frozen.items():
        if name in saved.tensors or not isinstance(shape, tuple) or not is_shape(shape):
            continue
        parts = [one for fragment in fragments if isinstance(one := fragment.get(name), StoredTensor)]
        cut = _cut([part.stored for part in parts], 0, math.prod(shape))
        if len(parts) == len(fragments) and cut:
            saved.tensors[name] = in_a_row(name, shape, Source(str(directory), name), cut)
        else:
            saved.partial = "the checkpoint was saved without its frozen parameters"
    if not isinstance(buffers, list) and not saved.tensors:
        saved.partial = "the model's file of the checkpoint is missing or holds no module"


def _shapes(content: Mapping[str, Any]) -> list[dict[str, tuple[int, ...]]]:
    """Names and shapes by group of parameters, in the order of the flat stretches."""
    groups = content.get("param_shapes")
    known = [groups] if isinstance(groups, Mapping) else groups if isinstance(groups, list) else []
    return [
        {str(name): shape for name, shape in _mapping(group).items() if isinstance(shape, tuple) and is_shape(shape)}
        for group in known
    ]


def _optimizer(saved: Saved, ranks: Sequence[Mapping[Any, Any]], model_ranks: int, directory: Path) -> None:
    """The optimizer by parameter where the layout says which is where, else by flat stretch."""
    source = Source(str(directory), "optimizer_state_dict")
    shards = [list(_partitions(zero)) for zero in ranks]
    options = next((known for zero in ranks if (known := _options(zero))), [])
    try:
        if model_ranks > 1:
            saved.partial = f"the checkpoint is split over {model_ranks} model-parallel ranks, which are not joined"
            raise _NoMap(saved.partial)
        spans = list(_spans(ranks, shards, _shapes(saved.content)))
        for name, shape, span, _ in spans:
            saved.masters[name] = _gathered(shards, "fp32", name, shape, span, source)
        _compare(saved)
        saved.optimizer = _named(shards, spans, options, source)
    except _NoMap as reason:
        saved.masters.clear()
        readable = [shard for shard in shards if shard]
        saved.optimizer = _unnamed(readable, options, source, str(reason)) if readable else None


def _partitions(zero: Mapping[Any, Any]) -> Iterator[Partition]:
    """The flat stretches of one rank with their state."""
    flats: list[Any] = next((zero[key] for key in MASTERS if isinstance(zero.get(key), list)), [])
    base = zero.get("base_optimizer_state", zero.get("optimizer_state_dict"))
    states = base.get("state") if isinstance(base, Mapping) else dict(enumerate(base)) if isinstance(base, list) else {}
    common = zero.get("base_optimizer_state_step")
    for place, flat in enumerate(flats):
        state = _mapping(_mapping(states).get(place))
        group = next((g for g in _groups(zero) if place in g["params"]), {})
        step = state.get("step", group.get("step", common))  # FusedAdam counts by group
        tensors = {key: one for key in MOMENTS if isinstance(one := state.get(key), StoredTensor)}
        if isinstance(flat, StoredTensor):
            yield {"fp32": flat, "step": _whole(step), **tensors}


def _groups(zero: Mapping[Any, Any]) -> list[Mapping[str, Any]]:
    """The parameter groups of the inner optimizer, whose parameters are the flat stretches."""
    base = _mapping(zero.get("base_optimizer_state", zero.get("optimizer_state_dict")))
    groups = base.get("param_groups")
    return [one for one in groups if isinstance(_mapping(one).get("params"), list)] if isinstance(groups, list) else []


def _options(zero: Mapping[Any, Any]) -> list[tuple[set[int], dict[str, Any]]]:
    """Which stretches a group holds, and its options."""
    return [
        (
            {place for place in group["params"] if isinstance(place, int)},
            {str(key): value for key, value in group.items() if key not in ("params", "param_names")},
        )
        for group in _groups(zero)
    ]


def _whole(value: object) -> int | None:
    if isinstance(value, Stub) and len(value.args) == 1:  # an enum, as the stage is one
        value = value.args[0]
    if isinstance(value, Tensor) and value.size == 1:
        value = value.item()
    whole = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1 << 53
    return int(value) if whole and isinstance(value, (int, float)) else None


def _spans(
    ranks: Sequence[Mapping[Any, Any]], shards: Sequence[Sequence[Partition]], shapes: list[dict[str, tuple[int, ...]]]
) -> Iterator[tuple[str, tuple[int, ...], list[Span], int]]:
    """Name, shape, where the elements are, and the stretch that it begins in, of every parameter."""
    count = ranks[0].get("partition_count")
    world = max((_whole(one) or 0 for one in count), default=0) if isinstance(count, list) else _whole(count)
    if world is not None and world != len(ranks):
        raise _NoMap(f"{len(ranks)} of {world} optimizer files are there")
    if not any(shapes):
        raise _NoMap("DeepSpeed saved no param_shapes with this layout")
    if not shards[0] or any(len(shard) != len(shards[0]) for shard in shards):
        raise _NoMap("a rank's 32-bit parameters are missing")
    if _whole(ranks[0].get("zero_stage")) == 3 or "fp32_flat_groups" in ranks[0]:
        yield from _spans_by_parameter(shards, shapes)
        return
    if len(shapes) != len(shards[0]):
        raise _NoMap(f"{len(shapes)} groups of names for {len(shards[0])} groups of 32-bit parameters")
    for group, names in enumerate(shapes):
        start = 0
        for name, shape in names.items():
            yield name, shape, [(None, group, start, math.prod(shape))], group
            start += math.prod(shape)
        held, unit = sum(shard[group]["fp32"].size for shard in shards), 2 * len(shards)
        if -(-start // unit) != -(-held // unit):  # stretches are padded to twice the ranks
            raise _NoMap(f"group {group} holds {held:,} values where its names need {start:,}")


def _spans_by_parameter(
    shards: Sequence[Sequence[Partition]], shapes: list[dict[str, tuple[int, ...]]]
) -> Iterator[tuple[str, tuple[int, ...], list[Span], int]]:
    """Stage 3: each rank has the same share of every parameter, the last one with what is left."""
    ends = [sum(one["fp32"].size for one in shards[0][: place + 1]) for place in range(len(shards[0]))]
    start = 0
    for name, shape in ((name, shape) for group in shapes for name, shape in group.items()):
        size = math.prod(shape)
        share = -(-size // len(shards))
        spans = [(r, None, start, max(0, min(share, size - r * share))) for r in range(len(shards))]
        yield name, shape, list[Span](spans), next((g for g, end in enumerate(ends) if start < end), len(ends) - 1)
        start += share
    if start != ends[-1]:
        raise _NoMap(f"every rank holds {ends[-1]:,} values where the names need {start:,}")


def _gathered(
    shards: Sequence[Sequence[Partition]],
    key: str,
    name: str,
    shape: tuple[int, ...],
    spans: list[Span],
    source: Source,
) -> Tensor:
    """A parameter's masters or moments from all ranks. Raises `_NoMap` if they aren't all there."""
    parts: list[Stored] = []
    for rank, partition, start, count in spans:
        held = [
            one.get(key)
            for shard in (shards if rank is None else [shards[rank]])
            for one in (shard if partition is None else [shard[partition]])
        ]
        cut = _cut([one.stored if isinstance(one, StoredTensor) else None for one in held], start, count)
        if cut is None:
            raise _NoMap(f"the {key} of {name} are not all there")
        parts += cut
    return in_a_row(name, shape, Source(source.path, f"{key} of {name}"), parts or [])


def _cut(flats: Sequence[Stored | None], start: int, count: int) -> list[Stored] | None:
    """`count` elements from `start` of flat tensors that follow each other; None if they don't reach so far."""
    parts: list[Stored] = []
    end = start + count
    at = 0
    for flat in flats:
        if flat is None or not flat.contiguous:
            return None
        size = math.prod(flat.shape)
        first, last = max(start - at, 0), min(end - at, size)
        if first < last or (not count and not parts):
            parts.append(flat.cut(min(first, size), max(last - first, 0)))
        at += size
    return parts if sum(part.shape[0] for part in parts) == count and parts else None


def _compare(saved: Saved) -> None:
    """Check the map on the smallest and the last parameter of the model: a wrong one would be believed."""
    import numpy as np

    both = [name for name in saved.masters if name in saved.tensors and saved.tensors[name].size <= COMPARED]
    for name in {*sorted(both, key=lambda name: saved.tensors[name].size)[:4], *both[-1:]}:
        tensor, master = saved.tensors[name], saved.masters[name]
        try:
            ours, theirs = master.values(), tensor.values()
        except Missing as error:
            raise _NoMap(str(error)) from error
        if ours.shape != theirs.shape:
            raise _NoMap(f"{name} has another shape in the model than in param_shapes")
        finite = np.isfinite(ours) & np.isfinite(theirs)
        if np.any(np.abs(ours - theirs)[finite] > 2.0**-7 * np.abs(ours)[finite] + 2.0**-24):  # bfloat16, float16
            raise _NoMap(f"the 32-bit values found for {name} are not those of the model")


def _named(
    shards: Sequence[Sequence[Partition]],
    spans: Sequence[tuple[str, tuple[int, ...], list[Span], int]],
    options: Sequence[tuple[set[int], dict[str, Any]]],
    source: Source,
) -> Optimizer:
    """One index a parameter, in the order of `param_shapes`; the groups are those of the inner optimizer."""
    states: dict[int, ParameterState] = {}
    members: dict[int, list[int]] = {}
    for index, (name, shape, span, partition) in enumerate(spans):
        group = next((g for g, (places, _) in enumerate(options) if partition in places), partition)
        members.setdefault(group, []).append(index)
        present = [key for key in MOMENTS if key in shards[0][partition]]
        if present or shards[0][partition]["step"] is not None:
            moments = {key: _gathered(shards, key, name, shape, span, source) for key in present}
            states[index] = ParameterState(index, shards[0][partition]["step"], **moments)
    groups = tuple(
        OptimizerGroup(group, tuple(indices), dict(options[group][1]) if group < len(options) else {})
        for group, indices in sorted(members.items())
    )
    names = {index: (name,) for index, (name, *_) in enumerate(spans)}
    return Optimizer(source, groups, states, names, "names of DeepSpeed's param_shapes")


def _unnamed(
    shards: Sequence[Sequence[Partition]],
    options: Sequence[tuple[set[int], dict[str, Any]]],
    source: Source,
    reason: str,
) -> Optimizer:
    """One index a flat stretch, which says how many steps were made, and whether anything ever had a gradient."""
    states = {}
    for place in range(min(map(len, shards))):
        moments = {}
        for key in MOMENTS:
            held = [one.stored for shard in shards if isinstance(one := shard[place].get(key), StoredTensor)]
            size = sum(math.prod(one.shape) for one in held)
            if cut := _cut(held, 0, size):
                moments[key] = in_a_row(f"{key}.{place}", (size,), Source(source.path, f"{key}.{place}"), cut)
        states[place] = ParameterState(place, shards[0][place]["step"], **moments)
    groups = tuple(
        OptimizerGroup(group, tuple(sorted(places & set(states))), known)
        for group, (places, known) in enumerate(options or [({place}, {}) for place in states])
    )
    return Optimizer(source, groups, states, naming=f"not named: {reason}")


def _facts(saved: Saved, directory: Path) -> None:
    """The configuration, which wins over the trainer's arguments: what it leaves out is off, whatever they say."""
    config, path = _mapping(saved.content.get("ds_config")), f"{directory}: ds_config"
    saved.facts += trainer.facts({str(key): value for key, value in config.items()}, path)
    if config:
        clipping = valid("max_grad_norm", config.get("gradient_clipping", 0.0))  # DeepSpeed's default
        if clipping is not None:
            saved.facts.append(Fact("max_grad_norm", clipping, Source(path, "gradient_clipping")))
    for name in ("bf16", "fp16"):
        enabled = _mapping(config.get(name)).get("enabled")
        if isinstance(enabled, bool):
            saved.facts.append(Fact(name, enabled, Source(path, f"{name}.enabled")))
    for name, key in (("world_size", "dp_world_size"), ("skipped_steps", "skipped_steps")):
        count = valid(name, _whole(saved.content.get(key)))
        if count is not None:
            saved.facts.append(Fact(name, count, Source(str(directory), key)))
