"""Builders for the `Run`s that the tests of checks need: real arrays behind real `Tensor`s, no files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fgclip_doctor.recorded import Parameter, Rank, Recording
from fgclip_doctor.run import (
    Checkpoint,
    Fact,
    Optimizer,
    OptimizerGroup,
    ParameterState,
    Plan,
    Run,
    Series,
    Source,
    Statistics,
    Tensor,
)

ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8, "int64": 8, "bool": 1}


def to_bf16(values: ArrayLike) -> NDArray[np.float32]:
    """The nearest bfloat16 values (ties to even), as float32."""
    bits = np.array(values, dtype=np.float32, order="C").view(np.uint32)
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)
    return np.where(np.isfinite(values), (rounded & 0xFFFF0000).view(np.float32), values).astype(np.float32)


def tensor(name: str, array: ArrayLike, dtype: str = "float32", *, path: str = "model.safetensors") -> Tensor:
    """A tensor as a source would give it: `array` rounded to `dtype` (numpy's name or "bfloat16")."""
    stored = to_bf16(array) if dtype == "bfloat16" else np.asarray(array).astype(dtype)
    values = stored.astype(np.float32) if stored.dtype == np.float16 else stored
    return Tensor(
        name,
        tuple(values.shape),
        dtype,
        Source(path, name),
        measure=lambda: _statistics(stored, dtype),
        read=lambda: values.copy(),
        digest=lambda: hashlib.sha256(f"{dtype}{stored.shape}".encode() + stored.tobytes()).hexdigest(),
        nbytes=values.size * ITEM_BYTES[dtype],
    )


def _statistics(stored: NDArray[Any], dtype: str) -> Statistics:
    """The definitions of `Statistics`, in the plainest numpy."""
    values = stored.astype(np.float64).ravel()
    finite = values[np.isfinite(values)]
    centred = finite - finite.mean() if finite.size else finite
    variance = float(np.mean(centred**2)) if finite.size else 0.0
    with np.errstate(over="ignore"):  # beyond float16 there is infinity, which is not the value
        bf16_exact = np.mean(to_bf16(finite) == finite) if finite.size else 1.0
        fp16_exact = np.mean(finite.astype(np.float16) == finite) if finite.size else 1.0
    return Statistics(
        count=values.size,
        mean=float(finite.mean()) if finite.size else 0.0,
        std=variance**0.5,
        norm=float(np.linalg.norm(finite)),
        minimum=float(finite.min()) if finite.size else 0.0,
        maximum=float(finite.max()) if finite.size else 0.0,
        nans=int(np.isnan(values).sum()),
        infs=int(np.isinf(values).sum()),
        zeros=int((values == 0).sum()),
        bf16_exact=float(bf16_exact),
        fp16_exact=float(fp16_exact),
    )


def state(
    index: int,
    step: int | None = 1,
    exp_avg: ArrayLike | None = None,
    exp_avg_sq: ArrayLike | None = None,
    *,
    dtype: str = "float32",
) -> ParameterState:
    """Adam's state of one parameter."""
    return ParameterState(
        index,
        step,
        None if exp_avg is None else tensor(f"state.{index}.exp_avg", exp_avg, dtype, path="optimizer.pt"),
        None if exp_avg_sq is None else tensor(f"state.{index}.exp_avg_sq", exp_avg_sq, dtype, path="optimizer.pt"),
    )


def group(index: int, parameters: Sequence[int], **options: Any) -> OptimizerGroup:
    """One parameter group; `options` are lr, initial_lr, weight_decay, betas, eps."""
    return OptimizerGroup(index, tuple(parameters), {"lr": 1e-3, "weight_decay": 0.0, **options})


def optimizer(
    groups: Sequence[OptimizerGroup],
    states: Sequence[ParameterState] = (),
    names: Mapping[int, str | tuple[str, ...]] | None = None,
) -> Optimizer:
    """Optimizer state; `names` gives an index its name, or several where equal shapes leave it open."""
    candidates = {index: (name,) if isinstance(name, str) else name for index, name in (names or {}).items()}
    states_by_index = {one.index: one for one in states}
    return Optimizer(Source("optimizer.pt"), tuple(groups), states_by_index, candidates, "stated by the test")


def adam(
    tensors: Mapping[str, Tensor],
    *,
    step: int = 100,
    lr: float = 1e-3,
    dead: Sequence[str] = (),
    dtype: str = "float32",
    **options: Any,
) -> Optimizer:
    """One group with every tensor of `tensors`; each has a state of `step` steps, but those in `dead` have none."""
    names = dict(enumerate(tensors))
    states = [
        state(index, step, np.full(tensors[name].shape, 1e-5), np.full(tensors[name].shape, 1e-10), dtype=dtype)
        for index, name in names.items()
        if name not in dead
    ]
    return optimizer([group(0, list(names), lr=lr, initial_lr=lr, **options)], states, names)


def checkpoint(
    tensors: Mapping[str, ArrayLike | Tensor],
    step: int | None = 100,
    *,
    dtype: str = "float32",
    optimizer: Optimizer | None = None,
    scheduler: Mapping[str, Any] | None = None,
    trainer_step: int | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """What was saved at `step`; arrays are stored as `dtype`."""
    path = f"checkpoint-{step}"
    stored = {
        name: one if isinstance(one, Tensor) else tensor(name, one, dtype, path=f"{path}/model.safetensors")
        for name, one in tensors.items()
    }
    return Checkpoint(
        path,
        step,
        stored,
        optimizer,
        scheduler,
        trainer_step if trainer_step is not None else step,
        facts=_facts(facts or {}, f"{path}/config.json"),
    )


def _facts(facts: Mapping[str, Any], path: str) -> dict[str, Fact]:
    return {name: Fact(name, value, Source(path, name)) for name, value in facts.items()}


def series(
    name: str,
    values: ArrayLike,
    steps: ArrayLike | None = None,
    *,
    forwards: ArrayLike | None = None,
) -> Series:
    """A logged scalar; without `steps`, one value a step from step 1."""
    numbers = np.asarray(values, dtype=np.float64)
    return Series(
        name,
        np.asarray(range(1, numbers.size + 1) if steps is None else steps, dtype=np.int64),
        numbers,
        Source("trainer_state.json", name),
        None if forwards is None else np.asarray(forwards, dtype=np.int64),
    )


def parameter(
    name: str,
    *,
    trainable: bool = True,
    group: int | None = 0,
    gradient: str = "some",
    shape: tuple[int, ...] = (8, 4),
) -> Parameter:
    """A parameter as it was seen while the run went on."""
    held = group if trainable else None
    return Parameter(name, shape, "float32", trainable, held, gradient if trainable else "none")


def watched(
    *parameters: Parameter,
    roles: Mapping[str, str],
    steps: int = 20,
    rates: Sequence[float] = (1e-3,),
    plan: Plan | None = None,
    **seen: Any,
) -> Run:
    """A run of which a recording alone is known: `parameters` in groups with `rates`; `seen` is the rest of the rank.

    The optimizer is as the reader of recordings makes it: of a parameter that had no gradient it has no state.
    """
    held = [one for one in parameters if one.group is not None]
    groups = [
        group(place, [index for index, one in enumerate(held) if one.group == place], lr=rate)
        for place, rate in enumerate(rates)
    ]
    states = [state(index, steps) for index, one in enumerate(held) if one.gradient != "none"]
    names: dict[int, str | tuple[str, ...]] = {index: one.name for index, one in enumerate(held)}
    tensors = {one.name: np.ones(one.shape) for one in parameters}
    made = run(checkpoint(tensors, steps, optimizer=optimizer(groups, states, names)), roles=roles)
    rank = Rank(0, 1, "recording", {one.name: one for one in parameters}, clocks={"steps": steps}, **seen)
    made.recording = Recording((rank,), steps)
    made.plan = plan or Plan()
    return made


def run(
    *checkpoints: Checkpoint,
    base: Checkpoint | None = None,
    facts: Mapping[str, Any] | None = None,
    roles: Mapping[str, str] | None = None,
    logged: Sequence[Series] = (),
) -> Run:
    """A run with what the test states: checkpoints in order of step, facts by the doctor's names, roles, series."""
    return Run(
        "test",
        checkpoints,
        base,
        facts=_facts(facts or {}, "config.json"),
        roles=dict(roles or {}),
        series={one.name: one for one in logged},
    )
