"""FGD110."""

from collections.abc import Iterator

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, bank, check
from fgclip_doctor.parts import planned_frozen
from fgclip_doctor.recorded import Rank

ROOT = "the model"  # as a recording calls what has no name of its own


@check("FGD110", "eval-mode-in-training", Severity.WARNING)
def eval_mode_in_training(run: Run, *, share: float = 0.5, looks: int = 3) -> Iterator[Finding]:
    """The model, or a part of it that is trained, is in evaluation mode during the training.

    Why: from_pretrained returns a model in evaluation mode, and an evaluation may leave it there. Dropout is off, and
    code that asks for self.training, as that of memory banks does, never runs.
    Evidence: a recording, which saw the modes: of a module in evaluation mode in `share` of the steps that were looked
    at, or in each of the last `looks` of them, the outermost one. From a checkpoint only where the model counts its own
    forwards, as it does in training mode: a count of 0 after steps with a memory bank that is configured. Dropout and
    batch norms leave no trace that would tell.
    Benign: a tower that is frozen; norms, which are often kept in evaluation mode on purpose; an evaluation in between.
    Fix: call model.train() before the loop, and after every evaluation.
    Sources: transformers, PreTrainedModel.from_pretrained ("set in evaluation mode by default"); torch.nn.Module.train.
    """
    if run.recording is None:
        yield from _by_counter(run)
        return
    rank = run.watched.first
    logged = run.series.get("learning_rate")
    looked = len(logged.steps) if logged is not None else max(rank.evaluating.values(), default=0)
    often = {name for name, count in rank.evaluating.items() if count >= share * looked and count}
    often |= {name for name, (_, count) in rank.evaluating_since.items() if count >= looks}
    for name in sorted(often):
        if any(name != other and (other == ROOT or name.startswith(f"{other}.")) for other in often):
            continue
        inside = _trained(run, rank, name, often)
        if inside:
            yield _finding(run, rank, name, inside, looked)


def _trained(run: Run, rank: Rank, module: str, evaluating: set[str]) -> list[str]:
    """The trained parameters in a module whose own modules are in evaluation mode, if any of them is a matrix."""
    inside = [
        one
        for one in rank.parameters.values()
        if (module == ROOT or one.name.startswith(f"{module}."))
        and (one.name.rpartition(".")[0] or ROOT) in evaluating  # a parent may stay so when its children train again
        and one.trainable
        and one.group is not None
        and not planned_frozen(run, one.name)
    ]
    return [one.name for one in inside] if any(len(one.shape) > 1 for one in inside) else []


def _finding(run: Run, rank: Rank, name: str, inside: list[str], looked: int) -> Finding:
    count = rank.evaluating[name]
    since, lately = rank.evaluating_since.get(name, (0, 0))
    left = f" (at all {lately} since step {since})" if 0 < lately < looked else ""
    return Finding(
        message=f"In {count} of {looked} steps that were looked at{left}, {name} was in evaluation mode, while its "
        f"{len(inside)} parameters were trained.",
        where=name,
        evidence=(
            Evidence(
                name="steps in evaluation mode",
                value=count,
                expected=0,
                why=f"of {looked} that were looked at, with gradients on",
                source=rank.path,
                step=run.step,
            ),
        ),
    )


def _by_counter(run: Run) -> Iterator[Finding]:
    count, enabled = bank.forwards(run), run.facts.get("bank_enabled")
    if count is None or enabled is None or not enabled.value or run.step < 2:
        raise Missing("the run was not recorded, and the model keeps no count of its forwards in training mode")
    if count == 0:
        counter = run.role("clock.forwards")
        evidence = Evidence(
            name="forwards in training mode",
            value=0,
            expected=f"{run.step} or more",
            why=f"{run.step} optimizer steps were made; the memory bank, which goes by it, is configured",
            source=str(counter.source),
            step=run.step,
        )
        message = (
            f"{counter.name} is 0 after {run.step} steps: the model has never counted a forward in training mode, so "
            "it was in evaluation mode, or calls nothing of what counts."
        )
        yield Finding(message=message, where=counter.name, evidence=(evidence,))
