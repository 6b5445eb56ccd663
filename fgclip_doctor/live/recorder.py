"""Watches one process of a training and writes down what it sees; results, gradients and random state stay the same.

Each clock is counted by itself and never inferred from another: forwards of the model, backward passes, optimizer
steps, scheduler steps, `zero_grad`s, steps that a gradient scaler skipped. Everything is hooked on classes and modules
of torch, never on the model's own objects, so nothing of ours is saved, copied or pickled with a model.
"""

from __future__ import annotations

import functools
import os
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from math import ceil, log2
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from fgclip_doctor.live import dry, sites
from fgclip_doctor.live.configured import configurations
from fgclip_doctor.live.fetch import Fetcher
from fgclip_doctor.live.hooks import Function, Hooks
from fgclip_doctor.live.journal import VERSION, Journal
from fgclip_doctor.live.launcher import OVERFIT, STEPS
from fgclip_doctor.live.looks import Looks
from fgclip_doctor.live.measured import MEASURED, Call, Losses
from fgclip_doctor.live.subject import (
    SCALARS,
    Subject,
    found_for,
    holds_masters,
    rank_and_world,
    remember,
    roots_of,
    stepping,
    unwrapped,
)

JOINING = 2  # steps until which an optimizer of another model joins those that are watched
DENSE_STEPS = 3  # of which each is looked at, so that a fault shows soon
EVERY = 10  # then every so many, twice as often up to `OFTEN`, and fewer as the run gets long
OFTEN = 20
EARLY_STEPS = 60  # until which that holds whatever it costs
SETTLING = 0.1  # seconds in which torch's own threads let go of what they hold, once, at the end
LONG_RUN = 2000  # from `EVERY` times this many steps on, about this many looks in each doubling of the run
BUDGET = 0.005  # of the time that passes; where looking takes a larger share, it becomes rarer
SITE_CALLS = 16  # of one site in one step
MAX_COURSE = 256  # losses of one forward
MAX_CHANGES = 64  # of the columns at one site that are told; beyond, only each that is a quarter more or less
CLOCKS = (
    *("forwards", "backwards", "steps", "scheduler_steps", "zero_grads"),
    *("skipped", "evaluations", "bypassed"),  # of the last, the model was called without its wrapper
)


class Recorder:
    """Hooks one process. `start` begins, `stop` ends, and any error of our own ends it too, with one line."""

    def __init__(self, directory: Path, *, every: int = EVERY) -> None:
        self.directory = directory
        self.every = every
        self.hooks = Hooks(self._failed)
        self.journal: Journal | None = None
        self.subject: Subject | None = None
        self.looks: Looks | None = None
        self.fetcher = Fetcher()
        self.losses = Losses(self.fetcher)
        self.clocks = dict.fromkeys(CLOCKS, 0)
        self.began = time.perf_counter()
        self.in_backward = False
        self.inside_forward = 0
        self.inside_scheduler = 0
        self.optimizers: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self.scheduled: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()  # steps of each scheduler
        self.stepped_after = 0  # backward passes, at the last step that was counted
        self.beside_first = 0  # steps of other optimizers since one of the first
        self.calls: dict[str, int] = {}  # of each site since the last step
        self.course: list[tuple[torch.Size, str]] = []  # of a forward: the shape of each loss's logits, and its site
        self.place = 0  # in the course, of the next loss of the forward under way
        self.known: dict[str, int] = {}  # sites by name
        self.columns: dict[str, tuple[int, int]] = {}  # of each site, as last told, and how often they were
        self.evaluating: dict[str, int] = {}
        self.gathers: dict[tuple[str, tuple[int, ...], bool, bool], int] = {}
        self.reentrant: set[str] = set()
        self.modes_at = self.inputs_at = -1  # the steps at which they were last looked at
        self.saving = False  # whether something was saved since the last step
        self.dry_steps = int(os.environ.get(STEPS, "0"))
        self.pace = Pace(every, self.dry_steps or DENSE_STEPS)
        self.state: dry.State | None = None
        self.replay = dry.Replay() if os.environ.get(OVERFIT) else None

    # --- beginning and end -----------------------------------------------------------------------------------------

    def start(self, model: nn.Module | None = None, optimizer: Optimizer | None = None) -> None:
        """Hook torch. Without a model and its optimizer, they are found at the first backward pass."""
        self.hooks.guard(self._start)(model, optimizer)

    def _start(self, model: nn.Module | None, optimizer: Optimizer | None) -> None:
        hooks = self.hooks
        hooks.patch(Optimizer, "__init__", self._around_optimizer)
        hooks.patch(torch, "compile", self._around_compile)
        hooks.undo.append(register_optimizer_step_pre_hook(self._pre_hook()).remove)
        hooks.undo.append(register_optimizer_step_post_hook(self._post_hook()).remove)
        hooks.patch(torch.autograd, "backward", self._around_backward)
        for scheduler in (LRScheduler, ReduceLROnPlateau):
            hooks.patch(scheduler, "step", self._around_scheduler)
        for owner in (Optimizer, nn.Module):
            hooks.patch(owner, "zero_grad", self._around_zero_grad)
        hooks.patch(torch.amp.GradScaler, "step", self._around_scaler)
        hooks.patch(torch, "save", self._around_save)
        self._patch_collectives()
        self._patch_reentrant()
        hooks.undo.append(sites.watch(hooks.guard(self._see_loss), self._is_known()))
        if model is not None and optimizer is not None:
            self._take(Subject([("", model)], [stepping(optimizer)]))

    def stop(self, code: int | None = None) -> None:
        if self.hooks.off:
            return
        self.hooks.guard(self._finish)(code)
        self.hooks.remove()

    def _finish(self, code: int | None) -> None:
        step = self.clocks["steps"]
        if self.looks is not None and self.journal is not None and not self.journal.foreign:
            if not self.looks.subject.gone:  # as it is at the end of a process
                self.looks.scalars(step)
                self.looks.rows(step)
                if self.state is not None:
                    self.state.finish(step)
            if self.saving:
                self._write("saved", step=step)
            self.fetcher.poll(wait=True)
            self.losses.measure()
            self._write("end", code=code, **self.clocks, seconds=self.hooks.so_far)
            self.journal.close()

    def _failed(self, error: Exception) -> None:
        """The last word of a recording that an error of ours ends, if it can still be written."""
        if self.journal is not None:
            with closing(self.journal):
                self._write("off", step=self.clocks["steps"], reason=f"{type(error).__name__}: {error}"[:500])

    def _write(self, kind: str, **fields: Any) -> None:
        if self.journal is not None:
            self.journal.write(kind, **fields)

    # --- clocks ----------------------------------------------------------------------------------------------------

    def _around_scheduler(self, original: Function) -> Function:
        count = self.hooks.guard(self._count_schedule)

        def step(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
            self.inside_scheduler += 1  # one made of others steps them, too
            try:
                result = original(scheduler, *args, **kwargs)
            finally:
                self.inside_scheduler -= 1
            if not self.inside_scheduler and getattr(scheduler, "_step_count", 2) > 1:  # the first is its own set-up
                count(scheduler)
            return result

        return step

    def _count_schedule(self, scheduler: Any) -> None:
        """Of several schedulers, as of two optimizers, the one that steps most often is the clock."""
        own = self.scheduled[scheduler] = self.scheduled.get(scheduler, 0) + 1
        self.clocks["scheduler_steps"] = max(own, self.clocks["scheduler_steps"])

    def _around_zero_grad(self, original: Function) -> Function:
        clocks = self.clocks

        def zero_grad(*args: Any, **kwargs: Any) -> Any:
            clocks["zero_grads"] += 1
            return original(*args, **kwargs)

        return zero_grad

    def _around_backward(self, original: Function) -> Function:
        entered, pace, clocks = self.hooks.guard(self._enter_backward), self.pace, self.clocks

        def backward(*args: Any, **kwargs: Any) -> Any:
            if self.in_backward:  # reentrant checkpointing makes some inside of one
                return original(*args, **kwargs)
            if pace.looking or self.subject is None or self.subject.called() is None:
                entered()
            clocks["backwards"] += 1
            self.place = 0
            self.in_backward = True  # a forward in here is one that checkpointing does again
            try:
                return original(*args, **kwargs)
            finally:
                self.in_backward = False

        return backward

    def _enter_backward(self) -> None:
        if self.subject is None:
            self._find()
        elif self.subject.gone:  # the next model of the process is not watched
            self.stop(0)
            return
        self.losses.measure()  # now, lest a process that is killed in its step lose them
        step = self.clocks["steps"]
        if self.subject is not None and self.pace.looking and self.modes_at != step:  # once a step
            self.modes_at = step
            if self.looks is not None:
                self.looks.listen(self.hooks.guard)
            for name in {name or "the model" for name, module in self.subject.modules() if not module.training}:
                self.evaluating[name] = self.evaluating.get(name, 0) + 1

    def _around_scaler(self, original: Function) -> Function:
        def step(*args: Any, **kwargs: Any) -> Any:
            before = self.clocks["steps"]
            result = original(*args, **kwargs)
            self.clocks["skipped"] += self.clocks["steps"] == before
            return result

        return step

    def _around_save(self, original: Function) -> Function:
        def save(*args: Any, **kwargs: Any) -> Any:
            self.saving = True
            return original(*args, **kwargs)

        return save

    def _around_call(self, original: Function) -> Function:
        """`__call__` of the model's class: counts the passes of the one model that is watched."""
        hooks, is_compiling, pace, clocks = self.hooks, torch.compiler.is_compiling, self.pace, self.clocks
        see, learns = hooks.guard(self._see_inputs), torch.is_grad_enabled

        def called(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if is_compiling() or self.inside_forward or self.in_backward or hooks.off:  # the first lest we be traced
                return original(module, *args, **kwargs)
            subject, learning = self.subject, learns()
            if subject is not None and subject.called() is not module:
                if subject.inside() is not module:
                    return original(module, *args, **kwargs)
                clocks["bypassed"] += learning
            clocks["forwards" if learning else "evaluations"] += 1
            self.place = 0
            if learning and pace.looking:
                see((args, kwargs))
            if learning and self.replay is not None:
                args, kwargs = self._first_batch(self.replay, module, args, kwargs)
            self.inside_forward += 1
            try:
                return original(module, *args, **kwargs)
            finally:
                self.inside_forward -= 1

        return called

    def _see_inputs(self, given: object) -> None:
        """Of several ranks: what the first forward of a step is given."""
        step = self.clocks["steps"]
        if self.looks is not None and self.inputs_at != step and rank_and_world()[1] > 1:
            self.inputs_at = step
            self.looks.inputs(step, given)

    def _first_batch(self, replay: dry.Replay, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        try:
            given = replay(module, args, kwargs)
        except Exception as error:  # noqa: BLE001 - as of every hook
            self.hooks.fail(error)
            return args, kwargs
        self.clocks["replayed"] = self.clocks.get("replayed", 0) + 1
        return given

    # --- finding the model -----------------------------------------------------------------------------------------

    def _around_optimizer(self, original: Function) -> Function:
        prepare = self.hooks.guard(self._prepare)

        def init(optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
            original(optimizer, *args, **kwargs)
            prepare(optimizer)

        return init

    def _prepare(self, optimizer: Optimizer) -> None:
        """Count the passes of whatever may turn out to be the model, from the first one on."""
        self.optimizers.add(optimizer)
        remember(optimizer)
        for module in roots_of(optimizer):
            for one in (unwrapped(module), module):
                self._hook_class(type(one))
        if self.subject is not None and not {*map(id, self.subject.parameters.values())}.isdisjoint(
            id(one) for group in optimizer.param_groups for one in group["params"]
        ):
            self.subject.add(optimizer)

    def _around_compile(self, original: Function) -> Function:
        """A model that is compiled after its optimizer was made is called by another name."""
        prepare = self.hooks.guard(self._hook_class)

        def compile(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            if isinstance(result, nn.Module):
                prepare(type(result))
            return result

        return compile

    def _hook_class(self, kind: type) -> None:
        owner = next((one for one in kind.__mro__ if "__call__" in one.__dict__), nn.Module)
        if owner is nn.Module:  # give the class one of its own, so that other modules are called as ever
            original = nn.Module.__call__
            ours = functools.wraps(original)(self._around_call(original))
            ours.watched_by = self  # type: ignore[attr-defined]
            type.__setattr__(kind, "__call__", ours)
            self.hooks.undo.append(lambda: delattr(kind, "__call__") if kind.__dict__.get("__call__") is ours else None)
        elif getattr(owner.__dict__["__call__"], "watched_by", None) is not self:
            self.hooks.patch(owner, "__call__", self._around_call)
            owner.__dict__["__call__"].watched_by = self

    def _find(self) -> None:
        subject = found_for(list(self.optimizers), sites.outside(sys._getframe(1)))
        if subject is not None:
            self._take(subject)

    def _take(self, subject: Subject) -> None:
        rank, world = rank_and_world()
        self.journal = Journal(self.directory, rank)
        looks = self._follow(subject)
        self._write(
            "start",
            version=VERSION,
            rank=rank,
            world_size=world,
            pid=os.getpid(),
            time=self.journal.started,
            program=sys.argv[0] if sys.argv else "",
            torch=torch.__version__,
            model=type(subject.model).__name__,
            optimizers=[type(one).__name__ for one in subject.optimizers],
        )
        looks.describe(self.clocks["steps"])
        if self.dry_steps and rank == 0:
            self.state = dry.State(subject, self._write)
        for of, values in configurations(subject):
            if values:
                self._write("arguments", of=of, values=values)

    # --- losses ----------------------------------------------------------------------------------------------------

    def _is_known(self) -> sites.Known:
        """Between looks: whether it is the next loss of the last forward's course again, by the shape of its logits."""
        pace, course, learning = self.pace, self.course, torch.is_grad_enabled

        def known(logits: object) -> bool:
            if pace.looking:
                return False
            if self.in_backward or not learning():
                return True
            place = self.place
            if place < len(course) and type(logits) is Tensor and logits.shape == course[place][0]:
                self.place = place + 1
                return True
            return False

        return known

    def _see_loss(self, call: Call) -> None:
        if self.in_backward or not torch.is_grad_enabled() or self.journal is None:
            return
        del self.course[self.place :]  # another course from here on
        before = sum(site == call.site for _, site in self.course)
        site = f"{call.site} #{before + 1}" if before else call.site  # image to text and back are often one line
        if len(self.course) < MAX_COURSE:
            self.course.append((call.logits.shape, call.site))
            self.place += 1
        if self.pace.looking:
            self._measure(call, site)
        if site in self.known:
            self._tell_columns(site, call.kind, *call.logits.shape)

    def _measure(self, call: Call, site: str) -> None:
        self.calls[site] = self.calls.get(site, 0) + 1
        if self.calls[site] > SITE_CALLS or (site not in self.known and len(self.known) >= sites.MAX_SITES):
            return
        new = site not in self.known
        number, kind = self.known.get(site, len(self.known)), call.kind
        fields = {"step": self.clocks["steps"], "forward": self._forward, "gradient": call.logits.requires_grad}

        def arrived(values: list[float]) -> None:
            self._write("loss", site=number, name=site, of=kind, **fields, **dict(zip(MEASURED, values, strict=True)))

        if not self.losses.add(call, arrived):
            return
        self.known[site] = number
        if new and rank_and_world()[1] > 1 and (seen := sites.reach(call.logits)) is not None:
            reach = {"anchors": seen.anchors, "columns": seen.columns, "reached": seen.reached}
            self._write("reach", site=number, name=site, of=kind, **reach)

    @property
    def _forward(self) -> int:
        """The number of the forward under way; of a model that is never called as a whole, of its backward pass."""
        return self.clocks["forwards"] or self.clocks["backwards"] + 1

    def _tell_columns(self, site: str, kind: str, anchors: int, columns: int) -> None:
        """Shapes cost nothing to see, so a change of the candidates is told at the very forward at which it comes:
        before what is measured of it, which arrives later.
        """
        last, told = self.columns.get(site, (0, 0))
        if columns == last or (told > MAX_CHANGES and 0.8 < columns / last < 1.25):
            return
        if told < 8 * MAX_CHANGES:
            self.columns[site] = columns, told + 1
            what = {"site": self.known[site], "name": site, "of": kind}
            when = {"step": self.clocks["steps"], "forward": self._forward}
            self._write("columns", **what, **when, anchors=anchors, columns=columns)

    # --- the step --------------------------------------------------------------------------------------------------

    def _pre_hook(self) -> Callable[..., None]:
        hook, is_traced, pace = self.hooks.guard(self._before_step), torch.compiler.is_dynamo_compiling, self.pace

        def before(optimizer: Optimizer, *_: Any) -> None:
            if not is_traced() and pace.looking:  # in this order, so that a compiler sees nothing of ours
                hook(optimizer)

        return before

    def _post_hook(self) -> Callable[..., None]:
        hook, is_traced = self.hooks.guard(self._after_step), torch.compiler.is_dynamo_compiling
        pace, clocks, pending = self.pace, self.clocks, self.fetcher.pending

        def after(optimizer: Optimizer, *_: Any) -> None:
            if is_traced():
                return
            subject = self.subject
            if pace.looking or self.saving or pending or subject is None or subject.several or subject.masters:
                hook(optimizer)
            elif subject.is_first(optimizer):  # all that there is to a step that isn't looked at
                clocks["steps"] = step = clocks["steps"] + 1
                pace.looking = step + 1 >= pace.next

        return after

    def _is_first(self, optimizer: Optimizer) -> bool:
        """Whether its steps are those that are counted."""
        if self.subject is None and (self.clocks["backwards"] or not holds_masters(optimizer)):
            self._find()  # a closure does its backward passes inside of the step
        return self.subject is not None and self.subject.is_first(optimizer)

    def _again(self) -> bool:
        """Whether it is one step with the last: masters are updated group by group, and once before the training."""
        return self.subject is not None and self.subject.masters and self.clocks["backwards"] == self.stepped_after

    def _before_step(self, optimizer: Optimizer) -> None:
        """Gradients are complete, and about to be used, by a step that is looked at."""
        first = self._is_first(optimizer)
        if self.subject is None or self.looks is None or self._again():
            return
        if first or any(one is optimizer for one in self.subject.optimizers):
            step = self.clocks["steps"]
            self.looks.gradients(optimizer, step, early=step < EARLY_STEPS)
        if first and not self.clocks["steps"]:
            self.looks.begin(optimizer)
        if first:
            self.looks.sample_before(optimizer)

    def _after_step(self, optimizer: Optimizer) -> None:
        self.fetcher.poll()
        self.losses.measure()
        if not self._is_first(optimizer) and not self._takes_over(optimizer):
            self._joins(optimizer)
            return
        if self._again():
            return
        self.beside_first, self.stepped_after = 0, self.clocks["backwards"]
        if self.saving:  # all the pieces of a checkpoint are there once the training goes on
            self.saving = False
            self._write("saved", step=self.clocks["steps"])
        self.clocks["steps"] += 1
        if self.pace.looking:
            self._look()
        else:
            self.pace.looking = self.clocks["steps"] + 1 >= self.pace.next

    def _takes_over(self, optimizer: Optimizer) -> bool:
        """Whether its steps are counted from now on: of an optimizer beside one that no longer steps."""
        subject = self.subject
        if subject is None or not any(one is optimizer for one in subject.optimizers):
            return False
        self.beside_first += 1
        if self.beside_first <= 2 * len(subject.optimizers) and not subject.idle:
            return False
        subject.count_steps_of(optimizer)
        self.pace.begin(self.clocks["steps"])
        return True

    def _joins(self, optimizer: Optimizer) -> None:
        """Towers may be models of their own, each with its optimizer, of which all step from the start."""
        subject = self.subject
        if subject is None or self.clocks["steps"] > JOINING or any(one is optimizer for one in subject.optimizers):
            return
        whole = found_for([*subject.optimizers, optimizer], sites.outside(sys._getframe(1)), together=True)
        if whole is not None and whole.called() is subject.called():
            self._follow(whole)

    def _follow(self, subject: Subject) -> Looks:
        for module in (subject.inner, subject.model):
            self._hook_class(type(module))
        self.subject = subject
        self.looks = Looks(subject, self.fetcher, self._write)
        self.hooks.undo.append(self.looks.deafen)
        return self.looks

    def _look(self) -> None:
        """At what a step has made of the model."""
        if self.looks is None:
            return
        step = self.clocks["steps"]
        self.looks.describe(step)
        self.looks.updates(step)
        self.looks.moments(step)
        self.looks.unheld(step)
        self.looks.scalars(step)
        self.looks.banks(step)
        if self.state is not None:  # before the record on which the gate ends the command
            self.state.look()
            if step >= self.dry_steps:
                self.state.finish(step)
        self._write(
            "step",
            step=step,
            time=time.time(),
            lr=[float(group["lr"]) for one in self.looks.subject.optimizers for group in one.param_groups],
            **{clock: count for clock, count in self.clocks.items() if clock != "steps"},
            seconds=self.hooks.so_far,
            elapsed=time.perf_counter() - self.began,
            evaluating=self.evaluating,
            gathers=[[name, list(shape), *flags, n] for (name, shape, *flags), n in self.gathers.items()],
        )
        self.evaluating = {}
        self.pace.stepped(step, self.hooks.so_far)
        self.calls.clear()

    # --- ranks and checkpointing -----------------------------------------------------------------------------------

    def _patch_collectives(self) -> None:
        if not torch.distributed.is_available():
            return
        import torch.distributed.nn.functional as differentiable

        self.hooks.patch(torch.distributed, "destroy_process_group", self._around_destroy)

        for owner, name, carries in (
            (torch.distributed, "all_gather", False),
            (torch.distributed, "all_gather_into_tensor", False),
            (differentiable, "all_gather", True),
        ):
            self.hooks.patch(owner, name, functools.partial(self._around_gather, name, carries))

    def _around_destroy(self, original: Function) -> Function:
        """Destroying a group of gloo waits, with the interpreter locked, for threads that need the lock to free what a
        backward pass was doing: a process that ends soon after its last one hangs, and with us it does so more often.
        """

        def destroy(*args: Any, **kwargs: Any) -> Any:
            time.sleep(SETTLING)  # unlocks it
            return original(*args, **kwargs)

        return destroy

    def _around_gather(self, name: str, carries: bool, original: Function) -> Function:
        see = self.hooks.guard(self._see_gather)

        def gather(*args: Any, **kwargs: Any) -> Any:
            given = next((one for one in (*reversed(args), *kwargs.values()) if isinstance(one, Tensor)), None)
            if given is not None:
                see(name, carries, given)
            return original(*args, **kwargs)

        return gather

    def _see_gather(self, name: str, carries: bool, given: Tensor) -> None:
        begun = (
            self.inside_forward or self.clocks["forwards"] or self.clocks["backwards"]
        )  # not the set-up of a wrapper
        if given.dim() == 2 and given.is_floating_point() and begun:
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

        see = self.hooks.guard(self._see_reentrant)

        def wrap(original: Function) -> Function:
            def apply(function: Any, preserve: bool, *args: Any) -> Any:
                if torch.is_grad_enabled() and not any(isinstance(one, Tensor) and one.requires_grad for one in args):
                    see(function)
                return original(function, preserve, *args)

            return apply

        self.hooks.patch_inherited(checkpointing.CheckpointFunction, "apply", wrap)

    def _see_reentrant(self, function: Any) -> None:
        module = function if isinstance(function, nn.Module) else getattr(function, "__self__", None)
        if self.subject is None or not isinstance(module, nn.Module):
            return
        name = next((name for name, one in self.subject.modules() if one is module), "")
        if name and name not in self.reentrant:
            self.reentrant.add(name)
            self._write("reentrant", name=name, step=self.clocks["steps"])


class Pace:
    """Which steps are looked at: the first all, then ever fewer, and fewer where looking is dear.

    Those are multiples of `every`, times a power of two, so that ranks which can afford different paces still look at
    the same steps now and then.
    """

    def __init__(self, every: int, dense: int) -> None:
        self.every = every
        self.dense = dense
        self.looking = True  # whether the step under way is looked at
        self.next = 1  # that step, or the next one that is
        self.looked = (0, time.perf_counter(), 0.0)  # the last: its step, when it ended, what had been spent by then
        self.begun = 0  # the steps before the stage of the training that is under way

    def begin(self, step: int) -> None:
        """Another stage begins after so many steps, and its first ones are looked at like those of a run."""
        self.begun, self.next, self.looking = step, step + 1, True

    def stepped(self, step: int, spent: float) -> None:
        """A step was made and looked at; `spent` is what watching has cost so far, in seconds."""
        now = time.perf_counter()
        last, ended, before = self.looked
        self.looked = step, now, spent
        cost = spent - before
        alone = max(now - ended - cost, 1e-9) / max(step - last, 1)  # seconds of a step without us
        since = step - self.begun
        affordable = cost / (BUDGET * alone) if since >= EARLY_STEPS else 0.0
        wanted = max(1.0, affordable / self.every, since / (LONG_RUN * self.every))
        every = self.every << ceil(log2(wanted)) if since >= OFTEN else max(1, self.every // 2)
        self.next = step + 1 if since < self.dense else (step // every + 1) * every
        self.looking = step + 1 >= self.next


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
