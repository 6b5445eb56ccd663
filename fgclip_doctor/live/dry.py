"""What only a dry run may do in the training's process: take the model through a save and a load, replay one batch."""

from __future__ import annotations

import copy
import io
import itertools
import random
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from fgclip_doctor.live.subject import Subject, clean

MAX_MODEL = 2 << 30  # bytes of a model of which a copy is made
MAX_TENSOR = 64 << 20  # bytes of what is compared from step to step
MAX_FOLLOWED = 256
MAX_NAMES = 64  # told of each kind
UNIT = 0.05  # how far from 1 the length of a bank's rows may be

Value = Any  # a tensor, a list of them, a whole number or a flag
Write = Callable[..., None]


@dataclass
class _Followed:
    """Something that a model holds beside its state dict, over the steps."""

    first: Value
    last: Value
    object: weakref.ref[Tensor] | None  # of a tensor, which may be written in place
    other: Value = None  # what it was before its last change
    changes: int = 0
    falls: int = 0
    carried: bool = False  # some of it came over from the step before


class State:
    """Follows what a model holds beside its state dict, and compares it with what a save and a load give back."""

    def __init__(self, subject: Subject, write: Write) -> None:
        self.subject = subject
        self.write = write
        self.done = False
        self.looks = 0
        self.skipped: list[str] = []
        self.followed = {name: _Followed(_kept(one), _kept(one), _reference(one)) for name, one in self._loose()}
        self.keys = set() if subject.is_split else self._keys()

    def look(self) -> None:
        """After a step."""
        self.looks += 1
        for name, now in self._loose():
            known = self.followed.get(name)
            if known is None:  # made after the start
                known = self.followed[name] = _Followed(None, _kept(now), _reference(now), changes=1)
                continue
            value = _kept(now)
            if type(value) is not type(known.last) or not _same(value, known.last):
                known.changes += 1
                known.other = known.last
                in_place = known.object is not None and known.object() is now
                known.carried |= in_place or _carries(value, known.last)
                if isinstance(value, int) and isinstance(known.last, int):
                    known.falls += value < known.last
            known.last, known.object = value, _reference(now)

    def finish(self, step: int) -> None:
        """Write down what a resume would lack. Random state and the model stay as they are."""
        if self.done or self.subject.gone:
            return
        self.done = True
        changed = {name: one for name, one in self.followed.items() if one.changes and _is_state(one)}
        lost, failed = list[str](), ""
        reason = self._too_much()
        if not reason:
            try:
                with _random_state_kept():
                    lost, failed, saved = self._round_trip(changed)
                    changed = {name: one for name, one in changed.items() if name not in saved}
            except Exception as error:  # noqa: BLE001 - a model that can't be copied is no fault of it
                reason = f"a copy of the model could not be made ({type(error).__name__}: {error})"[:300]
        if reason:
            self.skipped.append(reason)
        self.write(
            "state",
            step=step,
            unsaved=[_told(name, one, self.looks) for name, one in changed.items()][:MAX_NAMES],
            changed=lost[:MAX_NAMES],
            late=[] if reason else sorted(self._keys() - self.keys)[:MAX_NAMES],
            failed=failed,
            skipped="; ".join(self.skipped),
        )

    def _too_much(self) -> str:
        if self.subject.is_split:
            return "the parameters are split over the ranks"
        size = sum(one.numel() * one.element_size() for one in self.subject.parameters.values())
        return f"the model has {size:,} bytes, of which no copy is made" if size > MAX_MODEL else ""

    def _keys(self) -> set[str]:
        return {clean(f"{prefix}{key}") for prefix, model in self.subject.models() for key in model.state_dict()}

    def _loose(self) -> Iterator[tuple[str, Value]]:
        """Buffers that aren't saved, and tensors, lists of them, whole numbers and flags that modules keep."""
        every = (one for prefix, model in self.subject.models() for one in _of_model(prefix, model))
        for name, _, _, value in itertools.islice(every, MAX_FOLLOWED):
            tensors = value if isinstance(value, (list, tuple, deque)) else [value]
            if sum(one.numel() * one.element_size() for one in tensors if isinstance(one, Tensor)) <= MAX_TENSOR:
                yield name, value
            elif (line := f"{name} is too large to be followed") not in self.skipped:
                self.skipped.append(line)

    def _round_trip(self, changed: dict[str, _Followed]) -> tuple[list[str], str, set[str]]:
        """What a load gives back otherwise than it was saved, why it fails if it does, and which of `changed` it saves.

        The copy starts without any weights, and with another value of each that changed.
        """
        lost: list[str] = []
        back: set[str] = set()
        for prefix, model in self.subject.models():
            saved = io.BytesIO()
            torch.serialization.save(model.state_dict(), saved)  # not `torch.save`, which the recorder counts
            saved.seek(0)
            twin = copy.deepcopy(model, {id(one): one.detach() for one in _of_graphs(model)})
            for one in twin.state_dict().values():
                if isinstance(one, Tensor):
                    one.zero_()
            twin_of = {name: (owner, key) for name, owner, key, _ in _of_model(prefix, twin)}
            for name, one in changed.items():
                if name in twin_of:
                    owner, key = twin_of[name]
                    setattr(owner, key, _other(one, getattr(owner, key)))
            try:  # nothing but what this very process has just written is unpickled
                twin.load_state_dict(torch.load(saved, map_location="cpu", weights_only=False))
            except RuntimeError as error:
                return [], f"{type(error).__name__}: {error}"[:500], set()
            there = dict(_persistent(twin))
            lost += [clean(prefix + n) for n, one in _persistent(model) if n not in there or not _same(one, there[n])]
            now = {name: _kept(value) for name, _, _, value in _of_model(prefix, twin)}
            back |= {name for name, one in changed.items() if name in now and _equal(now[name], one.last)}
        return lost, "", back


def _of_model(prefix: str, model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Value]]:
    """What a model's own modules hold that no state dict has by itself: name, module, key and value."""
    for path, module in model.named_modules():
        place = clean(f"{prefix}{path}").removesuffix(".")
        for key in sorted(module._non_persistent_buffers_set):
            if isinstance(buffer := module._buffers.get(key), Tensor):
                yield f"{place}.{key}".strip("."), module, key, buffer
        if type(module).__module__.startswith("torch."):
            continue
        for key, value in list(vars(module).items()):
            listed = isinstance(value, (list, tuple, deque)) and len(value) > 0
            whole = isinstance(value, (bool, int)) and key != "training"
            if whole or _is_plain(value) or (listed and all(map(_is_plain, value))):
                yield f"{place}.{key}".strip("."), module, key, value


def _is_plain(value: object) -> bool:
    """Whether it is a tensor that no graph holds: what a forward has just computed isn't kept for the next."""
    return isinstance(value, Tensor) and value.grad_fn is None and not value.requires_grad and not value.is_sparse


def _of_graphs(model: nn.Module) -> Iterator[Tensor]:
    """Attributes of modules that autograd made, of which torch makes no deep copy."""
    for module in model.modules():
        for value in vars(module).values():
            for one in value if isinstance(value, (list, tuple, deque)) else [value]:
                if isinstance(one, Tensor) and one.grad_fn is not None:
                    yield one


def _persistent(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    kept = model.state_dict().keys()
    for name, one in (*model.named_parameters(), *model.named_buffers()):
        if name in kept:
            yield name, one.detach()


def _kept(value: Value) -> Value:
    """A copy that later steps don't touch."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    return [_kept(one) for one in value] if isinstance(value, (list, tuple, deque)) else value


def _other(one: _Followed, now: Value) -> Value:
    """Something else of the same kind than what it is now."""
    if isinstance(now, Tensor):
        return one.other.to(now.device) if isinstance(one.other, Tensor) else torch.zeros_like(now)
    return type(now)() if one.other is None else one.other


def _reference(value: Value) -> weakref.ref[Tensor] | None:
    return weakref.ref(value) if isinstance(value, Tensor) else None


def _equal(one: Value, other: Value) -> bool:
    return type(one) is type(other) and _same(one, other)


def _same(one: Value, other: Value) -> bool:
    """Whether two values of one kind are equal bit by bit, on whatever device."""
    if isinstance(one, Tensor):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        pair = (part.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for part in (one, other))
        return torch.equal(*pair)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def _rows(value: Value) -> set[bytes]:
    """The rows and the columns of a matrix, or the matrices of a list, as bytes."""
    parts = value if isinstance(value, list) else [*value, *value.T] if value.dim() == 2 else []
    return {one.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for one in parts if one.any()}


def _carries(now: Value, before: Value) -> bool:
    """Whether some, and not all, of the rows were there a step ago: a ring, or one that shifts."""
    if type(now) is not type(before) or not isinstance(now, (Tensor, list)):
        return False
    return not _rows(now).isdisjoint(_rows(before))


def _is_state(one: _Followed) -> bool:
    """Whether the next step depends on it, as far as can be seen from outside: what is new at each step doesn't."""
    return isinstance(one.last, int) or one.carried


def _is_bank(value: Value) -> bool:
    """Whether it holds features: rows or columns of length 1, or not written yet."""
    whole = (
        torch.cat([one.reshape(-1, one.shape[-1]) for one in value if one.dim()]) if isinstance(value, list) else value
    )
    if not isinstance(whole, Tensor) or whole.dim() != 2 or min(whole.shape) < 2 or not whole.is_floating_point():
        return False
    for lengths in (whole.float().norm(dim=0), whole.float().norm(dim=1)):
        written = lengths[lengths > 0]
        if len(written) > 1 and bool(((written - 1).abs() < UNIT).all()):
            return True
    return False


def _told(name: str, one: _Followed, looks: int) -> dict[str, Any]:
    whole = isinstance(one.last, int)
    return {
        "name": name,
        "kind": "number" if whole else "list" if isinstance(one.last, list) else "tensor",
        "shape": list(one.last.shape) if isinstance(one.last, Tensor) else [len(one.last)] if not whole else [],
        "bank": not whole and _is_bank(one.last),
        "counts": whole and not isinstance(one.last, bool) and one.falls == 0 and one.changes > max(1, looks // 2),
        "first": one.first if whole else None,
        "last": one.last if whole else None,
    }


@contextmanager
def _random_state_kept() -> Iterator[None]:
    numpy = sys.modules.get("numpy")
    own, arrays = random.getstate(), numpy.random.get_state() if numpy else None
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(own)
            if numpy and arrays is not None:
                numpy.random.set_state(arrays)


class Replay:
    """Gives each call of a model the arguments of its first one."""

    def __init__(self) -> None:
        self.batches: weakref.WeakKeyDictionary[nn.Module, tuple[Any, Any]] = weakref.WeakKeyDictionary()

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if module not in self.batches:
            self.batches[module] = _copies((args, kwargs))
        given: tuple[Any, Any] = _copies(self.batches[module])
        return given


def _copies(values: Any) -> Any:
    return tree_map(lambda one: one.detach().clone() if isinstance(one, Tensor) else one, values)
