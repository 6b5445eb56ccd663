"""A saved optimizer -> `Optimizer`: groups, the state of each parameter, and which parameter is which index."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from fgclip_doctor.run import Missing, Optimizer, OptimizerGroup, ParameterState, Source, Tensor
from fgclip_doctor.sources.alignment import aligned
from fgclip_doctor.sources.files import Unreadable
from fgclip_doctor.sources.naming import Names, TooOpen, Weights, align

# State tensors that have the shape of their parameter, over torch's optimizers.
MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer", "square_avg", "sum", "exp_inf", "max_exp_avg_sq", "prev")
MAX_AGREEMENT_SIZE = 1 << 22  # elements; larger tensors are not read only to tell two names apart
MIN_AGREEMENT_SIZE = 256
SIGMAS = 10.0  # a direction agrees if it is this far above that of random ones
MARGIN = 2.0  # and so many times above that of the next candidate
NO_FIT = "does not fit the weights"


def is_optimizer(payload: object) -> bool:
    """True for what `torch.optim.Optimizer.state_dict` returns."""
    return (
        isinstance(payload, Mapping)
        and isinstance(payload.get("state"), Mapping)
        and isinstance(payload.get("param_groups"), list)
    )


def read(payload: object, source: Source) -> Optimizer:
    """The optimizer that `payload` describes, its indices still without names. Raises `Unreadable`."""
    if not isinstance(payload, Mapping) or not is_optimizer(payload):
        raise Unreadable(source.path, "not the state of a torch optimizer")
    payload = _by_number(payload)
    groups = tuple(_group(place, group, source) for place, group in enumerate(payload["param_groups"]))
    indices = [index for group in groups for index in group.parameters]
    if len(set(indices)) != len(indices):
        raise Unreadable(source.path, "a parameter stands in two groups of the optimizer")
    known = set(indices)
    states = {index: _state(index, state) for index, state in payload["state"].items() if index in known}
    return Optimizer(source, groups, states)


def at_peak(optimizer: Optimizer, logged: float) -> Optimizer:
    """With the peak of the `logged` rate in the groups, which a schedule that is set by hand doesn't leave there.

    It scales all groups alike. Of several that it brought to 0, what they were isn't known.
    """
    rates = [group.lr or 0.0 for group in optimizer.groups]
    now = max(rates, default=0.0)
    if logged <= 1.01 * now or any("initial_lr" in group.options for group in optimizer.groups):
        return optimizer
    if not now and len(rates) > 1:
        return optimizer
    peaks = [logged * (rate / now if now else 1.0) for rate in rates]
    groups = (
        replace(group, options={**group.options, "initial_lr": peak})
        for group, peak in zip(optimizer.groups, peaks, strict=True)
    )
    return replace(optimizer, groups=tuple(groups))


def shapes(payload: object) -> dict[int, tuple[int, ...]]:
    """The shape of the parameter behind each index that has a state of that shape."""
    found: dict[int, tuple[int, ...]] = {}
    if isinstance(payload, Mapping) and isinstance(payload.get("state"), Mapping):
        for index, state in payload["state"].items():
            moments = (state.get(key) for key in MOMENTS) if isinstance(state, Mapping) else ()
            moment = next((value for value in moments if isinstance(value, Tensor)), None)
            if moment is not None and isinstance(index, int):
                found[index] = moment.shape
    return found


def named(
    optimizer: Optimizer,
    moments: Mapping[int, tuple[int, ...]],
    weights: Weights,
    earlier: Mapping[str, Tensor] | None = None,
) -> Optimizer:
    """`optimizer` with names: those it stored, else those that order and shape (`moments`) leave.

    `earlier` are the weights of an earlier checkpoint of the same run. What changed since then was trained, and it
    changed in the direction of its own moments: both tell parameters of equal shape apart.
    """
    stored = optimizer.names or _stored_names(optimizer)
    if stored:
        known = aligned((name for names in stored.values() for name in names), weights.tensors)
        names = {index: tuple(known[name] for name in names) for index, names in stored.items()}
        return replace(optimizer, names=names, naming=optimizer.naming or "names stored in the optimizer")
    if optimizer.naming:  # what is known of the layout is that it has no order to go by
        return optimizer
    stateless = [index for index in optimizer.indices if index not in optimizer.states]
    try:
        names = align(optimizer.groups, moments, stateless, weights)
        evidence = ""
        if earlier is not None and _open(names):
            moved = _moved(weights.tensors, earlier)
            names = align(optimizer.groups, moments, stateless, weights, moved)
            evidence = ", and by what changed since the checkpoint before"
            barred = set(_disagreeing(optimizer, names, weights.tensors, earlier))
            if barred:
                names = align(optimizer.groups, moments, stateless, weights, moved, barred)
    except TooOpen as error:
        return replace(optimizer, naming=f"not named: {error}")
    except Missing as error:
        return replace(optimizer, names=names, naming=f"matched by order and shape ({error})")
    if not names:
        return replace(optimizer, naming=NO_FIT)
    unclear = len(_open(names))
    remark = f"; {unclear} of {len(optimizer.indices)} stay open between equal shapes" if unclear else ""
    return replace(optimizer, names=names, naming=f"matched by order and shape{evidence}{remark}")


def _open(names: Names) -> list[int]:
    return [index for index, candidates in names.items() if len(candidates) > 1]


def _stored_names(optimizer: Optimizer) -> Names:
    """`param_names` of the groups, which torch keeps since 2.6 when it was given `named_parameters()`."""
    names: Names = {}
    for group in optimizer.groups:
        stored = group.options.get("param_names")
        if not isinstance(stored, list) or len(stored) != len(group.parameters):
            return {}
        names.update((index, (str(name),)) for index, name in zip(group.parameters, stored, strict=True))
    return names


def _moved(tensors: Mapping[str, Tensor], earlier: Mapping[str, Tensor]) -> set[str]:
    """What differs from the earlier checkpoint. (What doesn't may be trained all the same: rounding loses updates.)"""
    return {
        name
        for name, tensor in tensors.items()
        if (before := earlier.get(name)) is not None
        and before.dtype == tensor.dtype
        and before.shape == tensor.shape
        and before.digest != tensor.digest
    }


def _disagreeing(
    optimizer: Optimizer, names: Names, tensors: Mapping[str, Tensor], earlier: Mapping[str, Tensor]
) -> Iterator[tuple[int, str]]:
    """Pairs that can't be: another candidate moved, without doubt, where this index pushed.

    Adam moves a parameter against exp_avg / sqrt(exp_avg_sq). Over the few hundred steps between two checkpoints the
    cosine between that direction and the change stays far above that of unrelated tensors, 1 / sqrt(size).
    """
    import numpy as np

    directions = {}
    for index in _open(names):
        state = optimizer.states.get(index)
        if state and state.exp_avg and state.exp_avg_sq and _fits(state.exp_avg):
            squares = np.abs(state.exp_avg_sq.values())
            push = state.exp_avg.values() / (np.sqrt(squares) + 1e-12)
            directions[index] = push.ravel()
    changes = {}
    for name in dict.fromkeys(name for index in directions for name in names[index]):
        if name in earlier and earlier[name].shape == tensors[name].shape:
            changes[name] = (earlier[name].values() - tensors[name].values()).ravel()

    def cosine(index: int, name: str) -> float:
        push, change = directions[index], changes[name]
        length = float(np.linalg.norm(push) * np.linalg.norm(change))
        return float(push @ change) / length if length > 0 else 0.0

    table = {(i, name): cosine(i, name) for i in directions for name in names[i] if name in changes}
    for (index, name), agreement in table.items():
        rivals = [
            other for pair, other in table.items() if pair != (index, name) and (pair[0] == index or pair[1] == name)
        ]
        bound = max(SIGMAS / directions[index].size ** 0.5, MARGIN * max(rivals, default=0.0))
        complete = all(other in changes for other in names[index])
        if complete and agreement > bound:
            yield from ((index, other) for other in names[index] if other != name)


def _fits(tensor: Tensor) -> bool:
    return MIN_AGREEMENT_SIZE <= tensor.size <= MAX_AGREEMENT_SIZE


def _by_number(payload: Mapping[str, Any]) -> Mapping[str, Any]:
    """FSDP and torch.distributed.checkpoint key by name: the same by number, with the names in the groups."""
    groups = payload["param_groups"]
    lists = [group.get("params") if isinstance(group, Mapping) else None for group in groups]
    names = [name for one in lists if isinstance(one, list) for name in one]
    if not names or not all(isinstance(name, str) for name in names):
        return payload
    numbers = {name: number for number, name in enumerate(names)}
    numbered = [
        {**group, "params": [numbers[name] for name in one], "param_names": one} if isinstance(one, list) else group
        for group, one in zip(groups, lists, strict=True)
    ]
    states = {numbers[name]: state for name, state in payload["state"].items() if name in numbers}
    return {"state": states, "param_groups": numbered}


def _group(place: int, group: object, source: Source) -> OptimizerGroup:
    parameters = group.get("params") if isinstance(group, Mapping) else None
    if not isinstance(group, Mapping) or not isinstance(parameters, list):
        raise Unreadable(source.path, f"group {place} of the optimizer lists no parameters")
    if not all(isinstance(index, int) and not isinstance(index, bool) for index in parameters):
        raise Unreadable(source.path, f"group {place} of the optimizer names parameters by something else than numbers")
    options = {str(key): _plain(value) for key, value in group.items() if key != "params"}
    return OptimizerGroup(place, tuple(parameters), options)


def _plain(value: object) -> Any:
    """A scheduler may leave the learning rate as a tensor of one element."""
    return value.item() if isinstance(value, Tensor) and value.size == 1 else value


def _state(index: int, state: object) -> ParameterState:
    if not isinstance(state, Mapping):
        return ParameterState(index)
    step = _plain(state.get("step"))
    moments = {key: state[key] for key in ("exp_avg", "exp_avg_sq") if isinstance(state.get(key), Tensor)}
    whole = isinstance(step, (int, float)) and step == step and abs(step) < 1 << 53
    return ParameterState(index, int(step) if whole else None, **moments)
