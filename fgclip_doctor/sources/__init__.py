"""Artefacts -> `Run`. Nothing that is read here is ever executed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path

from fgclip_doctor.events import learning_rate
from fgclip_doctor.run import Checkpoint, Fact, Missing, Optimizer, Run, Tensor
from fgclip_doctor.sources import (
    annotation_file,
    mlflow_run,
    parquet_file,
    recording,
    tensorboard_events,
    text_log,
    trainer,
    wandb_run,
)
from fgclip_doctor.sources import checkpoint as checkpoints
from fgclip_doctor.sources import optimizer as optimizers
from fgclip_doctor.sources import roles as parts
from fgclip_doctor.sources.alignment import under_names_of
from fgclip_doctor.sources.checkpoint import Found
from fgclip_doctor.sources.facts import stated
from fgclip_doctor.sources.files import Unreadable, reason

# Files that say by their first bytes what they are, and hold no weights
LOGS = (
    (recording.is_recording, recording.read),
    (tensorboard_events.is_event_file, tensorboard_events.read),
    (wandb_run.is_history, wandb_run.read),
    (mlflow_run.is_database, mlflow_run.read),
    (parquet_file.is_parquet, parquet_file.read),
    (annotation_file.is_annotations, annotation_file.read),
)


def load(
    paths: Sequence[Path],
    base: Path | None = None,
    facts: Mapping[str, str] | None = None,
    roles: Mapping[str, str] | None = None,
    readers: dict[Path, object] | None = None,
    data: Path | None = None,
) -> Run:
    """Everything that `paths` tell, as one run: checkpoints, directories of several, files of weights, event files,
    logs and tables.

    `data` are the annotations that it is trained on. `base` is where the run started from; its tensors take the names
    that the run has for them. `facts` states what no artefact says, and wins over what one does; after it the newest
    checkpoint wins, then the run directory around it, then older checkpoints, and in each training_args.bin,
    trainer_state.json, scheduler.pt, config.json, in this order; then TensorBoard's event files, W&B's and MLflow's
    directories, then logs and tables, and at last the annotations.
    `roles` names parts of the model. Raises `Unreadable`, with a line that begins with the path, if nothing at all
    could be read from one of the paths; what can't be read of the rest is told in `Run.problems`. `readers` keeps what
    was read of recordings and event files for the next call, which goes on from there.
    """
    found: list[Found] = []
    around: list[Found] = []
    logs: list[Run] = []
    for path in paths:
        inner, outer, told_beside = _read_path(path, readers)
        found += [one for one in inner if one.path not in {known.path for known in found}]
        around += outer
        logs += told_beside
    logs += [annotation_file.read(data)] if data else []
    if all(one.order is not None for one in found):
        found.sort(key=lambda one: one.order or 0)
    _name_optimizers(found)
    told: list[Found | Run] = [*found[-1:], *around, *reversed(found[:-1]), *logs]  # by what wins
    run = Run(
        ", ".join(map(str, paths)),
        checkpoints=tuple(one.checkpoint() for one in found if one.tensors or one.optimizer or one.scheduler),
        base=None if base is None else _read_base(base),
        events=[event for log in logs for event in log.events],
        remarks=[remark for log in logs for remark in log.remarks],
        problems=list(dict.fromkeys(str(error) for one in told for error in one.problems)),
    )
    run.notes = [note for log in logs for note in log.notes]
    run.data = next((log.data for log in logs if log.data), None)
    watched = next((log for log in logs if log.recording), None)
    if watched:
        run.recording = watched.recording
        run.checkpoints = run.checkpoints or watched.checkpoints  # what was saved holds more than what was recorded
    for one in told:
        for fact in one.facts.values() if isinstance(one, Run) else one.facts:
            run.facts.setdefault(fact.name, fact)
        for name, series in one.series.items():
            if name not in run.series or len(series.steps) > len(run.series[name].steps):
                run.series[name] = series  # a log_history holds all that went before it
    for name, text in (facts or {}).items():
        run.facts[name] = stated(name, text)
    for fact in [*trainer.logged(run.series, run.facts), *trainer.derived(run.facts)]:
        run.facts.setdefault(fact.name, fact)
    last = run.checkpoints[-1] if run.checkpoints else None
    tensors = _with_rows(run.checkpoints) if run.recording else last.tensors if last else {}
    run.roles = parts.find(tensors, run.series, roles, last.optimizer if last else None)
    if told_by := parts.sigmoid(tensors, run.series):
        where = tensors[told_by].source if told_by in tensors else run.series[told_by].source
        run.facts.setdefault("loss_kind", Fact("loss_kind", "sigmoid", where))
    if last and (inferred := parts.remark(last.tensors, run.roles, roles)):
        run.notes.append(inferred)
    run.checkpoints = tuple(_at_peak(run, one) for one in run.checkpoints)
    if run.base and found:
        run.base = replace(run.base, tensors=under_names_of(run.base.tensors, found[-1].tensors))
        if found[-1].tensors and not _alike(run.base.tensors, found[-1].tensors):
            run.problems.append(str(Unreadable(run.base.path, f"has no tensor in common with {found[-1].path}")))
            run.base = None
    return run


def _with_rows(checkpoints: Sequence[Checkpoint]) -> Mapping[str, Tensor]:
    """The tensors of the last look of a recording, with those of an earlier one where only that saw the values."""
    if not checkpoints:
        return {}

    def seen(tensor: Tensor) -> bool:
        try:
            return tensor.statistics.count > 0
        except Missing:
            return False

    found = dict(checkpoints[-1].tensors)
    for name in [name for name, one in found.items() if len(one.shape) == 2 and not name.endswith("weight")]:
        looks = (one.tensors[name] for one in reversed(checkpoints) if name in one.tensors)
        found[name] = next((one for one in looks if seen(one)), found[name])
    return found


def _read_path(path: Path, readers: dict[Path, object] | None = None) -> tuple[list[Found], list[Found], list[Run]]:
    """The checkpoints under `path`, by step, the run directory around them, for its facts and its log, and what event
    files, logs and tables tell.

    Weights in a run directory that also holds checkpoints are those of its last step without an optimizer: they are
    read when they are asked for by themselves.
    """
    try:
        return _read_there(path, {} if readers is None else readers)
    except OSError as error:  # a folder that may not be listed, or listed but not entered
        raise Unreadable(error.filename or path, reason(error)) from None


def _read_there(path: Path, readers: dict[Path, object]) -> tuple[list[Found], list[Found], list[Run]]:
    is_directory = path.is_dir()
    inner = checkpoints.inner_checkpoints(path) if is_directory else []
    around = bool(inner) and checkpoints.is_checkpoint(path)
    if not is_directory:
        if mlflow_run.is_within_database(path):
            return [], [], [mlflow_run.read(path.parent, path.name)]
        for is_one, read in LOGS:
            if is_one(path):
                return [], [], [read(path)]
        if text_log.is_log(path):
            try:
                return [], [], [text_log.read(path)]
            except Unreadable:
                if path.suffix not in checkpoints.BARE:  # else it is what became of weights
                    raise
        return [checkpoints.read_file(path)], [], []
    if recording.is_recording(path):
        return [], [], [recording.read(path, readers)]
    found = [_read(one) for one in inner] if inner else [checkpoints.read_directory(path)]
    outer = [checkpoints.read_directory(path)] if around else []
    logs = list(_trackers(path))
    logs += [] if wandb_run.keeps(path) else text_log.beside(path)
    try:
        logs.insert(0, tensorboard_events.read(path, readers=readers))
    except Unreadable as error:
        found[0].problems.append(error.bare())
    if all(one.empty for one in [*found, *outer]) and not any(log.series or log.facts or log.remarks for log in logs):
        problems = [str(error) for one in found for error in one.problems]
        problems += [line for log in logs for line in log.problems]
        if problems:
            raise Unreadable(*problems[0].split(": ", 1))
        raise Unreadable(path, "holds no checkpoint, weights, trainer state or log")
    if not inner and found[0].empty:
        return [], found, logs
    return found, outer, logs


def _trackers(directory: Path) -> Iterator[Run]:
    """What other tools logged there, each into a place of its own, which may be one that can't be entered."""
    for beside in (wandb_run.beside, mlflow_run.beside, parquet_file.beside):
        try:
            yield from beside(directory)
        except OSError as error:
            yield Run(str(directory), problems=[str(Unreadable(error.filename or directory, reason(error)))])


def _read(path: Path) -> Found:
    """One checkpoint among several: that it can't be read is a problem of its own."""
    if path.is_dir():
        return checkpoints.read_directory(path)
    try:
        return checkpoints.read_file(path)
    except Unreadable as error:
        return Found(str(path), problems=[error.bare()])


def _read_base(path: Path) -> Checkpoint:
    """The weights that the run started from. Raises `Unreadable` if there are none."""
    inner, outer, _ = _read_path(path)
    with_weights = [one for one in [*inner, *outer] if one.tensors]
    if not with_weights:
        problems = [error for one in inner for error in one.problems]
        raise problems[0] if problems else Unreadable(path, "holds no weights to compare with")
    return with_weights[-1].checkpoint()


def _name_optimizers(found: Iterable[Found]) -> None:
    """Name the parameters of every optimizer: the newest one with the help of the weights before it, and the others
    like it where they hold the same."""
    named: list[tuple[Found, Optimizer]] = []
    candidates = [one for one in found if one.tensors]
    for place, one in reversed(list(enumerate(candidates))):
        if one.optimizer is None:
            continue
        alike = next((optimizer for other, optimizer in named if other.moments == one.moments), None)
        if alike and alike.indices == one.optimizer.indices:
            one.optimizer = replace(one.optimizer, names=alike.names, naming=alike.naming)
            continue
        before = next((other for other in reversed(candidates[:place]) if _older(other, one)), None)
        one.optimizer = optimizers.named(one.optimizer, one.moments, one.weights, before.tensors if before else None)
        named.append((one, one.optimizer))
        if one.optimizer.naming == optimizers.NO_FIT:
            one.problems.append(Unreadable(one.optimizer.source.path, "does not fit the weights beside it"))


def _at_peak(run: Run, checkpoint: Checkpoint) -> Checkpoint:
    """With the peak learning rates in its optimizer, as the run logged them until then."""
    logged = learning_rate(run)
    if checkpoint.optimizer is None or logged is None:
        return checkpoint
    until = logged.values[logged.steps <= checkpoint.step] if checkpoint.step is not None else logged.values
    peak = float(until[until < inf].max(initial=0.0))
    return replace(checkpoint, optimizer=optimizers.at_peak(checkpoint.optimizer, peak))


def _alike(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether any tensor of the one can be compared with one of the other."""
    return any(name in other and tensor.shape == other[name].shape for name, tensor in one.items())


def _older(one: Found, other: Found) -> bool:
    return one.order is not None and other.order is not None and one.order < other.order
