"""FGD112."""

import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check
from fgclip_doctor.run import Checkpoint, Tensor

NO_PARAMETER = re.compile(r"running_(?:mean|var)$|num_batches_tracked$|position_ids$")


@check("FGD112", "freeze-list-not-kept", Severity.WARNING)
def freeze_list_not_kept(run: Run) -> Iterator[Finding]:
    """What was declared to be frozen changed, or the declaration matches nothing.

    Why: names change between versions and wrappers, later code sets requires_grad again, and a frozen parameter whose
    gradient is zero and not None is still moved by weight decay.
    Evidence: the patterns of the plan, the names in the checkpoint, and the bytes of what they match in the base or in
    an earlier checkpoint of the same type.
    Benign: running statistics of norms, which are no parameters; a checkpoint with a part of the model only.
    Fix: print how many parameters each pattern matches, freeze before the optimizer is made, and give the optimizer
    only what is trainable.
    Sources: mlfoundations/open_clip#253 (partial freezing took the wrong layers); ultralytics/yolov5#1213.
    """
    if not run.plan.frozen:
        raise Missing("nothing is declared to be frozen ([tool.fgclip-doctor.plan])")
    tensors = run.whole_model
    before = run.base or next((one for one in run.checkpoints[:-1] if one.tensors), None)
    for pattern in run.plan.frozen:
        names = [one for one in tensors if fnmatchcase(one, pattern) or one.startswith(f"{pattern}.")]
        if not names:
            evidence = Evidence(name="names matched", value=0, expected="1 or more", source=run.plan.source)
            message = f"Nothing in the checkpoint is called {pattern}, which the plan declares to be frozen."
            yield Finding(message=message, where=pattern, evidence=(evidence,))
        elif before is not None and (moved := _moved(tensors, names, before)):
            evidence = Evidence(
                name="tensors that changed",
                value=len(moved),
                expected=0,
                why=f"of {len(names)} that {pattern} matches, compared with {before.path}",
                source=str(tensors[moved[0]].source),
                step=run.checkpoint.step,
            )
            message = f"{moved[0]} is declared to be frozen, and it changed since {before.path}"
            more = f", as did {len(moved) - 1} more" if len(moved) > 1 else ""
            yield Finding(message=f"{message}{more}.", where=pattern, evidence=(evidence,))


def _moved(tensors: Mapping[str, Tensor], names: list[str], before: Checkpoint) -> list[str]:
    """What is not the same as before, where the two can be compared."""
    return [
        name
        for name in names
        if (old := before.tensors.get(name)) is not None
        and not NO_PARAMETER.search(name)
        and (old.dtype, old.shape) == (tensors[name].dtype, tensors[name].shape)
        and old.digest != tensors[name].digest
    ]
