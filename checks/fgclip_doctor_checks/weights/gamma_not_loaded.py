"""FGD709."""

from collections.abc import Iterator

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check
from fgclip_doctor.parts import FLOATS
from fgclip_doctor.provenance import drift
from fgclip_doctor.run import Tensor

RENAMED = {"gamma": "weight", "beta": "bias"}  # by transformers before 4.48, wherever they stand in a name
FEWEST = 4  # values of a vector that are enough to see that they are all one


@check("FGD709", "gamma-not-loaded", Severity.ERROR)
def gamma_not_loaded(run: Run) -> Iterator[Finding]:
    """Parameters called gamma or beta were not loaded, and are at their start: transformers had renamed them.

    Why: before 4.48, from_pretrained turned gamma into weight and beta into bias in every name that it read. A layer
    scale of the model's own then has no saved value: it starts at 1e-5 or 1, and a tower that was trained with others
    gives other features.
    Evidence: with --base, parameters with such a name that are all one value where those of the base are not, and
    further from them than the learning rates can have moved them; in a log, transformers' list of newly initialized
    ones beside its list of weights of the same modules that it did not use.
    Benign: a layer scale that the base does not have; values that are as in the base, in any version.
    Fix: compare one value with the file's, and go to transformers 4.48 or newer; else name the parameters otherwise, or
    load the state dict once more with model.load_state_dict after from_pretrained.
    Sources: huggingface/transformers#29554, #35615 (the fix).
    """
    judged = 0
    if run.base is not None and run.checkpoints:
        for name, tensor in run.tensors.items():
            base = run.base.tensors.get(name)
            if base is None or not _renamed(name) or tensor.dtype not in FLOATS or base.shape != tensor.shape:
                continue
            if tensor.size < FEWEST or not (tensor.statistics.finite and base.statistics.finite):
                continue
            judged += 1
            ours, theirs = tensor.statistics, base.statistics
            moved = drift(run, name)
            reach = moved.reach(ours.mean) + 1e-6 * abs(ours.mean)
            away = max(theirs.maximum - ours.mean, ours.mean - theirs.minimum)
            if ours.maximum - ours.minimum <= 2 * reach < away and theirs.std > reach:
                yield _finding(
                    name, f"about {ours.mean:.4g} throughout", f"{theirs.mean:.4g} +- {theirs.std:.2g}", tensor
                )
    new, left = run.said("new-weights"), run.said("not-taken")
    if new and left and not judged:
        judged += 1
        lost = [name for name in new.names if _renamed(name) in left.names]
        if lost:
            evidence = Evidence(
                name="newly initialized, with their saved values not used",
                value=len(lost),
                expected=0,
                why=f"{_renamed(lost[0])} is among the weights that were not used ({left.source})",
                source=str(new.source),
            )
            yield Finding(
                message=f"{len(lost)} parameters called gamma or beta were not loaded, {lost[0]} the first: "
                "what they had learnt is lost, as transformers looked for them under other names.",
                where=lost[0],
                evidence=(evidence,),
            )
    if not judged:
        raise Missing("no parameter called gamma or beta in both the weights and --base, and no list of lost ones")


def _renamed(name: str) -> str:
    """What transformers made of the name of a parameter; empty where it left it alone."""
    renamed = name
    for old, new in RENAMED.items():
        renamed = renamed.replace(old, new)
    return renamed if renamed != name else ""


def _finding(name: str, value: str, expected: str, tensor: Tensor) -> Finding:
    return Finding(
        message=f"{name} is {value}, as at its start, and was {expected} in the base: what it had learnt is lost.",
        where=name,
        evidence=(
            Evidence(
                name="values",
                value=value,
                expected=expected,
                why="the base's; the learning rates can't have moved it so far",
                source=str(tensor.source),
            ),
        ),
    )
