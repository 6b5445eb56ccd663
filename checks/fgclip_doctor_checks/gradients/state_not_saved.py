"""FGD114: what a model carries along, and doesn't save."""

from collections.abc import Iterator

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check


@check("FGD114", "state-not-saved", Severity.INFO)
def state_not_saved(run: Run) -> Iterator[Finding]:
    """The model counts or keeps something from step to step that its state dict doesn't hold, so a resume loses it.

    Why: What is a plain attribute or a non-persistent buffer starts anew in a new process: a counter of forwards that
        a warmup waits for, a moving average, a schedule inside of the model.
    Evidence: A dry run (`gate -- COMMAND`): whole numbers of modules that rise at most steps and never fall, and
        tensors that are written in place or carry rows over, which a load of the model's own state dict doesn't bring
        back.
    Benign: A counter that only names log lines or files; a cache that is filled again by itself. A bank is FGD203.
    Fix: Make it a buffer (`register_buffer`, persistent), or give the module `get_extra_state` and `set_extra_state`.
    Sources: pytorch.org/docs/stable/generated/torch.nn.Module.html (register_buffer, get_extra_state).
    """
    state = run.watched.first.state
    if state is None:
        raise Missing("only a dry run compares a model with what it saves; `gate -- COMMAND` does it")
    bank = {run.roles.get("bank.pointer"), run.roles.get("bank.full")}
    for one in state.unsaved:
        if one.bank or one.name in bank or not (one.counts or one.kind != "number"):
            continue
        shown = f"{one.first:g} to {one.last:g}" if one.first is not None and one.last is not None else "changed"
        yield Finding(
            message=f"{one.name} is carried from step to step ({shown}), and isn't in what the model saves: after a "
            "resume it starts over.",
            where=one.name,
            evidence=(
                Evidence(
                    name=one.name,
                    value=one.last if one.last is not None else f"{one.kind} {list(one.shape)}",
                    expected="in the state dict, if anything depends on it",
                    why="a copy of the model that loaded its state dict doesn't have it",
                    source=run.watched.first.path,
                    step=state.step,
                ),
            ),
        )
