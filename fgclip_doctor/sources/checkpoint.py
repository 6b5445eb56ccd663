"""A checkpoint -> tensors, optimizer, scheduler and facts: a directory in Hugging Face's layout, or one bare file.

Each piece is read by itself. What is missing is missing, what can't be read becomes a line in `problems`, and the rest
counts. Nothing is executed.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fgclip_doctor.run import Checkpoint, Fact, Optimizer, Series, Source, Tensor
from fgclip_doctor.sources import (
    deepspeed,
    distributed_checkpoint,
    roles,
    safetensors_file,
    torch_file,
    torchscript,
    trainer,
)
from fgclip_doctor.sources import optimizer as optimizers
from fgclip_doctor.sources.alignment import under_names_of
from fgclip_doctor.sources.facts import valid
from fgclip_doctor.sources.files import Unreadable, inside, read_json, reason
from fgclip_doctor.sources.naming import Weights
from fgclip_doctor.sources.pickles import Stub

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # each may be sharded, with an index beside it
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")  # PEFT's
OPTIMIZER_FILES = ("optimizer.pt", "optimizer.bin")  # the Trainer's, accelerate's
PIECES = ("config.json", "trainer_state.json", "scheduler.pt", "scheduler.bin", "training_args.bin", *OPTIMIZER_FILES)
BARE = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
NOT_WEIGHTS = re.compile(r"optimizer|scheduler|training_args|rng_state|scaler|random_states|sampler")
STEP = re.compile(
    r"(?:^|[-_.])(?:checkpoint|ckpt|step|steps|global_step|iter|iteration|updates?)[-_=]?(\d{1,15})(?:\D|$)"
)
WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "model_state", "weights", "params")
OPTIMIZERS = ("optimizer", "optimizer_state_dict", "optim", "optimizer_states", "opt")
SCHEDULERS = ("scheduler", "lr_scheduler", "scheduler_state_dict", "lr_schedulers")
ARGUMENTS = ("args", "hyper_parameters", "hparams", "config", "cfg", "opt_args")
EPOCHS = "num_epochs"
STEPS = (
    "global_step",
    "global_steps",
    "step",
    "steps",
    "iteration",
    "iter",
    "it",
    "n_iter",
    "update",
    "num_updates",
    "t",
)
COPIES = re.compile(r"ema|averag|shadow|swa|teacher|target|momentum|best|init|pretrained|grad", re.IGNORECASE)
BESIDE = re.compile(r"crit|loss|objective|head|proj|bank|queue|memory|scale|temp", re.IGNORECASE)  # what a loss has
PREFIXES = ("module.", "_orig_mod.", "model.", "state_dict.")
MAX_SHARDS = 2_000  # each may cost a line


@dataclass
class Found:
    """What one checkpoint holds, before its optimizer's indices are named."""

    path: str
    step: int | None = None
    trainer_step: int | None = None
    tensors: dict[str, Tensor] = field(default_factory=dict)
    defined_order: bool = False
    transformers: bool = False
    optimizer: Optimizer | None = None
    moments: dict[int, tuple[int, ...]] = field(default_factory=dict)
    scheduler: Mapping[str, Any] | None = None
    facts: list[Fact] = field(default_factory=list)  # the first that states something wins
    series: dict[str, Series] = field(default_factory=dict)
    problems: list[Unreadable] = field(default_factory=list)
    partial: str = ""  # why the tensors aren't the whole model, if they aren't

    @property
    def weights(self) -> Weights:
        bank = {name for role, name in roles.find(self.tensors, {}).items() if role.startswith("bank.")}
        return Weights(self.tensors, self.defined_order, self.transformers, frozenset(bank))

    @property
    def empty(self) -> bool:
        return not (self.tensors or self.optimizer or self.scheduler or self.facts or self.series)

    @property
    def order(self) -> int | None:
        """The step: the trainer's own, else that of the name, else the optimizer's."""
        applied = self.optimizer.step if self.optimizer else None
        if self.trainer_step is None and self.step is not None and applied is not None and applied > self.step:
            return applied  # so the number in the name counts something slower, such as epochs
        return next((step for step in (self.trainer_step, self.step, applied) if step is not None), None)

    def checkpoint(self) -> Checkpoint:
        facts = {fact.name: fact for fact in reversed(self.facts)}
        return Checkpoint(
            self.path, self.order, self.tensors, self.optimizer, self.scheduler, self.trainer_step, self.partial, facts
        )


def is_checkpoint(directory: Path) -> bool:
    """True if `directory` holds a piece that a trainer writes."""
    names = {entry.name for entry in directory.iterdir()}
    whole = {*PIECES, *WEIGHTS, *(f"{weights}.index.json" for weights in WEIGHTS), *ADAPTERS}
    if _step(directory.name) is not None and _of_weights(names):
        return True
    return bool(names & {*whole, distributed_checkpoint.METADATA}) or deepspeed.is_checkpoint(directory)


def _of_weights(names: Iterable[str]) -> list[str]:
    """The files that hold weights, by their names."""
    kept = (name for name in names if Path(name.removesuffix(".tar")).suffix in BARE)  # model_best.pth.tar
    return sorted(name for name in kept if not NOT_WEIGHTS.search(name))


def _may_be_checkpoint(entry: Path) -> bool:
    """True for a folder with a checkpoint, or one that may not be looked into, which is then worth a line."""
    try:
        return entry.is_dir() and is_checkpoint(entry)
    except PermissionError:
        return True


def inner_checkpoints(directory: Path) -> list[Path]:
    """The checkpoints that a run directory holds, by step: folders, else bare files of weights.

    They may lie in a folder called checkpoints (open_clip, Lightning). What DeepSpeed left in a checkpoint of another
    trainer is a part of that.
    """
    entries = sorted(directory.iterdir(), key=lambda entry: (_count(entry.name), entry.name))
    folders = [entry for entry in entries if _step(entry.name) is not None and _may_be_checkpoint(entry)]
    whole = is_checkpoint(directory)
    if folders:
        return [folder for folder in folders if not (whole and deepspeed.STEP_FOLDER.fullmatch(folder.name))]
    bare = [directory / name for name in _of_weights(entry.name for entry in entries)]
    if whole and not (bare and _settings_alone(directory)):
        return []
    if not bare and (directory / "checkpoints").is_dir():
        return inner_checkpoints(directory / "checkpoints") or [directory / "checkpoints"]
    return sorted(bare, key=lambda entry: (_count(entry.name), entry.name))


def _settings_alone(directory: Path) -> bool:
    """Whether of all pieces that a trainer writes only settings lie there, as they may beside files of weights."""
    names = {entry.name for entry in directory.iterdir()}
    return not names & {*PIECES[1:], *WEIGHTS, *(f"{weights}.index.json" for weights in WEIGHTS), *ADAPTERS} and not (
        deepspeed.is_checkpoint(directory) or distributed_checkpoint.METADATA in names
    )


def _count(name: str) -> int:
    """The step in a name, or what else is counted there: `epoch_3.pt`."""
    numbers = re.findall(r"\d{1,15}", name)
    return _step(name) or (int(numbers[-1]) if numbers else 0)


def _step(name: str) -> int | None:
    match = STEP.search(name)
    return int(match[1]) if match else None


# --- a directory ---------------------------------------------------------------------------------------------------


def read_directory(directory: Path) -> Found:
    """All pieces of the checkpoint in `directory`, which stands in the report under the path as given.

    A piece that can't be read is worth a line, not the end.
    """
    found = Found(str(directory), _step(directory.name))
    try:
        there = {entry.name for entry in directory.iterdir()}
    except OSError as error:
        found.problems.append(Unreadable(directory, reason(error)))
        return found

    def attempt(read: Callable[[Found, Path], None], name: str) -> None:
        if not name or name in there:  # the directory itself, or something in it
            try:
                read(found, directory / name)
            except Unreadable as error:
                found.problems.append(error.bare())
            except OSError as error:  # a folder in it that may not be listed
                found.problems.append(Unreadable(directory / name, reason(error)))

    for name, read in READERS.items():
        attempt(read, name)
    _ranks(found, there)
    for name in WEIGHTS:
        if not found.tensors:
            attempt(_shards, f"{name}.index.json")
        if not found.tensors:
            attempt(_weights, name)
    for name in ADAPTERS:
        if not found.tensors:
            attempt(_adapters, name)
    own = _of_weights(there)
    if not found.tensors and len(own) == 1 and found.step is not None:  # a checkpoint of some trainer's own
        attempt(_weights, own[0])
    for name in OPTIMIZER_FILES:
        if not found.optimizer:
            attempt(_optimizer, name)
    for name in ("", *sorted(there)):
        if distributed_checkpoint.is_one(directory / name):
            attempt(_sharded, name)
    attempt(_deepspeed, "")
    return found


def _json(path: Path) -> Mapping[str, Any]:
    content = read_json(path)
    if not isinstance(content, Mapping):
        raise Unreadable(path, "not a JSON object")
    return content


def _arguments(found: Found, path: Path) -> None:
    arguments = _plain(torch_file.read(path))
    planned = _number(arguments.get("max_steps"))  # it overrides the epochs, whose default stays in the arguments
    found.facts.extend(fact for fact in trainer.facts(arguments, str(path)) if not (planned and fact.name == EPOCHS))


def _plain(content: object) -> dict[str, Any]:
    """The fields of a dict, or of the object that a stub stands for; an enum among them as its value."""
    state = content.state if isinstance(content, Stub) else content
    if isinstance(content, Stub) and not isinstance(state, Mapping):  # a subclass of dict, as Lightning's
        pairs = [item for item in content.items if isinstance(item, tuple) and len(item) == 2]
        state = {key: value for key, value in pairs if isinstance(key, str)}
    if not isinstance(state, Mapping):
        return {}
    return {str(key): _enum(value) for key, value in state.items()}


def _enum(value: object) -> object:
    """`SchedulerType.COSINE` is pickled as a call of its class with its value."""
    if isinstance(value, Stub) and len(value.args) == 1 and isinstance(value.args[0], (str, int, float)):
        return value.args[0]
    return value


def _trainer_state(found: Found, path: Path) -> None:
    state = _json(path)
    known = {key: state.get(key) for key in ("global_step", "max_steps", "num_train_epochs")}
    found.facts.extend(trainer.facts(known, str(path)))
    batch = valid("micro_batch", state.get("train_batch_size"))
    if batch is not None:  # here that of one process; DeepSpeed calls the whole batch so
        source = Source(str(path), "train_batch_size")
        found.facts += [Fact("micro_batch", batch, source), Fact("batch_in_use", batch, source)]
    found.trainer_step = _number(state.get("global_step"))
    epoch = valid("num_epochs", state.get("epoch"))
    if found.trainer_step and epoch is not None:
        found.facts.append(Fact("steps_per_epoch", found.trainer_step / epoch, Source(str(path), "epoch")))
    found.series = trainer.series(state.get("log_history"), str(path))


def _scheduler(found: Found, path: Path) -> None:
    content = torch_file.read(path)
    if isinstance(content, Mapping):
        found.scheduler = {str(key): value for key, value in content.items()}
        found.facts.extend(trainer.scheduler_facts(found.scheduler, str(path)))


def _config(found: Found, path: Path) -> None:
    config = _json(path)
    found.facts.extend(trainer.config_facts(config, str(path)))
    found.transformers = "transformers_version" in config and "clip" in str(config.get("model_type", "")).lower()


def _adapter_config(found: Found, path: Path) -> None:
    config = _json(path)
    for name, key in (("adapter_rank", "r"), ("adapter_alpha", "lora_alpha"), ("adapter_targets", "target_modules")):
        value = config.get(key)
        value = valid(name, ", ".join(sorted(map(str, value))) if isinstance(value, list) else value)
        if value is not None:
            found.facts.append(Fact(name, value, Source(str(path), key)))


READERS: dict[str, Callable[[Found, Path], None]] = {  # in the order in which the first that states a fact wins
    "training_args.bin": _arguments,
    "trainer_state.json": _trainer_state,
    "scheduler.pt": _scheduler,
    "scheduler.bin": _scheduler,
    "config.json": _config,
    "adapter_config.json": _adapter_config,
}


def _ranks(found: Found, names: Iterable[str]) -> None:
    """The Trainer saves the random state of every rank, as rng_state.pth or rng_state_N.pth."""
    ranks = sum(re.fullmatch(r"rng_state(_\d+)?\.pth", name) is not None for name in names)
    if ranks:
        found.facts.append(Fact("world_size", ranks, Source(found.path, "rng_state*.pth")))


def _optimizer(found: Found, path: Path) -> None:
    payload = torch_file.read(path)
    found.optimizer = optimizers.read(payload, Source(str(path)))
    found.moments = optimizers.shapes(payload)


def _weights(found: Found, path: Path) -> None:
    _keep(found, _tensors(path))


def _tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return safetensors_file.read(path)
    return _state_dict(torch_file.read(path), path)


def _adapters(found: Found, path: Path) -> None:
    _weights(found, path)
    found.partial = f"{path.name} holds adapters alone, without the model that they adapt"


def _sharded(found: Found, path: Path) -> None:
    """A directory of torch.distributed.checkpoint: the model, the optimizer or both, under whatever name."""
    content, problems = distributed_checkpoint.read(path)
    found.problems += problems
    known = {*WRAPPERS, *OPTIMIZERS, *SCHEDULERS, *ARGUMENTS}
    while len(content) == 1 and isinstance(inner := next(iter(content.values())), dict) and not known & set(content):
        content = inner  # of an object that is called "app", say
    if (tensors := _weights_in(content)) is not None:
        _keep(found, {name: _renamed(value, name) for name, value in tensors.items() if isinstance(value, Tensor)})
        found.partial = "some shards of the checkpoint can't be read" if problems else ""
    _trainer_pieces(found, {"optimizer": content} if optimizers.is_optimizer(content) else content, path)


def _deepspeed(found: Found, path: Path) -> None:
    """DeepSpeed's files, alone or in a checkpoint of the Trainer, whose weights are those that the model computes with.

    What the optimizer keeps in 32 bits is what is trained, so that counts.
    """
    place = deepspeed.place(path)
    if place is None:
        return
    saved = deepspeed.read(place)
    found.problems += saved.problems
    asked = [replace(fact, name="clipping_asked") for fact in found.facts if fact.name == "max_grad_norm"]
    found.facts[:0] = [*saved.facts, *asked]
    if found.tensors:
        found.tensors |= {
            name: _renamed(one, name) for name, one in under_names_of(saved.masters, found.tensors).items()
        }
    else:
        everything = {**saved.tensors, **saved.masters}
        _keep(found, {name: _renamed(tensor, name) for name, tensor in everything.items()})
        found.partial = saved.partial
    _trainer_pieces(found, saved.content, place)
    found.optimizer = saved.optimizer or found.optimizer


def _shards(found: Found, path: Path) -> None:
    """The shards that an index names; those that are missing or lie elsewhere cost a line each."""
    mapping = _json(path).get("weight_map")
    if not isinstance(mapping, Mapping) or not all(isinstance(shard, str) for shard in mapping.values()):
        raise Unreadable(path, "no weight_map from tensors to shards")
    shards = dict.fromkeys(mapping.values())
    if len(shards) > MAX_SHARDS:
        raise Unreadable(path, f"names {len(shards):,} shards; the limit is {MAX_SHARDS:,}")
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        try:
            tensors.update(_tensors(inside(path.parent, shard)))
        except Unreadable as error:
            found.problems.append(error.bare())
    _keep(found, tensors)


def _keep(found: Found, tensors: Mapping[str, Tensor]) -> None:
    found.tensors = _unwrapped(tensors)
    found.defined_order = not _sorted_by_name(found.tensors)


def _sorted_by_name(tensors: Mapping[str, Tensor]) -> bool:
    """True if the order of the names is the alphabet's within each dtype, as safetensors writes it: it says nothing."""
    by_dtype: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        by_dtype.setdefault(tensor.dtype, []).append(name)
    return all(names == sorted(names) for names in by_dtype.values())


def _unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefixes that wrappers (DistributedDataParallel, torch.compile, Lightning) put before every name."""
    names = {name: name for name in tensors}
    stripped = True
    while stripped and names:
        stripped = False
        for prefix in PREFIXES:
            if all(name.startswith(prefix) for name in names.values()):
                names = {original: name.removeprefix(prefix) for original, name in names.items()}
                stripped = True
    return {name: _renamed(tensors[original], name) for original, name in names.items()}


def _renamed(tensor: Tensor, name: str) -> Tensor:
    """The same tensor under another name; its source keeps the one in the file."""
    if tensor.name == name:
        return tensor
    renamed = copy.copy(tensor)
    renamed.name = name
    return renamed


# --- a bare file ---------------------------------------------------------------------------------------------------


def read_file(path: Path) -> Found:
    """One file: weights, bare or wrapped by a trainer with its optimizer and arguments, or one piece of a checkpoint.

    Raises `Unreadable`.
    """
    found = Found(str(path), _step(path.name))
    if path.name in READERS:
        READERS[path.name](found, path)
        return found
    if path.suffix == ".safetensors":
        _keep(found, safetensors_file.read(path))
        return found
    content = torch_file.read(path)
    if optimizers.is_optimizer(content):
        found.optimizer, found.moments = optimizers.read(content, Source(str(path))), optimizers.shapes(content)
        return found
    _keep(found, _state_dict(content, path))
    if isinstance(content, Mapping) and not _is_state_dict(content):
        _trainer_pieces(found, content, path)
    return found


def _state_dict(content: object, path: Path) -> dict[str, Tensor]:
    """The tensors by name, from under the usual wrappers. Raises `Unreadable` if there are none."""
    if isinstance(content, Stub) and torchscript.is_module(content):
        content = torchscript.state_dict(content)
    tensors = _weights_in(content)
    if tensors is None:
        raise Unreadable(path, "holds no state dict of weights")
    return {name: _renamed(value, name) for name, value in tensors.items() if isinstance(value, Tensor)}


def _weights_in(content: object) -> Mapping[str, Any] | None:
    """The state dict in `content`: under the usual wrappers with what the loss has beside it, else by what it holds."""
    around: Mapping[str, Any] = {}
    whole = content
    for _ in range(3):
        if _is_state_dict(content):
            beside = {key: value for key, value in around.items() if isinstance(key, str) and BESIDE.search(key)}
            return {**content, **_apart(beside)} if isinstance(content, Mapping) else None
        around = content if isinstance(content, Mapping) else {}
        content = next((inner for key in WRAPPERS if isinstance(inner := around.get(key), Mapping)), None)
    parts = _apart(whole if isinstance(whole, Mapping) else {})
    matrices = [one for one in parts.values() if len(one.shape) > 1 and "float" in one.dtype]
    if not matrices:
        return None
    first = {name.partition(".")[0] for name in parts}
    return parts if len(first) > 1 else {name.partition(".")[2] or name: one for name, one in parts.items()}


def _apart(content: Mapping[Any, Any], deep: int = 2) -> dict[str, Tensor]:
    """The tensors of the state dicts that lie side by side, under any names, each with its own before its tensors'.

    Without optimizers, random states and copies of weights.
    """
    found: dict[str, Tensor] = {}
    for key, value in content.items():
        if not isinstance(key, str) or COPIES.search(key) or optimizers.is_optimizer(value):
            continue
        if isinstance(value, Tensor) and deep == 2 and "float" in value.dtype and BESIDE.search(key):
            found[key] = value
        elif _is_state_dict(value) and any("float" in one.dtype for one in value.values() if isinstance(one, Tensor)):
            found |= {f"{key}.{name}": one for name, one in value.items() if isinstance(one, Tensor)}
        elif isinstance(value, Mapping) and deep:
            found |= {f"{key}.{name}": one for name, one in _apart(value, deep - 1).items()}
    return found


def _is_state_dict(content: object) -> bool:
    """Names to tensors, most of them; a state dict may hold some other state too."""
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        return False
    tensors = sum(isinstance(value, Tensor) for value in content.values())
    return tensors > len(content) / 2


def _trainer_pieces(found: Found, content: Mapping[str, Any], path: Path) -> None:
    """Optimizer, scheduler, step count and arguments from beside the weights."""
    for key in (*OPTIMIZERS, *(str(key) for key, value in content.items() if optimizers.is_optimizer(_first(value)))):
        payload = _first(content.get(key))
        if isinstance(payload, list) and payload and optimizers.is_optimizer(payload[0]):
            why = f"holds {len(payload)} optimizers under {key}, which are not read"
            found.problems.append(Unreadable(path, why))
        if optimizers.is_optimizer(payload):
            found.optimizer = optimizers.read(payload, Source(str(path), key))
            found.moments = optimizers.shapes(payload)
            break
    for key in ARGUMENTS:
        found.facts.extend(trainer.facts(_plain(content.get(key)), f"{path}: {key}"))
    for key in (*SCHEDULERS, *(str(key) for key, value in content.items() if _is_scheduler(value))):
        scheduler = _first(content.get(key))
        if isinstance(scheduler, Mapping):
            found.scheduler = {str(name): value for name, value in scheduler.items()}
            found.facts.extend(trainer.scheduler_facts(found.scheduler, f"{path}: {key}"))
            break
    _precision_and_loops(found, content, path)
    for key in STEPS if found.trainer_step is None else ():  # the trainer's own state comes first
        step = _number(content.get(key))
        if step is not None and not (key != STEPS[0] and "epoch" in content and step < _applied(found)):
            found.trainer_step = step
            found.facts.append(Fact("global_step", step, Source(str(path), key)))
            break
    epochs = _number(content.get("epoch"))
    if epochs is not None and valid("epochs_done", epochs) is not None:
        found.facts.append(Fact("epochs_done", epochs, Source(str(path), "epoch")))
        if found.step is not None and abs(found.step - epochs) <= 1 < abs(_applied(found) - epochs) and _applied(found):
            found.step = None  # the number in the name counts epochs too, and the optimizer counts steps


def _is_scheduler(value: object) -> bool:
    return isinstance(value, Mapping) and {"last_epoch", "_step_count"} <= value.keys()


def _applied(found: Found) -> int:
    """The optimizer's own count: a `step` under it, beside an epoch, is counted within the epoch."""
    return (found.optimizer.step if found.optimizer else None) or 0


def _precision_and_loops(found: Found, content: Mapping[str, Any], path: Path) -> None:
    """What Lightning and open_clip save of a gradient scaler, and Lightning of the batches that it has counted."""
    for key in ("scaler", "MixedPrecision", "native_amp_scaling_state"):
        scaler = content.get(key)
        if isinstance(scaler, Mapping) and "scale" in scaler:  # one that is switched off has an empty state
            found.facts.append(Fact("fp16", True, Source(str(path), key)))
    place: object = content
    for key in ("loops", "fit_loop", "epoch_loop.batch_progress", "total", "completed"):
        place = place.get(key) if isinstance(place, Mapping) else None
    batches, steps = _number(place), _number(content.get("global_step"))
    if batches and steps and batches % steps == 0 and valid("accumulation", batches // steps) is not None:
        # otherwise the last update of an epoch took fewer
        found.facts.append(Fact("accumulation", batches // steps, Source(str(path), "batches per global_step")))


def _first(value: object) -> object:
    """Lightning keeps a list of optimizers; nearly always of one."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _number(value: object) -> int | None:
    if isinstance(value, Tensor) and value.size == 1:
        value = value.item()
    whole = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1 << 53
    return int(value) if whole and isinstance(value, (int, float)) else None
