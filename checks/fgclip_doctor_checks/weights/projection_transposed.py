"""FGD702."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check
from fgclip_doctor.parts import ELDER, FLOATS
from fgclip_doctor.run import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray


@check("FGD702", "projection-transposed", Severity.ERROR)
def projection_transposed(run: Run, *, closer: float = 0.5) -> Iterator[Finding]:
    """A square projection was loaded without its transpose.

    Why: OpenAI's CLIP multiplies features from the left (x @ text_projection), a linear layer by its transpose. Of a
    square matrix the shape says nothing: it loads without an error, and the features are no longer aligned.
    Evidence: the distance to the base's matrix and to its transpose. Without --base it can be told only of a branch
    head that is the transpose of the head it was copied from, and then not which of the two is wrong: a transposed
    matrix has the same values and singular values, so nothing in one matrix alone gives it away.
    Benign: a matrix that is nearly symmetric, or far from the base both ways (trained on, or a new one).
    Fix: transpose when converting x @ W into a linear layer's weight, and compare features with the reference model.
    Sources: openai/CLIP, model.py (text_projection, visual.proj); transformers, convert_clip_original_pytorch_to_hf.py.
    """
    compared = 0
    for tensor, other, transposed, what in _pairs(run):
        values, reference = tensor.values(), other.values()
        reference = reference.T if transposed else reference
        right, wrong = _distance(values, reference), _distance(values, reference.T)
        compared += 1
        if wrong < closer * right and _distance(reference, reference.T) > 0.1 and wrong < 0.5:
            yield Finding(
                message=f"{tensor.name} is {wrong:.2g} from the transpose of {what} and {right:.2g} from that itself "
                "(in its norm): one of them was loaded without its transpose, and the alignment it had learnt is lost.",
                where=tensor.name,
                evidence=(
                    Evidence(
                        name="distance to the transpose",
                        value=round(wrong, 5),
                        expected=f"over {closer:g} of {right:.4g}",
                        why=f"relative Frobenius distances to {what} and to its transpose",
                        source=f"{tensor.source}; {other.source}",
                    ),
                ),
            )
    if not compared:
        raise Missing("no square projection to compare; --base gives the weights that the run started from")


def _pairs(run: Run) -> Iterator[tuple[Tensor, Tensor, bool, str]]:
    """A square matrix, what it should be equal to or (as OpenAI's naming implies) the transpose of, and its name."""
    base = run.base.tensors if run.base else {}
    for name, tensor in run.tensors.items():
        if len(tensor.shape) != 2 or tensor.shape[0] != tensor.shape[1] or tensor.shape[0] < 16:
            continue
        if tensor.dtype not in FLOATS or name in {run.roles.get(f"bank.{side}_keys") for side in ("image", "text")}:
            continue
        plain = name.removesuffix(".weight")
        bare = f"{name}.weight" if name == plain else plain  # the same matrix in the other layout
        if (same := base.get(name)) is not None and same.shape == tensor.shape:
            yield tensor, same, False, f"{name} of the base"
        elif (left := base.get(bare)) is not None and left.shape == tensor.shape:
            yield tensor, left, True, f"the transpose of {bare} of the base"
        else:
            role = next((role for role, played in run.roles.items() if played == name), "")
            elder = run.tensors.get(run.roles.get(ELDER.get(role, ""), ""))
            if elder is not None and elder.shape == tensor.shape and _linear(elder.name) == _linear(name):
                yield tensor, elder, False, elder.name


def _linear(name: str) -> bool:
    """Whether a matrix is a linear layer's. A bare parameter may be used as either, so the two aren't compared."""
    return name.endswith(".weight")


def _distance(one: NDArray[Any], other: NDArray[Any]) -> float:
    """The Frobenius distance as a share of the second matrix's norm."""
    import numpy as np

    return float(np.linalg.norm(one.astype(np.float64) - other) / max(float(np.linalg.norm(other)), 1e-30))
