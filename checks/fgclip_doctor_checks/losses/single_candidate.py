"""FGD509: a softmax over one candidate."""

from collections.abc import Iterator

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check
from fgclip_doctor.events import gradient_norms
from fgclip_doctor.terms import counts

START = 10  # a step until which a loss isn't learnt to 0


@check("FGD509", "single-candidate", Severity.ERROR)
def single_candidate(run: Run, *, records: int = 5) -> Iterator[Finding]:
    """A contrastive loss has one candidate per anchor, so it is 0 whatever the features are, and trains nothing.

    Why: A softmax over one logit is 1. The loss looks perfect from the first step on, its gradient is 0, and every step
        is wasted.
    Evidence: A log of the loss, at least `records` times, exactly 0; and one candidate by batch, ranks and bank, as
        stated, logged or recorded. Where the candidates aren't known, a gradient norm that is exactly 0 with it.
    Benign: A loss that is printed as "0.000" and is none ("0.0" is how Python writes 0, and is one beside a gradient
        norm of "0.0" from the first steps on, when no model knows anything yet); a small set that was learnt by heart,
        whose gradients are small and not 0; a rank with one region now and then.
    Fix: Raise the batch, gather features across ranks, or switch the memory bank on. More accumulation adds no
        candidates.
    Sources: openai/CLIP#83 (a batch of one, whose total loss is always 0).
    """
    import numpy as np

    reasons: list[str] = []
    for name in ("global", "region", "total"):
        if run.roles.get(f"loss.{name}") not in run.series:
            continue
        series = run.loss(name)
        if len(series.values) < records:
            reasons.append(f"the {name} loss was logged fewer than {records} times")
            continue
        gradient = _no_gradient(run, records)
        plain = series.resolution == 0.1 and gradient is not None and series.steps.min() <= START
        exact = (series.resolution or 0.0) <= 1e-3 or plain
        if not exact or np.abs(series.values).max() > 1e-6:
            reasons.append("")
            continue
        proof = _one_candidate(run, name) or gradient
        if proof is None:
            reasons.append(f"the candidates of the {name} loss aren't known, nor its gradients")
            continue
        reasons.append("")
        yield Finding(
            message=f"The {name} loss is exactly 0 at all of its {len(series.values)} records: there is nothing to "
            "tell the positive from. None of these steps has trained anything.",
            where=series.name,
            evidence=(
                Evidence(
                    name="largest loss",
                    value=float(np.abs(series.values).max()),
                    expected="over 0",
                    why=f"steps {series.steps.min()} to {series.steps.max()}",
                    source=str(series.source),
                ),
                proof,
            ),
        )
    if "" not in reasons:
        raise Missing("; ".join(reasons) or "no loss was logged")


def _one_candidate(run: Run, name: str) -> Evidence | None:
    """That batch, ranks and bank leave one candidate, if they do."""
    try:
        _, candidates, how, *_ = counts(run, name)
    except Missing:
        batch, ranks = run.number("micro_batch", 0.0), run.number("world_size", 1.0)
        candidates, how = batch * ranks, "micro_batch x world_size"
    if candidates != 1:
        return None
    return Evidence(name="candidates per anchor", value=1, expected="at least 2", why=how)


def _no_gradient(run: Run, records: int) -> Evidence | None:
    norm = next(iter(gradient_norms(run)), None)
    if norm is None or len(norm.values) < records or norm.values.any():
        return None
    return Evidence(
        name="gradient norm",
        value=0.0,
        expected="over 0",
        why=f"at all {len(norm.values)} records",
        source=str(norm.source),
    )
