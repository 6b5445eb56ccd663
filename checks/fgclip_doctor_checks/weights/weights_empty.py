"""FGD708."""

from collections.abc import Iterator

from fgclip_doctor import Evidence, Finding, Run, Severity, check


@check("FGD708", "weights-empty", Severity.ERROR)
def weights_empty(run: Run) -> Iterator[Finding]:
    """Weights were saved without their values: their names are there, with no element.

    Why: under ZeRO-3 and FSDP each rank holds a share of every parameter, and the module itself an empty one. What is
    saved from the module without gathering, frozen parts above all, is empty; a loader that is not strict then leaves
    these parts at their random initialisation.
    Evidence: tensors called weight or bias with no element, beside others that have some.
    Benign: an export of adapters alone, which leaves the names out too.
    Fix: save with stage3_gather_16bit_weights_on_model_save (or zero_to_fp32.py, or a full FSDP state dict), and
    compare the number of parameters with the model's.
    Sources: microsoft/DeepSpeed#3090, #5439; deepspeed.runtime.zero (partitioned parameters have shape [0]).
    """
    tensors = run.tensors
    empty = [name for name, one in tensors.items() if one.size == 0 and name.rpartition(".")[2] in ("weight", "bias")]
    if empty and len(empty) < len(tensors):
        yield Finding(
            message=f"{len(empty)} of {len(tensors)} tensors have no element, {empty[0]} for one: they were saved "
            "without being gathered, and whoever loads them gets random weights.",
            where=empty[0],
            evidence=(
                Evidence(
                    name="empty tensors",
                    value=len(empty),
                    expected=0,
                    why=f"the shape of {empty[0]} is {list(tensors[empty[0]].shape)}",
                    source=str(tensors[empty[0]].source),
                ),
            ),
        )
