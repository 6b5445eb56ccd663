"""One look at a step of the optimizer: gradients before it, and what it made of parameters, scales and banks."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fgclip_doctor.live.fetch import Fetcher
from fgclip_doctor.live.subject import SCALARS, Subject, dtype, held, is_plain, local, part, rank_and_world, sample

HALVES = (torch.bfloat16, torch.float16)
ROWS_BYTES = 1 << 20  # of a bank that are written down, and how often at most: at each doubling of the step

Write = Callable[..., None]  # a kind of record, and its fields


class Looks:
    """Asks for values on the device, and writes them down when they have arrived."""

    def __init__(self, subject: Subject, fetcher: Fetcher, write: Write) -> None:
        self.subject = subject
        self.fetcher = fetcher
        self.write = write
        self.sampled: list[str] = []  # parameters of which values were sampled before the step
        self.before: Tensor | None = None  # those values, one parameter after the other
        self.next_rows = 1
        self.rows_at = -1
        self.structure: object = None  # of the model, as last written down
        self.split = subject.is_split

    def describe(self, step: int) -> None:
        """The parameters, groups and buffers: at the start, and again where they have changed."""
        self.subject.walk()
        optimizers = self.subject.optimizers
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        place = {id(one): index for index, group in enumerate(groups) for one in group["params"]}
        named, buffers = self.subject.parameters, list(self.subject.buffers())
        structure = (
            [(id(one), one.requires_grad, one.dtype, place.get(id(one))) for one in named.values()],
            [(name, one.shape, one.dtype) for name, one in buffers],
        )
        if structure != self.structure:
            self.structure = structure
            options = [{key: v for key, v in group.items() if key != "params" and is_plain(v)} for group in groups]
            self.write(
                "model",
                step=step,
                parameters=[[n, list(p.shape), dtype(p), p.requires_grad, place.get(id(p))] for n, p in named.items()],
                buffers=[[name, list(one.shape), dtype(one)] for name, one in buffers],
                groups=options,
            )

    def gradients(self, optimizer: Optimizer, step: int, *, early: bool) -> None:
        """Of what an optimizer is about to update. `early`: those without any are named, too."""
        subject = self.subject
        parameters = subject.parameters_of(optimizer)
        held_here = [(n, local(p.grad)) for n, p in parameters.items() if p.grad is not None]
        named = [(name, gradient) for name, gradient in held_here if gradient.numel()]  # a shard may be empty
        if not named:
            return
        names = [name for name, _ in named]
        newly = subject.unreached.intersection(names)

        def arrived(values: list[float]) -> None:
            squares: dict[str, float] = {}
            for name, value in zip(names, values, strict=True):
                squares[part(name)] = squares.get(part(name), 0.0) + value * value
            reached = [name for name, value in zip(names, values, strict=True) if name in newly and value != 0]
            subject.unreached.difference_update(reached)
            norms = {name: square**0.5 for name, square in squares.items()}
            zero = sorted(newly.difference(reached)) if early else []
            self.write("gradients", step=step, norms=norms, reached=reached, zero=zero)

        self.fetcher.take(torch._foreach_norm([gradient for _, gradient in named]), arrived)

    def sample_before(self, optimizer: Optimizer) -> None:
        own = set(map(id, held(optimizer)))
        known = self.subject.parameters
        self.sampled = [n for n, one in known.items() if id(one) in own and one.grad is not None and one.numel() > 1]
        self.before = torch.cat([sample(known[name]) for name in self.sampled]).float() if self.sampled else None

    def updates(self, step: int) -> None:
        """How far the step moved each part, as a share of its size, at a sample of its values."""
        known, names, before = self.subject.parameters, self.sampled, self.before
        self.sampled, self.before = [], None
        if before is None or not known.keys() >= set(names):
            return
        after = [sample(known[name]) for name in names]
        lengths = [len(values) for values in after]
        steps = torch.split(torch.cat(after).float().sub_(before), lengths)
        halves = [one for name, one in zip(names, steps, strict=True) if known[name].dtype in HALVES]
        changed = [torch.count_nonzero(torch.cat(halves))] if halves else []  # that rounding may hold still
        sampled = sum(map(len, halves))
        norms_of_both = torch._foreach_norm([*steps, *torch.split(before, lengths)])

        def arrived(values: list[float]) -> None:
            parts: dict[str, list[float]] = {}
            for place, name in enumerate(names):
                sums = parts.setdefault(part(name), [0.0, 0.0])
                sums[0] += values[place] ** 2
                sums[1] += values[len(names) + place] ** 2
            ratios = {name: (a / b) ** 0.5 for name, (a, b) in parts.items() if b}
            norms = values[len(names) : 2 * len(names)]
            digest = "" if self.split else hashlib.sha256(repr(norms).encode()).hexdigest()[:16]
            self.write("updates", step=step, ratios=ratios, digest=digest)
            if sampled:
                self.write("rounding", step=step, changed=int(values[-1]), sampled=sampled)

        self.fetcher.take([*norms_of_both, *changed], arrived)

    def scalars(self, step: int) -> None:
        """Scales, pointers, flags and counters: parameters and buffers of one element, and plain numbers of modules."""
        small = [
            (name, value)
            for name, one in (*self.subject.parameters.items(), *self.subject.buffers())
            if one.numel() == 1 and not name.endswith("num_batches_tracked") and (value := local(one)).numel()
        ][:SCALARS]
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

    def _digest(self, name: str, bank: Tensor, step: int) -> None:
        def arrived(values: Tensor) -> None:
            digest = hashlib.sha256(values.numpy().tobytes()).hexdigest()[:16]
            self.write("digest", step=step, values={name: digest})

        self.fetcher.copy(sample(bank).float(), arrived)

    def _rows(self, name: str, bank: Tensor, step: int) -> None:
        about: dict[str, Any] = {"name": name, "shape": list(bank.shape), "dtype": dtype(bank)}

        def arrived(values: Tensor) -> None:
            data = base64.b64encode(values.numpy().tobytes()).decode("ascii")
            self.write("rows", step=step, **about, data=data)

        self.fetcher.copy(bank.detach().float().contiguous(), arrived)
