"""FGD506."""

import re
from collections.abc import Iterator

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check
from fgclip_doctor.events import gradient_norms
from fgclip_doctor.run import Series, Tensor
from fgclip_doctor.terms import sites
from fgclip_doctor_checks.causes import explaining

MASK = re.compile(r"mask", re.IGNORECASE)  # attention masks hold -inf on purpose


@check("FGD506", "loss-not-finite", Severity.ERROR)
def loss_not_finite(run: Run, *, tail: int = 3) -> Iterator[Finding]:
    """The loss or the weights have become NaN or infinite, even where the log shows a clean loss.

    Why: one NaN in a gradient makes every weight NaN with the next update, and nothing raises. transformers' Trainer
        puts the running mean for a NaN loss by default (logging_nan_inf_filter), so its log goes on with 0.0.
    Evidence: weights with NaN or infinite values; a loss, logged or recorded where it is computed, that is not finite
        in its last `tail` records; a loss of exactly 0.0 beside a gradient norm that is not finite in as many, or in
        all that there are.
    Benign: infinities in attention masks; single records without a value, of a term that a batch had nothing for; a
        gradient norm that overflows while a GradScaler finds its scale; a true 0.0, whose gradient norm is finite.
    Fix: go back to the last sound checkpoint, set logging_nan_inf_filter=False, stop the run on a loss that is not
        finite, and look for fp16 parameters, rows of zero norm, or batches with nothing selected. A finite log, or a
        finite train_loss at the end, does not say that there was no NaN.
    Sources: transformers.TrainingArguments.logging_nan_inf_filter; huggingface/trl#6702 (a corrupted run with a clean
        loss curve).
    """
    import numpy as np

    if not run.series and not (run.checkpoints and run.checkpoint.tensors):
        raise Missing("neither weights nor a logged loss")
    broken = [one for one in run.checkpoint.tensors.values() if _broken(one)] if run.checkpoints else []
    if broken:
        count = sum(one.statistics.nans + one.statistics.infs for one in broken)
        names = ", ".join(one.name for one in broken[:3])
        yield Finding(
            message=f"{len(broken)} of {len(run.tensors)} tensors hold values that are not finite, {count} in all: "
            "what they had learnt is lost.",
            where=names if len(broken) <= 3 else f"{names} and {len(broken) - 3} more",
            evidence=tuple(
                Evidence(
                    name=f"values of {one.name} that are not finite",
                    value=one.statistics.nans + one.statistics.infs,
                    expected=0,
                    why=f"{one.statistics.nans} NaN and {one.statistics.infs} infinite of {one.size}",
                    source=str(one.source),
                )
                for one in broken[:3]
            ),
            explained_by=explaining("FGD506"),
        )
    norms = next(iter(gradient_norms(run)), None)
    logged = [name for role, name in run.roles.items() if role.startswith("loss.")]
    for name in (*logged, *(f"loss at {site.name}" for site in sites(run))):
        series = run.series.get(name)
        if series is None or not series.values.size:
            continue
        last = series.values[-tail:]
        hidden = bool((last == 0).all()) and norms is not None and _not_finite_at(norms, series, len(last))
        if not hidden and len(last) < tail:
            continue
        if hidden or not np.isfinite(last).any():
            shown = "is logged as 0.0 beside a gradient norm that is not finite" if hidden else "is not finite"
            yield Finding(
                message=f"{name} {shown} in the last {len(last)} of its records, up to step {series.steps[-1]}: these "
                "steps are wasted, and with NaN in the weights so is every later one.",
                where=name,
                evidence=(
                    Evidence(
                        name="gradient norm" if hidden and norms is not None else name,
                        value=float(norms.values[-1] if hidden and norms is not None else last[-1]),
                        expected="finite",
                        why="the logger's filter hides a NaN loss as 0.0" if hidden else "a loss is a finite number",
                        source=str(norms.source if hidden and norms is not None else series.source),
                        step=int(series.steps[-1]),
                    ),
                ),
                explained_by=explaining("FGD506"),
            )


def _broken(tensor: Tensor) -> bool:
    if not tensor.dtype.startswith(("float", "bfloat")) or not tensor.size:
        return False
    try:
        found = tensor.statistics
    except Missing:  # a recording has the values of small tensors, and of the others their names
        return False
    return found.nans > 0 or (found.infs > 0 and not MASK.search(tensor.name))


def _not_finite_at(norms: Series, series: Series, tail: int) -> bool:
    """Whether the gradient norm was not finite at the last `tail` steps of the loss."""
    import numpy as np

    at = np.isin(norms.steps, series.steps[-tail:])
    return int(at.sum()) >= tail and not np.isfinite(norms.values[at]).any()
