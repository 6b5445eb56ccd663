"""What is watched of a process: the model as it is called, its parameters by name, and who updates them."""

from __future__ import annotations

import gc
import os
import sys
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from inspect import CO_OPTIMIZED
from types import FrameType

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

SAMPLED = 1024  # values of a tensor that tell how far an update moved it
SCALARS = 64  # small tensors and plain attributes that are followed, at most
OWN = 3  # references to the copy of a frame's variables: its own, ours and an argument's; more if the training has it
BESIDE = "beside the model"  # a parameter of no module, whose name is not known either


class Gone(Exception):  # noqa: N818 - no error: the training has let go of what was watched
    """The model is no more."""


class Subject:
    """Keeps nothing alive: a model that the training drops is freed, though it was watched."""

    def __init__(
        self,
        models: Sequence[tuple[str, nn.Module]],
        optimizers: Iterable[Optimizer],
        beside: Mapping[str, nn.Parameter] | None = None,
    ) -> None:
        """`models`: the one whose calls are counted first, each with what its names begin with, as do `beside`, which
        are parameters of none of them. `optimizers`: the one whose steps are counted first.
        """
        self._models = [(prefix, weakref.ref(model)) for prefix, model in models]
        self.called = self._models[0][1]  # the module whose calls are counted,
        self.inside = weakref.ref(unwrapped(models[0][1]))  # and the same without what wraps it
        self._optimizers = [weakref.ref(one) for one in optimizers]
        self.several = len(self._optimizers) > 1
        self.masters = any(map(holds_masters, self.optimizers))
        names = {
            clean(f"{prefix}{name}"): parameter
            for prefix, model in models
            for name, parameter in model.named_parameters()
        }
        known = {id(one) for one in names.values()}
        loose = {id(one): name for name, one in (beside or {}).items()}
        for optimizer in self.optimizers:
            for parameter in held(optimizer):
                if id(parameter) not in known:
                    known.add(id(parameter))
                    names[loose.get(id(parameter), f"{BESIDE}.{len(names)}")] = parameter
        self._parameters = {name: weakref.ref(parameter) for name, parameter in names.items()}
        self.unreached = set(names)  # those that have not been seen with a gradient
        self.walk()

    @property
    def model(self) -> nn.Module:
        return _there(self.called)

    @property
    def inner(self) -> nn.Module:
        return _there(self.inside)

    def models(self) -> Iterator[tuple[str, nn.Module]]:
        """Each model that is still there without what wraps it, and what its names begin with."""
        for prefix, reference in self._models:
            if (model := reference()) is not None:
                yield prefix, unwrapped(model)

    @property
    def gone(self) -> bool:
        return self.called() is None

    def is_first(self, optimizer: Optimizer) -> bool:
        """Whether it is the one whose steps are counted."""
        return self._optimizers[0]() is optimizer

    @property
    def optimizers(self) -> list[Optimizer]:
        """Those that are still there; the first is the one whose steps are counted."""
        return [one for reference in self._optimizers if (one := reference()) is not None]

    def add(self, optimizer: Optimizer) -> None:
        if not any(one is optimizer for one in self.optimizers):
            self._optimizers.append(weakref.ref(optimizer))
            self.several = True

    @property
    def idle(self) -> bool:
        """Whether the optimizer whose steps are counted is no more: its stage of the training is over."""
        return self._optimizers[0]() is None

    def count_steps_of(self, optimizer: Optimizer) -> None:
        self._optimizers.sort(key=lambda reference: reference() is not optimizer)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        return {name: one for name, reference in self._parameters.items() if (one := reference()) is not None}

    def parameters_of(self, optimizer: Optimizer) -> dict[str, nn.Parameter]:
        """What an optimizer updates; of the first one also what none does."""
        every = self.optimizers
        if len(every) == 1:
            return self.parameters
        own = set(map(id, held(optimizer)))
        others = {id(one) for other in every if other is not optimizer for one in held(other)}
        first = every[0] is optimizer
        return {
            name: one for name, one in self.parameters.items() if id(one) in own or (first and id(one) not in others)
        }

    def walk(self) -> None:
        """Find the modules anew: some may have joined, and what was beside the first model may be gone."""
        self._modules = [
            (clean(f"{prefix}{name}").removesuffix("."), weakref.ref(module))
            for prefix, reference in self._models
            if (model := reference()) is not None
            for name, module in model.named_modules()
        ]

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Every module by its name, as of the last `walk`; that of a model itself may be empty."""
        for name, reference in self._modules:
            module = reference()
            if module is not None:
                yield name, module

    def buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Every buffer by its name, once."""
        seen: set[int] = set()
        for name, module in self.modules():
            for key, buffer in module._buffers.items():
                if buffer is not None and id(buffer) not in seen:
                    seen.add(id(buffer))
                    yield f"{name}.{key}".lstrip("."), buffer

    def banks(self) -> Iterator[tuple[str, Tensor]]:
        """Buffers that may be a bank: matrices of floats."""
        for name, buffer in self.buffers():
            if buffer.dim() == 2 and buffer.is_floating_point() and min(buffer.shape) > 1:
                yield name, buffer

    def attributes(self) -> Iterator[tuple[str, float]]:
        """Numbers and flags that modules keep as plain attributes: a bank's switch, a counter of forwards often are."""
        found = 0
        for name, module in self.modules():
            if name.count(".") > 1 or type(module).__module__.startswith("torch."):
                continue
            for key, value in vars(module).items():
                if isinstance(value, (bool, int, float)) and not key.startswith("_") and key != "training":
                    found += 1
                    if found > SCALARS:
                        return
                    yield f"{name}.{key}".strip("."), value

    @property
    def is_split(self) -> bool:
        """Whether each rank holds only its own part of the parameters: FSDP, ZeRO-3, tensor parallelism."""
        wrapped = any(type(one).__name__ == "FullyShardedDataParallel" for _, one in self.modules())
        signs = ("to_local", "ds_id", "tensor_model_parallel")  # of a DTensor, of DeepSpeed, of Megatron
        found = (getattr(one, sign, None) for one in self.parameters.values() for sign in signs)
        return wrapped or any(one is not None and one is not False for one in found)


def _there(reference: weakref.ref[nn.Module]) -> nn.Module:
    model = reference()
    if model is None:
        raise Gone("the model that was watched is no more")
    return model


# --- finding it -----------------------------------------------------------------------------------------------------


def found_for(optimizers: Sequence[Optimizer], frame: FrameType | None, *, together: bool = False) -> Subject | None:
    """The modules that hold what the largest of these optimizers updates, or with `together` all of them, the one with
    the most of it first; None where none does.

    `frame` is where the training stands: its variables name modules and parameters that are in no other module.
    """
    ordered = sorted(optimizers, key=lambda one: -numbers_of(one))
    leading = ordered if together else ordered[:1]
    missing = {id(one): one for optimizer in leading for one in held(optimizer)}
    chosen: list[nn.Module] = []
    for root in (root for optimizer in leading for root in roots_of(optimizer)):
        own = missing.keys() & set(map(id, root.parameters()))
        if own:
            chosen.append(root)
            missing = {key: one for key, one in missing.items() if key not in own}
    if not chosen:
        return None
    variables = _variables(frame) if frame is not None and (len(chosen) > 1 or missing) else {}
    models = [("" if len(chosen) == 1 else f"{variables.get(id(root), type(root).__name__)}.", root) for root in chosen]
    own = {id(one) for root in chosen for one in root.parameters()}
    involved = [one for one in ordered if not own.isdisjoint(map(id, held(one)))]
    beside = {variables[key]: one for key, one in missing.items() if key in variables}
    return Subject(models, involved, beside)


def _variables(frame: FrameType) -> dict[int, str]:
    """The names of a frame's variables, by what they stand for."""
    local = frame.f_locals
    found = {id(value): name for scope in (frame.f_globals, local) for name, value in scope.items()}
    if frame.f_code.co_flags & CO_OPTIMIZED and isinstance(local, dict) and sys.getrefcount(local) <= OWN:
        local.clear()  # a function's is a copy, which its frame keeps, and all that was a variable with it
    return found


def roots_of(optimizer: Optimizer) -> list[nn.Module]:
    """The outermost modules that hold parameters of an optimizer, those with the most first, then the largest."""
    wanted = set(map(id, held(optimizer)))
    modules = [one for one in gc.get_objects() if issubclass(type(one), nn.Module)]  # a proxy's class may be a property
    children = {id(child) for module in modules for child in module.children()}
    roots = [module for module in modules if id(module) not in children]
    shares = {id(root): len(wanted.intersection(map(id, root.parameters()))) for root in roots}
    return sorted(
        (root for root in roots if shares[id(root)]),
        key=lambda root: (-shares[id(root)], -sum(1 for _ in root.modules())),
    )


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside `DistributedDataParallel`, `torch.compile` and their like."""
    while True:
        inside = model._modules.get("module") or model._modules.get("_orig_mod")
        if inside is None or len(model._modules) != 1:
            return model
        model = inside


def stepping(optimizer: Optimizer) -> Optimizer:
    """The optimizer that makes the updates: accelerate wraps it."""
    while isinstance(inside := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inside
    return optimizer


# --- what is read off torch's objects -------------------------------------------------------------------------------


MADE_FOR: weakref.WeakKeyDictionary[Optimizer, list[list[weakref.ref[nn.Parameter]]]] = weakref.WeakKeyDictionary()


def remember(optimizer: Optimizer) -> None:
    """What it was made for, by group: a wrapper may put masters in their place, as those of DeepSpeed do."""
    MADE_FOR[optimizer] = [[weakref.ref(one) for one in group["params"]] for group in optimizer.param_groups]


def holds_masters(optimizer: Optimizer) -> bool:
    """Whether it updates none of the parameters that it was made for."""
    now = {id(one) for group in optimizer.param_groups for one in group["params"]}
    first = {
        id(one) for group in MADE_FOR.get(optimizer, ()) for reference in group if (one := reference()) is not None
    }
    return bool(first) and now.isdisjoint(first)


def groups_of(optimizer: Optimizer) -> list[list[nn.Parameter]]:
    """What it updates, by group; of masters, the parameters of the model that they stand for."""
    if not holds_masters(optimizer):
        return [list(group["params"]) for group in optimizer.param_groups]
    return [[one for reference in group if (one := reference()) is not None] for group in MADE_FOR[optimizer]]


def held(optimizer: Optimizer) -> list[nn.Parameter]:
    return [one for group in groups_of(optimizer) for one in group]


def numbers_of(optimizer: Optimizer) -> int:
    return sum(one.numel() for one in held(optimizer))


def clean(name: str) -> str:
    """A name without what wrappers put into it: `DistributedDataParallel`, `torch.compile`, FSDP."""
    if "mod" not in name and "wrapped" not in name:  # nearly always
        return name
    parts = [part for part in name.split(".") if part not in ("module", "_orig_mod", "_fsdp_wrapped_module")]
    return ".".join(part for part in parts if part != "_checkpoint_wrapped_module")


@cache
def part(name: str) -> str:
    """The part of the model that a parameter is of: its layer where it is in a stack of them, else its module."""
    words = name.split(".")
    for place, word in enumerate(words):
        if word.isdecimal():
            return ".".join(words[: place + 1])
    return ".".join(words[:-1]) or name


def dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def whole(parameter: Tensor) -> torch.Size:
    """The shape of all of it, of which DeepSpeed's third stage leaves nothing between two uses."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor; dense, for a norm."""
    if type(tensor) is not Tensor or tensor.requires_grad:
        tensor = tensor.detach()
    if type(tensor) is Tensor and not tensor.is_sparse:
        return tensor
    whole = getattr(tensor, "to_local", None)  # of a DTensor
    if whole is not None:
        tensor = whole()
    return tensor.coalesce().values() if tensor.is_sparse else tensor


def sample(parameter: Tensor) -> Tensor:
    """Up to `SAMPLED` values, evenly spread: a view where it can be one."""
    whole = local(parameter)
    count = whole.numel()
    if count <= SAMPLED:
        return whole if whole.dim() == 1 else whole.reshape(-1)
    if not whole.is_contiguous():
        return whole.reshape(-1)[:: count // SAMPLED][:SAMPLED]
    return torch.as_strided(whole, (SAMPLED,), (count // SAMPLED,), whole.storage_offset())


def is_at(view: Tensor, parameter: Tensor) -> bool:
    """Whether a sample that is a view still shows what a parameter holds."""
    here = parameter if type(parameter) is nn.Parameter else local(parameter)
    return view.data_ptr() == here.data_ptr()


def is_plain(value: object) -> bool:
    numbers = (int, float, str, bool, type(None))
    return isinstance(value, numbers) or (
        isinstance(value, (list, tuple)) and all(isinstance(v, numbers) for v in value)
    )


def rank_and_world() -> tuple[int, int]:
    """This process among those of the training: as torch.distributed has it, else as the launcher said."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    environment: Mapping[str, str] = os.environ
    return int(environment.get("RANK", "0")), int(environment.get("WORLD_SIZE", "1"))
