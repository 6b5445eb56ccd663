"""One look at a step of the optimizer: gradients before it, and what it made of parameters, scales and banks."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache, partial
from itertools import chain, islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.optim import Optimizer

from fgclip_doctor.live.fetch import Fetcher, together
from fgclip_doctor.live.subject import (
    SCALARS,
    Subject,
    dtype,
    groups_of,
    held,
    is_at,
    is_plain,
    local,
    part,
    rank_and_world,
    sample,
    whole,
)
from fgclip_doctor.recorded import UNHELD

HALVES = (torch.bfloat16, torch.float16)
MOMENTS_EVERY = 10  # steps, of those that are looked at
INPUTS = 8  # tensors that the model is given, of which a hash is made
ROWS_BYTES = 1 << 20  # of a bank that are written down, and how often at most: at each doubling of the step


Write = Callable[..., None]  # a kind of record, and its fields


class Looks:
    """Asks for values on the device, and writes them down when they have arrived."""

    def __init__(self, subject: Subject, fetcher: Fetcher, write: Write) -> None:
        self.subject = subject
        self.fetcher = fetcher
        self.write = write
        self.sampled: dict[str, Tensor] = {}  # before the step, values of each parameter: a view where it can be one
        self.before: Tensor | None = None  # a copy of them, one after the other
        self.heard: dict[str, Tensor] = {}  # the norm of each gradient of the step under way
        self.listening: list[Any] = []
        self.next_walk = 1  # modules that join are looked for at each doubling of the step
        self.next_rows = 1
        self.rows_at = -1
        self.structure: object = None  # of the model, as last written down
        self.split = subject.is_split

    def describe(self, step: int) -> None:
        """The parameters, groups and buffers: at the start, and again where they have changed."""
        if step >= self.next_walk:
            self.next_walk = 2 * step
            self.subject.walk()
        groups = [group for optimizer in self.subject.optimizers for group in optimizer.param_groups]
        named, buffers = self.subject.parameters, list(self.subject.buffers())
        structure = (
            [(one.requires_grad, one.dtype) for one in named.values()],
            [(name, one.shape, one.dtype) for name, one in buffers],
            [[*map(id, group["params"])] for group in groups],
        )
        if structure != self.structure:
            self.structure = structure
            members = [group for optimizer in self.subject.optimizers for group in groups_of(optimizer)]
            place = {id(one): index for index, group in enumerate(members) for one in group}
            options = [{key: v for key, v in group.items() if key != "params" and is_plain(v)} for group in groups]
            self.write(
                "model",
                step=step,
                parameters=[[n, list(whole(p)), dtype(p), p.requires_grad, place.get(id(p))] for n, p in named.items()],
                buffers=[[name, list(one.shape), dtype(one)] for name, one in buffers],
                groups=options,
            )

    def begin(self, optimizer: Optimizer) -> None:
        """How many updates Adam has applied before the first step that is recorded: of a run that is resumed, some."""
        if "betas" not in optimizer.defaults or self.subject.masters:  # which a wrapper may have stepped once
            return
        counts = [of["step"] for of in optimizer.state.values() if isinstance(of, dict) and "step" in of]
        waiting = [one for one in counts if isinstance(one, Tensor)]
        known = max((int(one) for one in counts if not isinstance(one, Tensor)), default=0)
        if waiting:
            self.fetcher.take(waiting, lambda values: self.write("begun", updates=max(known, *map(int, values))))
        else:
            self.write("begun", updates=known)

    def gradients(self, optimizer: Optimizer, step: int, *, early: bool) -> None:
        """Of what an optimizer is about to update. `early`: those without any are named, too."""
        subject = self.subject
        if subject.masters:
            self._reached(step, self.heard, norms=False, early=early)
            self.deafen()
            return
        named = {
            name: gradient
            for name, one in subject.parameters_of(optimizer).items()
            if one.grad is not None and (gradient := local(one.grad)).numel()  # a shard may be empty
        }
        if named:
            norms = torch._foreach_norm(list(named.values()))
            self._reached(step, dict(zip(named, norms, strict=True)), norms=True, early=early)

    def _reached(self, step: int, sizes: Mapping[str, Tensor], *, norms: bool, early: bool) -> None:
        """`sizes`: the norm of each gradient. Their sums by part are written if they are those of the update."""
        names, newly = tuple(sizes), self.subject.unreached.intersection(sizes)

        def arrived(values: list[float]) -> None:
            reached = [name for name, value in zip(names, values, strict=True) if name in newly and value != 0]
            self.subject.unreached.difference_update(reached)
            squares = by_part(names, [one * one for one in values]) if norms else ()
            by_name = {name: square**0.5 for name, square in squares}
            zero = sorted(newly.difference(reached)) if early else []
            self.write("gradients", step=step, norms=by_name, reached=reached, zero=zero)

        self.fetcher.take(list(sizes.values()), arrived)

    def listen(self, guard: Callable[[Callable[..., None]], Callable[..., None]]) -> None:
        """Where masters are updated, gradients are taken away before the step: hear of them as they are computed.

        They are those of one rank and one backward pass, scaled as the loss was: they tell who has one, and no more.
        """
        if self.subject.masters and not self.listening:
            hear = guard(self._hear)
            for name, one in self.subject.parameters.items():
                if one.requires_grad:
                    self.listening.append(one.register_hook(partial(hear, name)))  # type: ignore[no-untyped-call]

    def _hear(self, name: str, gradient: Tensor) -> None:
        size = local(gradient).float().norm()
        known = self.heard.get(name)
        self.heard[name] = size if known is None else torch.maximum(known, size)

    def deafen(self) -> None:
        for handle in self.listening:
            handle.remove()
        self.listening, self.heard = [], {}

    def sample_before(self, optimizer: Optimizer) -> None:
        if self.subject.masters:  # they are written back to the model after the step
            return
        own = {id(one) for group in optimizer.param_groups for one in group["params"]}
        self.sampled = {
            name: values
            for name, one in self.subject.parameters.items()
            if id(one) in own and one.grad is not None and one.numel() > 1 and (values := sample(one)).numel()
        }  # a shard may be empty
        self.before = _joined(list(self.sampled.values())) if self.sampled else None

    def updates(self, step: int) -> None:
        """How far the step moved each part, as a share of its size, at a sample of its values."""
        known, sampled, before = self.subject.parameters, self.sampled, self.before
        self.sampled, self.before = {}, None
        names = tuple(sampled)
        if before is None or not known.keys() >= sampled.keys():
            return
        # A step in place shows in the very view of before it; one that puts new storage in its place doesn't.
        now = [view if is_at(view, known[name]) else sample(known[name]) for name, view in sampled.items()]
        ends = np.cumsum([values.numel() for values in now])
        halves = [known[name].dtype in HALVES for name in names]

        def arrived(copies: list[Tensor]) -> None:
            old, new = (copy.numpy() for copy in copies)
            moved = new - old
            starts = np.append(0, ends[:-1])
            of_moves, of_old = (np.add.reduceat(np.square(one, dtype=np.float64), starts) for one in (moved, old))
            ratios = {name: (a / b) ** 0.5 for name, a, b in by_part(names, of_moves, of_old) if b}
            digest = "" if self.split else hashlib.sha256(of_old.tobytes()).hexdigest()[:16]
            self.write("updates", step=step, ratios=ratios, digest=digest)
            if any(halves):  # whose small steps rounding may hold still
                pieces = [moved[a:b] for a, b, half in zip(starts, ends, halves, strict=True) if half]
                changed = sum(map(int, map(np.count_nonzero, pieces)))
                self.write("rounding", step=step, changed=changed, sampled=sum(map(len, pieces)))

        self.fetcher.copy([before, _joined(now)], arrived)

    def moments(self, step: int) -> None:
        """Adam's, of each part: the root of the mean square of a sample of the first, and of the mean of the second."""
        if step % MOMENTS_EVERY:
            return
        held_here: dict[str, tuple[Tensor, Tensor]] = {}
        for optimizer in self.subject.optimizers:
            for name, parameter in self.subject.parameters_of(optimizer).items():
                state = optimizer.state.get(parameter, {})
                first, second = state.get("exp_avg"), state.get("exp_avg_sq")
                if isinstance(first, Tensor) and isinstance(second, Tensor) and 1 < first.numel() == second.numel():
                    pair = sample(first), sample(second)
                    if pair[0].numel() and type(pair[0]) is type(pair[1]) is Tensor:  # no empty shard, none quantised
                        held_here[name] = pair
        if not held_here:
            return
        names, counts = tuple(held_here), [first.numel() for first, _ in held_here.values()]

        def arrived(copies: list[Tensor]) -> None:
            first, second = (copy.numpy() for copy in copies)
            starts = np.append(0, np.cumsum(counts)[:-1])
            squares, means = (np.add.reduceat(one, starts) for one in (np.square(first, dtype=np.float64), second))
            parts = by_part(names, squares, means, counts)
            values = {name: [(a / n) ** 0.5, (max(b, 0.0) / n) ** 0.5] for name, a, b, n in parts}
            self.write("moments", step=step, values=values)

        self.fetcher.copy([_joined(list(one)) for one in zip(*held_here.values(), strict=True)], arrived)

    def unheld(self, step: int) -> None:
        """What tells whether anything moves the parameters that no optimizer holds, as those of a momentum encoder."""
        if step % MOMENTS_EVERY or self.subject.masters:
            return
        own = {id(one) for optimizer in self.subject.optimizers for one in held(optimizer)}
        samples = [sample(one) for one in self.subject.parameters.values() if id(one) not in own]
        if any(one.numel() for one in samples):
            self._digest(UNHELD, _joined(samples), step)

    def scalars(self, step: int) -> None:
        """Scales, pointers, flags and counters: parameters and buffers of one element, and plain numbers of modules."""
        every = chain(self.subject.parameters.items(), self.subject.buffers())
        single = [(name, one) for name, one in every if one.numel() == 1 and not name.endswith("num_batches_tracked")]
        small = [(name, value) for name, one in single if (value := local(one)).numel()][:SCALARS]
        plain = dict(self.subject.attributes())

        def arrived(values: list[float]) -> None:
            known = {name: value for (name, _), value in zip(small, values, strict=True)}
            self.write("scalars", step=step, values=known | plain)

        if small:
            self.fetcher.take([one.reshape(()) for _, one in small], arrived)
        elif plain:
            arrived([])

    def banks(self, step: int) -> None:
        """The rows at each doubling of the step; of several ranks, what tells whether all hold the same, each time."""
        if rank_and_world()[1] > 1:
            for name, bank in self.subject.banks():
                self._digest(name, bank, step)
        if step >= self.next_rows:
            self.next_rows = 2 * step
            self.rows(step)

    def rows(self, step: int) -> None:
        """The rows of all banks that aren't too large, unless they were written at this step already."""
        if self.rows_at == step:
            return
        self.rows_at = step
        for name, bank in self.subject.banks():
            if bank.numel() * 4 <= ROWS_BYTES:
                self._rows(name, bank, step)

    def inputs(self, step: int, given: object) -> None:
        """What tells whether the model is given the same samples on several ranks."""
        tensors = list(islice(_tensors_in(given), INPUTS))
        if tensors:
            self._digest("inputs", _joined([sample(one) for one in tensors]), step)

    def _digest(self, name: str, values: Tensor, step: int) -> None:
        def arrived(copies: list[Tensor]) -> None:
            digest = hashlib.sha256(copies[0].numpy().tobytes()).hexdigest()[:16]
            self.write("digest", step=step, values={name: digest})

        self.fetcher.copy([sample(values).float()], arrived)

    def _rows(self, name: str, bank: Tensor, step: int) -> None:
        about: dict[str, Any] = {"name": name, "shape": list(bank.shape), "dtype": dtype(bank)}

        def arrived(copies: list[Tensor]) -> None:
            data = base64.b64encode(copies[0].numpy().tobytes()).decode("ascii")
            self.write("rows", step=step, **about, data=data)

        self.fetcher.copy([bank.detach().float().contiguous()], arrived)


def _tensors_in(given: object, depth: int = 3) -> Iterator[Tensor]:
    """The plain tensors of arguments, and of the dictionaries, lists and dataclasses among them."""
    if type(given) is Tensor:
        if given.layout is torch.strided and given.numel():
            yield given
    elif depth:
        inner: Iterable[object] = ()
        if isinstance(given, Mapping):
            inner = given.values()
        elif isinstance(given, (list, tuple)):
            inner = given
        elif is_dataclass(given):
            inner = (getattr(given, one.name, None) for one in fields(given))
        for one in inner:
            yield from _tensors_in(one, depth - 1)


def _joined(samples: list[Tensor]) -> Tensor:
    """One after the other, (values,)."""
    return torch.cat(list(together(samples))).float()


def by_part(names: tuple[str, ...], *values: npt.ArrayLike) -> Iterator[tuple[Any, ...]]:
    """Each part of the model, and the sum of each of `values`, (names,), over the tensors of it."""
    parts, places = _parts(names)
    return zip(parts, *(np.bincount(places, one, len(parts)).tolist() for one in values), strict=True)


@lru_cache(maxsize=8)
def _parts(names: tuple[str, ...]) -> tuple[list[str], npt.NDArray[np.intp]]:
    """The parts that parameters are of, and the place of each parameter's part among them."""
    parts = list(dict.fromkeys(map(part, names)))
    place = {name: index for index, name in enumerate(parts)}
    return parts, np.array([place[part(name)] for name in names])
