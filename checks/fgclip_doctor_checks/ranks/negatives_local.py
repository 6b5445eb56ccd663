"""FGD804: candidates of one rank, where there are several."""

from collections.abc import Iterator
from math import log, log2

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check
from fgclip_doctor.ranks import matrices
from fgclip_doctor.terms import logged_candidates


@check("FGD804", "negatives-local", Severity.WARNING)
def negatives_local(run: Run, *, points: int = 5, agreement: float = 0.02) -> Iterator[Finding]:
    """The run has several ranks, and each contrasts its own batch alone.

    Why: More ranks then make more batches, and no larger ones: the candidates of an anchor stay those of one rank, and
        the loss looks lower than that of a gathered batch while less is learnt.
    Evidence: The best of three: a recording, in which no loss over the batch has more candidates than one rank has
        anchors; a log of the candidates of the global loss; or that loss at its start, flat at ln B where ln (B x
        ranks) is meant: `points` values within `agreement` of it, as from scratch. It takes the batch of a rank.
    Benign: FG-CLIP's region and hard-negative losses are local by design: only the global loss is judged, or all of
        them where none is gathered. A sigmoid loss may go round the ranks piece by piece. Where local batches are meant
        and large enough, declare it: `candidates` in the plan.
    Fix: Gather both features of the global loss over the ranks, with gradients, and offset the targets by rank.
    Sources: openai/CLIP#25 (8 x 32 instead of 256); Radford et al. 2021, section 2.4 (a batch over all devices).
    """
    if run.plan.candidates:
        raise Missing("the plan declares the candidates")
    ranks = run.number("world_size", run.recording.first.world_size if run.recording else 1.0)
    if ranks < 2:
        raise Missing("the run has one rank only, as far as is known")
    try:
        evidence = _recorded(run, ranks)
    except Missing:
        if "micro_batch" not in run.facts:
            raise
        evidence = _logged(run, ranks, points, agreement)
    if evidence is not None:
        name = "global loss"
        yield Finding(
            message=f"The {name} contrasts {evidence.value:.4g} candidates on each of {ranks:.0f} ranks, not "
            f"{evidence.expected}: nothing is gathered, and {log2(ranks):.3g} bits of the task are missing.",
            where=evidence.name,
            evidence=(evidence,),
        )


def _recorded(run: Run, ranks: float) -> Evidence | None:
    found = matrices(run)
    batch = run.number("micro_batch", 0.0)
    if any(not rank.digests.get("parameters") for rank in run.watched.ranks):
        raise Missing("the ranks may be parts of one model, and share their batch")
    if not batch and any(rank.gathers for rank in run.watched.ranks):
        raise Missing("features are gathered, for a loss or a bank; --fact micro_batch=N tells which")
    matrix = min(found, key=lambda one: one.anchors)
    if any(one.gathered for one in found) or matrix.anchors > 1.2 * batch > 0:
        return None
    return Evidence(
        name=f"candidates at {matrix.name}",
        value=matrix.candidates,
        expected=round(matrix.anchors * ranks),
        why=f"{ranks:.0f} ranks with {matrix.anchors:g} anchors each",
        source=run.watched.first.path,
    )


def _logged(run: Run, ranks: float, points: int, agreement: float) -> Evidence | None:
    import numpy as np

    batch = run.number("micro_batch")
    candidates = logged_candidates(run, "global")
    if candidates is not None:
        value, name, source = float(np.median(candidates.values)), candidates.name, str(candidates.source)
        local = value <= 1.2 * batch
    else:
        loss = run.loss("global") if "loss.global" in run.roles else run.loss("total")
        start = loss.values[np.isfinite(loss.values)][:points]
        if len(start) < points or (run.roles.get("loss.total") == loss.name and "loss.region" in run.roles):
            raise Missing("neither the candidates nor the start of the global loss were logged")
        if start.std() > agreement:
            raise Missing("the global loss doesn't start at chance, so its level doesn't tell the candidates")
        value, name, source = batch, loss.name, str(loss.source)
        local = abs(float(start.mean()) - log(max(batch, 1.0))) <= agreement
    if not local or batch < 2:
        return None
    return Evidence(
        name=name,
        value=value,
        expected=round(batch * ranks),
        why=f"micro_batch {batch:g} x {ranks:.0f} ranks"
        + ("" if candidates is not None else f"; the loss starts flat at ln {batch:g} = {log(batch):.3f}"),
        source=source,
    )
