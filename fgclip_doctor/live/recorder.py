"""Watches one process of a training and writes down what it sees; results, gradients and random state stay the same.

Each clock is counted by itself and never inferred from another: forwards of the model, backward passes, optimizer
steps, scheduler steps, `zero_grad`s, steps that a gradient scaler skipped. Everything is hooked on classes and modules
of torch, never on the model's own objects, so nothing of ours is saved, copied or pickled with a model.
"""

from __future__ import annotations

import base64
import functools
import gc
import hashlib
import os
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from fgclip_doctor.live import sites
from fgclip_doctor.live.fetch import Fetcher
from fgclip_doctor.live.journal import VERSION, Journal

DENSE_STEPS = 20  # of which each is looked at, so that a fault shows soon
EVERY = 10  # then every so many, and fewer as the run gets long
LONG_RUN = 2000  # from `EVERY` times this many steps on, about this many looks in each doubling of the run
BUDGET = 0.005  # of the time that passes; where looking takes a larger share, it becomes rarer
SITE_CALLS = 16  # of one site in one step
SAMPLED = 4096  # values of a tensor that tell how far an update moved it
ROWS_BYTES = 1 << 20  # of a bank that are written down, and how often at most: at each doubling of the step
SCALARS = 64  # small tensors and plain attributes that are followed, at most


@dataclass(eq=False)
class Subject:
    """What is watched: the model as it is called, its parameters by name, and who updates them."""

    model: nn.Module
    inner: nn.Module  # the model without what wraps it
    optimizer: Optimizer
    parameters: dict[str, nn.Parameter]
    places: dict[int, str] = field(default_factory=dict)  # id of a parameter to its name
    unreached: set[str] = field(default_factory=set)  # those that have not been seen with a gradient

    @classmethod
    def of(cls, model: nn.Module, optimizer: Optimizer) -> Subject:
        names = {_clean(name): parameter for name, parameter in model.named_parameters()}
        places = {id(parameter): name for name, parameter in names.items()}
        for group in optimizer.param_groups:  # those of a loss module beside the model, say
            for parameter in group["params"]:
                if id(parameter) not in places:
                    name = f"beside the model.{len(names)}"
                    names[name], places[id(parameter)] = parameter, name
        return cls(model, _unwrapped(model), optimizer, names, places, set(names))


class Recorder:
    """Hooks one process. `start` begins, `stop` ends, and any error of our own ends it too, with one line."""

    def __init__(self, directory: Path, *, every: int = EVERY) -> None:
        self.directory = directory
        self.every = every
        self.journal: Journal | None = None
        self.subject: Subject | None = None
        self.fetcher = Fetcher()
        self.clocks = dict.fromkeys(
            (
                *("forwards", "backwards", "steps", "scheduler_steps", "zero_grads"),
                *("skipped", "evaluations", "bypassed"),  # of the last, the model was called without its wrapper
            ),
            0,
        )
        self.spent = self.spent_before = self.look_cost = 0.0  # seconds of our own
        self.step_time = self.step_ended = 0.0  # seconds of a step without us; when the last one ended
        self.looked_at = 0
        self.looked_last = True
        self.began = time.perf_counter()
        self.off = False
        self.in_backward = 0
        self.inside_forward = 0
        self.inside_scheduler = 0
        self.looking = True  # whether the step under way is looked at
        self.undo: list[Callable[[], object]] = []
        self.optimizers: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self.calls: dict[str, int] = {}  # of each site since the last step
        self.in_forward: dict[str, int] = {}  # of each site in the forward under way
        self.known: dict[str, int] = {}  # sites by name
        self.before: tuple[list[Tensor], list[str]] | None = None  # sampled values before the step
        self.scalars: dict[str, float] = {}
        self.evaluating: dict[str, int] = {}
        self.gathers: dict[tuple[str, tuple[int, ...], bool, bool], int] = {}
        self.modes_at = -1
        self.saving = False  # whether something was saved since the last step
        self.next_rows = 1
        self.model_line = ""

    # --- beginning and end -----------------------------------------------------------------------------------------

    def start(self, model: nn.Module | None = None, optimizer: Optimizer | None = None) -> None:
        """Hook torch. Without a model and its optimizer, they are found at the first backward pass."""
        self._patch_optimizers()
        self._patch(torch.autograd, "backward", self._around_backward)
        for scheduler in (LRScheduler, ReduceLROnPlateau):
            self._patch(scheduler, "step", self._around_scheduler)
        for owner in (Optimizer, nn.Module):
            self._patch(owner, "zero_grad", self._around_zero_grad)
        self._patch(torch.amp.GradScaler, "step", self._around_scaler)
        self._patch(torch, "save", self._around_save)
        self._patch_collectives()
        self._patch_reentrant()
        self.undo.append(sites.watch(self._guard(self._see_loss)))
        if model is not None and optimizer is not None:
            self._take(model, optimizer)

    def stop(self, code: int | None = None) -> None:
        if self.off:
            return
        self.off = True
        for undo in reversed(self.undo):
            undo()
        self.undo.clear()
        if self.journal is not None:
            try:
                if self.subject is not None:
                    self.next_rows = 0  # the rows as they are in the end, beside their pointer
                    self._write_scalars(self.subject, self.clocks["steps"])
                self.fetcher.poll(wait=True)
                self._write("end", code=code, **self.clocks, seconds=self.spent)
                self.journal.close()
            except (OSError, RuntimeError) as error:
                self._say(error)

    def _say(self, error: BaseException) -> None:
        text = f"{type(error).__name__}: {error}".replace("\n", " ")
        print(f"fgclip-doctor: watching stopped, the training goes on ({text})", file=sys.stderr, flush=True)

    def _guard(self, hook: Callable[..., None]) -> Callable[..., None]:
        """A hook of ours: timed, never inside a compiled region, and the end of watching if it fails."""

        @functools.wraps(hook)
        def guarded(*args: Any, **kwargs: Any) -> None:
            if self.off or torch.compiler.is_compiling():
                return
            began = time.perf_counter()
            try:
                hook(*args, **kwargs)
            except Exception as error:  # noqa: BLE001 - a fault of ours must never become one of the training
                self.off = True
                for undo in reversed(self.undo):
                    undo()
                self._say(error)
            self.spent += time.perf_counter() - began

        return guarded

    def _patch(self, owner: Any, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Put a function around one of torch's own, until watching ends."""
        original = owner.__dict__[name] if isinstance(owner, type) else getattr(owner, name)
        ours = functools.wraps(original)(wrap(original))
        setattr(owner, name, ours)

        def undo() -> None:
            if getattr(owner, name) is ours:
                setattr(owner, name, original)

        self.undo.append(undo)

    # --- clocks ----------------------------------------------------------------------------------------------------

    def _around_scheduler(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def step(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
            self.inside_scheduler += 1  # one made of others steps them, too
            try:
                result = original(scheduler, *args, **kwargs)
            finally:
                self.inside_scheduler -= 1
            if not self.inside_scheduler and getattr(scheduler, "_step_count", 2) > 1:  # the first is its own set-up
                self.clocks["scheduler_steps"] += 1
            return result

        return step

    def _around_zero_grad(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def zero_grad(*args: Any, **kwargs: Any) -> Any:
            self.clocks["zero_grads"] += 1
            return original(*args, **kwargs)

        return zero_grad

    def _around_backward(self, original: Callable[..., Any]) -> Callable[..., Any]:
        found = self._guard(self._find)

        def backward(*args: Any, **kwargs: Any) -> Any:
            if self.subject is None:
                found()
            self.clocks["backwards"] += 1
            self.in_backward += 1  # a forward in here is one that checkpointing does again
            try:
                return original(*args, **kwargs)
            finally:
                self.in_backward -= 1

        return backward

    def _around_scaler(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            before = self.clocks["steps"]
            result = original(*args, **kwargs)
            self.clocks["skipped"] += self.clocks["steps"] == before
            return result

        return step

    def _around_save(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def save(*args: Any, **kwargs: Any) -> Any:
            self.saving = True
            return original(*args, **kwargs)

        return save

    def _around_call(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """`__call__` of the model's class: counts the passes of the one model that is watched."""
        entered = self._guard(self._enter)

        def called(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling():  # first of all, so that nothing of ours is traced
                return original(module, *args, **kwargs)
            watched = self.subject is None or module is self.subject.model or module is self.subject.inner
            if self.off or not watched or self.inside_forward or self.in_backward:
                return original(module, *args, **kwargs)
            entered(module)
            self.inside_forward += 1
            try:
                return original(module, *args, **kwargs)
            finally:
                self.inside_forward -= 1

        return called

    def _enter(self, module: nn.Module) -> None:
        if not torch.is_grad_enabled():
            self.clocks["evaluations"] += 1
            return
        self.clocks["forwards"] += 1
        self.clocks["bypassed"] += self.subject is not None and module is not self.subject.model
        self.in_forward.clear()
        if self.looking and self.modes_at != self.clocks["steps"]:  # once a step
            self.modes_at = self.clocks["steps"]
            for name, child in module.named_modules():
                if not child.training:
                    name = _clean(name) or "the model"
                    self.evaluating[name] = self.evaluating.get(name, 0) + 1

    # --- finding the model -----------------------------------------------------------------------------------------

    def _patch_optimizers(self) -> None:
        def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
            def init(optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
                original(optimizer, *args, **kwargs)
                self.optimizers.add(optimizer)
                prepare(optimizer)

            return init

        prepare = self._guard(self._prepare)
        self._patch(Optimizer, "__init__", wrap)
        self._patch(torch, "compile", self._around_compile)
        self.undo.append(register_optimizer_step_pre_hook(self._step_hook(self._before_step)).remove)
        self.undo.append(register_optimizer_step_post_hook(self._step_hook(self._after_step)).remove)

    def _around_compile(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """A model that is compiled after its optimizer was made is called by another name."""

        def compile(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            if isinstance(result, nn.Module):
                self._hook_class(type(result))
            return result

        return compile

    def _step_hook(self, hook: Callable[[], None]) -> Callable[..., None]:
        guarded = self._guard(hook)

        def on_step(optimizer: Optimizer, *_: Any) -> None:
            if self.subject is not None and optimizer is self.subject.optimizer:
                guarded()

        return on_step

    def _prepare(self, optimizer: Optimizer) -> None:
        """Count the passes of whatever may turn out to be the model, from the first one on."""
        for module in _owners(optimizer):
            for one in (_unwrapped(module), module):
                self._hook_class(type(one))

    def _hook_class(self, kind: type) -> None:
        owner = next((one for one in kind.__mro__ if "__call__" in one.__dict__), nn.Module)
        if owner is nn.Module:  # give the class one of its own, so that other modules are called as ever
            original = nn.Module.__call__
            ours = functools.wraps(original)(self._around_call(original))
            ours.watched = True  # type: ignore[attr-defined]
            type.__setattr__(kind, "__call__", ours)
            self.undo.append(lambda: delattr(kind, "__call__") if kind.__dict__.get("__call__") is ours else None)
        elif not getattr(owner.__dict__["__call__"], "watched", False):
            self._patch(owner, "__call__", self._around_call)
            owner.__dict__["__call__"].watched = True

    def _find(self) -> None:
        """The optimizer with the most parameters, and the outermost module that holds as many of them as any does."""
        optimizers = sorted(self.optimizers, key=_count)
        if not optimizers:
            return
        owners = _owners(optimizers[-1])
        if owners:
            self._take(owners[0], optimizers[-1])

    def _take(self, model: nn.Module, optimizer: Optimizer) -> None:
        while isinstance(inside := getattr(optimizer, "optimizer", None), Optimizer):  # accelerate wraps it
            optimizer = inside
        self.subject = Subject.of(model, optimizer)
        for module in (self.subject.inner, model):
            self._hook_class(type(module))
        rank, world = _rank()
        self.journal = Journal(self.directory, rank)
        self._write(
            "start",
            version=VERSION,
            rank=rank,
            world_size=world,
            pid=os.getpid(),
            time=self.journal.started,
            command=sys.argv[:64],
            torch=torch.__version__,
            model=type(model).__name__,
            optimizer=type(optimizer).__name__,
        )
        self._describe()

    def _describe(self) -> None:
        """The parameters, groups and buffers: at the start, and again where they have changed."""
        subject = self._watched()
        groups = {id(one): index for index, g in enumerate(subject.optimizer.param_groups) for one in g["params"]}
        described = {
            "parameters": [
                [name, list(one.shape), _dtype(one), one.requires_grad, groups.get(id(one))]
                for name, one in subject.parameters.items()
            ],
            "buffers": [[_clean(name), list(one.shape), _dtype(one)] for name, one in subject.model.named_buffers()],
            "groups": [
                {key: value for key, value in group.items() if key != "params" and _plain(value)}
                for group in subject.optimizer.param_groups
            ],
        }
        structure = repr((described["parameters"], described["buffers"]))
        if structure != self.model_line:
            self.model_line = structure
            self._write("model", step=self.clocks["steps"], **described)

    def _watched(self) -> Subject:
        assert self.subject is not None  # noqa: S101 - hooks that ask run after `_take`
        return self.subject

    def _write(self, kind: str, **fields: Any) -> None:
        if self.journal is not None:
            self.journal.write(kind, **fields)

    # --- losses ----------------------------------------------------------------------------------------------------

    def _see_loss(self, call: sites.Call) -> None:
        if self.in_backward or not self.looking or not torch.is_grad_enabled() or self.journal is None:
            return
        place = self.in_forward.get(call.site, 0) + 1
        self.in_forward[call.site] = place
        site = call.site if place == 1 else f"{call.site} #{place}"  # image to text and back are often one line
        self.calls[site] = self.calls.get(site, 0) + 1
        if self.calls[site] > SITE_CALLS or (site not in self.known and len(self.known) >= sites.MAX_SITES):
            return
        measured = sites.measure(call)
        if measured is None:
            return
        new = site not in self.known
        number = self.known.setdefault(site, len(self.known))
        step, forward = self.clocks["steps"], self.clocks["forwards"]
        gradient = call.logits.requires_grad
        if new and _rank()[1] > 1 and (seen := sites.reach(call.logits)) is not None:
            fields = {"anchors": seen.anchors, "columns": seen.columns, "reached": seen.reached}
            self._write("reach", site=number, name=site, of=call.kind, **fields)

        def arrived(values: list[float]) -> None:
            named = dict(zip(sites.MEASURED, values, strict=True))
            self._write(
                "loss", site=number, name=site, of=call.kind, step=step, forward=forward, gradient=gradient, **named
            )

        self.fetcher.take(measured, arrived)

    # --- the step --------------------------------------------------------------------------------------------------

    def _before_step(self) -> None:
        """Gradients are complete, and about to be used."""
        self.fetcher.poll()
        subject = self._watched()
        if self.saving:  # all the pieces of a checkpoint are there once the training goes on
            self.saving = False
            self._write("saved", step=self.clocks["steps"])
        if not self.looking:
            return
        step = self.clocks["steps"]
        named = [(name, _local(one.grad)) for name, one in subject.parameters.items() if one.grad is not None]
        if named:
            names = [name for name, _ in named]
            norms = torch._foreach_norm([gradient for _, gradient in named])
            newly = subject.unreached.intersection(names)

            def arrived(values: list[float]) -> None:
                squares: dict[str, float] = {}
                for name, value in zip(names, values, strict=True):
                    squares[_part(name)] = squares.get(_part(name), 0.0) + value * value
                reached = [name for name, value in zip(names, values, strict=True) if name in newly and value != 0]
                subject.unreached.difference_update(reached)
                self._write(
                    "gradients",
                    step=step,
                    norms={part: square**0.5 for part, square in squares.items()},
                    reached=reached,
                    zero=sorted(newly.difference(reached)) if step < DENSE_STEPS else [],
                )

            self.fetcher.take(norms, arrived)
        self._sample_before(subject)

    def _sample_before(self, subject: Subject) -> None:
        chosen = [(name, one) for name, one in subject.parameters.items() if one.grad is not None and one.numel() > 1]
        self.before = ([_sample(one).clone() for _, one in chosen], [name for name, _ in chosen])

    def _after_step(self) -> None:
        self.clocks["steps"] += 1
        step = self.clocks["steps"]
        subject = self._watched()
        if self.looking:
            self._describe()
            self._write_updates(subject, step)
            self._write_scalars(subject, step)
            self._write(
                "step",
                step=step,
                time=time.time(),
                lr=[float(group["lr"]) for group in subject.optimizer.param_groups],
                **{clock: count for clock, count in self.clocks.items() if clock != "steps"},
                seconds=self.spent,
                elapsed=time.perf_counter() - self.began,
                evaluating=self.evaluating,
                gathers=[[name, list(shape), *flags, n] for (name, shape, *flags), n in self.gathers.items()],
            )
            self.evaluating = {}
        self._look_again(step)
        self.calls.clear()

    def _look_again(self, step: int) -> None:
        """Whether the next step is looked at: the first all, then ever fewer, and fewer where looking is dear."""
        now = time.perf_counter()
        if self.looking:
            self.look_cost = self.spent - self.spent_before
        elif not self.looked_last:  # a step between two that weren't looked at
            self.step_time = now - self.step_ended
        self.spent_before, self.looked_last, self.step_ended = self.spent, self.looking, now
        affordable = int(self.look_cost / (BUDGET * self.step_time)) if self.step_time else 0
        every = max(self.every, affordable, step // LONG_RUN)
        self.looking = step < DENSE_STEPS or step >= self.looked_at + every
        if self.looking:
            self.looked_at = step

    def _write_updates(self, subject: Subject, step: int) -> None:
        """How far the step moved each part, as a share of its size, at a sample of its values."""
        if self.before is None:
            return
        before, names = self.before
        self.before = None
        after = [_sample(subject.parameters[name]) for name in names]
        split = _is_split(subject.model)
        moved = torch._foreach_norm(torch._foreach_sub(after, before))
        sizes = torch._foreach_norm(before)

        def arrived(values: list[float]) -> None:
            parts: dict[str, list[float]] = {}
            for place, name in enumerate(names):
                sums = parts.setdefault(_part(name), [0.0, 0.0])
                sums[0] += values[place] ** 2
                sums[1] += values[len(names) + place] ** 2
            ratios = {part: (a / b) ** 0.5 for part, (a, b) in parts.items() if b}
            still = [name for place, name in enumerate(names) if values[place] == 0]
            digest = "" if split else hashlib.sha256(repr(values[len(names) :]).encode()).hexdigest()[:16]
            self._write("updates", step=step, ratios=ratios, unmoved=still[:SCALARS], digest=digest)

        self.fetcher.take([*moved, *sizes], arrived)

    def _write_scalars(self, subject: Subject, step: int) -> None:
        """Scales, pointers, flags and counters: parameters and buffers of one element, and plain numbers of modules."""
        small = [
            (_clean(name), one)
            for name, one in (*subject.model.named_parameters(), *subject.model.named_buffers())
            if one.numel() == 1 and not name.endswith("num_batches_tracked")
        ][:SCALARS]
        plain = dict(_attributes(subject.model))

        def arrived(values: list[float]) -> None:
            self._write(
                "scalars", step=step, values={name: v for (name, _), v in zip(small, values, strict=True)} | plain
            )

        if small:
            self.fetcher.take([_local(one).reshape(()) for _, one in small], arrived)
        elif plain:
            arrived([])
        if _rank()[1] > 1:
            for name, bank in _banks(subject.model):
                self._write_digest(name, bank, step)
        if step >= self.next_rows:
            self.next_rows = 2 * step
            for name, bank in _banks(subject.model):
                self._write_rows(name, bank, step)

    def _write_digest(self, name: str, bank: Tensor, step: int) -> None:
        """What tells whether every rank holds the same bank."""

        def arrived(values: Tensor) -> None:
            digest = hashlib.sha256(values.numpy().tobytes()).hexdigest()[:16]
            self._write("digest", step=step, values={name: digest})

        self.fetcher.copy(_sample(bank), arrived)

    def _write_rows(self, name: str, bank: Tensor, step: int) -> None:
        """The rows of a bank that isn't too large, whole."""
        if bank.numel() * 4 > ROWS_BYTES:
            return
        shape, dtype = list(bank.shape), _dtype(bank)

        def arrived(values: Tensor) -> None:
            data = base64.b64encode(values.numpy().tobytes()).decode("ascii")
            self._write("rows", step=step, name=name, shape=shape, dtype=dtype, data=data)

        self.fetcher.copy(bank.detach().float().contiguous(), arrived)

    # --- ranks and checkpointing -----------------------------------------------------------------------------------

    def _patch_collectives(self) -> None:
        if not torch.distributed.is_available():
            return
        import torch.distributed.nn.functional as differentiable

        for owner, name, carries in (
            (torch.distributed, "all_gather", False),
            (torch.distributed, "all_gather_into_tensor", False),
            (differentiable, "all_gather", True),
        ):
            self._patch(owner, name, functools.partial(self._around_gather, name, carries))

    def _around_gather(self, name: str, carries: bool, original: Callable[..., Any]) -> Callable[..., Any]:
        see = self._guard(self._see_gather)

        def gather(*args: Any, **kwargs: Any) -> Any:
            given = next((one for one in (*reversed(args), *kwargs.values()) if isinstance(one, Tensor)), None)
            if given is not None:
                see(name, carries, given)
            return original(*args, **kwargs)

        return gather

    def _see_gather(self, name: str, carries: bool, given: Tensor) -> None:
        if given.dim() == 2 and given.is_floating_point() and (self.inside_forward or self.clocks["forwards"]):
            key = (
                f"torch.distributed{'.nn' if carries else ''}.{name}",
                (given.shape[1],),
                given.requires_grad,
                carries,
            )
            if key in self.gathers or len(self.gathers) < SCALARS:
                self.gathers[key] = self.gathers.get(key, 0) + 1

    def _patch_reentrant(self) -> None:
        import torch.utils.checkpoint as checkpointing

        def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
            see = self._guard(self._see_reentrant)

            def apply(function: Any, preserve: bool, *args: Any) -> Any:
                if torch.is_grad_enabled() and not any(isinstance(one, Tensor) and one.requires_grad for one in args):
                    see(function)
                return original(function, preserve, *args)

            return apply

        self._patch_static(checkpointing.CheckpointFunction, "apply", wrap)

    def _patch_static(self, owner: Any, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        original = getattr(owner, name)  # bound to its class already
        setattr(owner, name, staticmethod(wrap(original)))
        self.undo.append(lambda: delattr(owner, name))

    def _see_reentrant(self, function: Any) -> None:
        module = function if isinstance(function, nn.Module) else getattr(function, "__self__", None)
        if self.subject is None or not isinstance(module, nn.Module):
            return
        name = next((name for name, one in self.subject.model.named_modules() if one is module), "")
        if name and self.known.setdefault(f"reentrant {name}", -1) == -1:
            self.known[f"reentrant {name}"] = -2
            self._write("reentrant", name=_clean(name), step=self.clocks["steps"])


# --- what is read off torch's objects -------------------------------------------------------------------------------


@contextmanager
def watching(model: nn.Module, optimizer: Optimizer, directory: str | Path) -> Iterator[Recorder]:
    """Record what is trained inside the block: ``with fgclip_doctor.watching(model, optimizer, "runs/exp7"):``."""
    recorder = Recorder(Path(directory))
    recorder.start(model, optimizer)
    code: int | None = 1
    try:
        yield recorder
        code = 0
    finally:
        recorder.stop(code)


def _owners(optimizer: Optimizer) -> list[nn.Module]:
    """The modules that hold as many of an optimizer's parameters as any does, outermost first."""
    wanted = {id(one) for group in optimizer.param_groups for one in group["params"]}
    modules = [one for one in gc.get_objects() if issubclass(type(one), nn.Module)]  # a proxy's class may be a property
    children = {id(child) for module in modules for child in module.children()}
    roots = [module for module in modules if id(module) not in children]
    held = {id(root): len(wanted.intersection(map(id, root.parameters()))) for root in roots}
    most = max(held.values(), default=0)
    best = [root for root in roots if held[id(root)] == most] if most else []
    return sorted(best, key=lambda root: -sum(1 for _ in root.modules()))


def _unwrapped(model: nn.Module) -> nn.Module:
    """The module inside `DistributedDataParallel`, `torch.compile` and their like."""
    while True:
        inside = model._modules.get("module") or model._modules.get("_orig_mod")
        if inside is None or len(model._modules) != 1:
            return model
        model = inside


def _count(optimizer: Optimizer) -> int:
    return sum(one.numel() for group in optimizer.param_groups for one in group["params"])


def _clean(name: str) -> str:
    """A name without what wrappers put into it: `DistributedDataParallel`, `torch.compile`, FSDP."""
    parts = [part for part in name.split(".") if part not in ("module", "_orig_mod", "_fsdp_wrapped_module")]
    return ".".join(part for part in parts if part != "_checkpoint_wrapped_module")


def _part(name: str) -> str:
    """The part of the model that a parameter is of: its layer where it is in a stack of them, else its module."""
    words = name.split(".")
    for place, word in enumerate(words):
        if word.isdecimal():
            return ".".join(words[: place + 1])
    return ".".join(words[:-1]) or name


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor; dense, for a norm."""
    tensor = tensor.detach()
    local = getattr(tensor, "to_local", None)  # of a DTensor
    if local is not None:
        tensor = local()
    return tensor.coalesce().values() if tensor.is_sparse else tensor


def _is_split(model: nn.Module) -> bool:
    """Whether each rank holds only its own part of the parameters: FSDP, ZeRO-3, tensor parallelism."""
    wrapped = any(type(one).__name__ == "FullyShardedDataParallel" for one in model.modules())
    signs = ("to_local", "ds_id", "tensor_model_parallel")  # of a DTensor, of DeepSpeed, of Megatron
    found = (getattr(one, sign, None) for one in model.parameters() for sign in signs)
    return wrapped or any(one is not None and one is not False for one in found)


def _sample(parameter: Tensor) -> Tensor:
    """Up to `SAMPLED` values, evenly spread, in float32: a view where it can be one."""
    flat = _local(parameter).reshape(-1)
    return flat[:: max(1, flat.numel() // SAMPLED)][:SAMPLED].float()


def _plain(value: object) -> bool:
    numbers = (int, float, str, bool, type(None))
    return isinstance(value, numbers) or (
        isinstance(value, (list, tuple)) and all(isinstance(v, numbers) for v in value)
    )


def _attributes(model: nn.Module) -> Iterator[tuple[str, float]]:
    """Numbers and flags that modules keep as plain attributes: a bank's switch and a counter of forwards often are."""
    found = 0
    for name, module in model.named_modules():
        if _clean(name).count(".") > 1 or type(module).__module__.startswith("torch."):
            continue
        for key, value in vars(module).items():
            if isinstance(value, (bool, int, float)) and not key.startswith("_") and key not in ("training",):
                found += 1
                if found > SCALARS:
                    return
                yield f"{_clean(name)}.{key}".strip("."), value


def _banks(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    """Buffers that may be a bank: matrices of floats."""
    for name, buffer in model.named_buffers():
        if buffer.dim() == 2 and buffer.is_floating_point() and min(buffer.shape) > 1:
            yield _clean(name), buffer


def _rank() -> tuple[int, int]:
    """This process among those of the training: as torch.distributed has it, else as the launcher said."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    environment: Mapping[str, str] = os.environ
    return int(environment.get("RANK", "0")), int(environment.get("WORLD_SIZE", "1"))
