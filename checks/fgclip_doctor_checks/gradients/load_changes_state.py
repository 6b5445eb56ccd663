"""FGD115: a model that isn't what it was after it was saved and loaded."""

from collections.abc import Iterator

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check

SHOWN = 5


@check("FGD115", "load-changes-state", Severity.WARNING)
def load_changes_state(run: Run) -> Iterator[Finding]:
    """Saving the model and loading it into a copy doesn't give the same parameters and buffers back.

    Why: What a checkpoint changes, a resumed or exported model has lost: code around `state_dict` and
        `load_state_dict` that renames, leaves out, rounds or makes anew does so without a word.
    Evidence: A dry run (`gate -- COMMAND`): after the last step the model's state dict is written and read in memory
        and loaded into a copy without weights; then all parameters and buffers that it names are compared bit by bit.
        Also: the load fails, or the state dict has entries that weren't there at the first backward pass.
    Benign: Entries that are left out on purpose aren't compared. A model that is split over ranks, or too large for
        a copy, isn't judged.
    Fix: Register everything in `__init__`, whether it is used yet or not; let `load_state_dict` do the loading, and
        compare the model with a loaded copy in a test.
    Sources: pytorch.org/docs/stable/notes/serialization.html; lightly-ai/lightly#993.
    """
    state = run.watched.first.state
    if state is None:
        raise Missing("only a dry run compares a model with what it saves; `gate -- COMMAND` does it")
    if state.skipped and not (state.changed or state.failed or state.late):
        raise Missing(state.skipped)
    found = [
        ("other bits after a load", state.changed, "every bit as it was saved"),
        ("not in the state dict at the start", state.late, "the same keys throughout"),
        ("loading its own state dict fails", (state.failed,) if state.failed else (), "it loads"),
    ]
    for what, names, expected in found:
        if names:
            listed = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
            yield Finding(
                message=f"After {state.step} steps: {what}: {listed}. A run that is resumed from it isn't the same.",
                where="load_state_dict" if names == (state.failed,) else names[0],
                evidence=(
                    Evidence(
                        name=what,
                        value=len(names),
                        expected=expected,
                        why="its state dict, written, read and loaded into a copy without weights",
                        source=run.watched.first.path,
                        step=state.step,
                    ),
                ),
            )
