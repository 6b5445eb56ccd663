"""FGD801: features of other ranks that are constants."""

from collections.abc import Iterator

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check
from fgclip_doctor.ranks import Matrix, matrices, several


@check("FGD801", "gather-without-gradient", Severity.WARNING)
def gather_without_gradient(run: Run) -> Iterator[Finding]:
    """The candidates are gathered from all ranks, but no gradient goes back through the gather.

    Why: `torch.distributed.all_gather` returns constants. What the losses of a rank say of other ranks' features is
        lost, and of its own as candidates too: the gradient is half as long and points elsewhere (cosine 0.98). Where
        every rank computes the whole matrix with its own slice put back, it points the right way and is shorter by
        the number of ranks, which Adam hides and clipping, eps and weight decay don't.
    Evidence: A recording of several ranks. The autograd graph behind the logits of each loss, at its first call: which
        columns lead back to parameters. All losses over gathered candidates have to have anchors that do, and columns
        that don't; and either there are two such losses, one each way, or a gather was seen whose input needed a
        gradient and whose output can't carry one.
    Benign: Rows of a bank are constants by design, and don't count. A locked tower gives constant candidates in one
        direction only. Keys of a momentum encoder are constants too: then all towers that give keys are frozen copies.
    Fix: Gather with `torch.distributed.nn.all_gather` or an autograd function whose backward sums over ranks. Don't
        multiply or divide by the number of ranks on top: with DistributedDataParallel's mean the gradient is exact.
    Sources: Long-CLIP ed8ccfb; facebookresearch/SLIP#31; mlfoundations/open_clip#616; lightly-ai/lightly#1531.
    """
    recording = several(run)
    constant = [one for rank in recording.ranks for one in rank.gathers if not one.differentiable]
    cut = [one for one in constant if one.needs_gradient]
    gathered = [one for one in matrices(run) if _covers(one, sure=bool(cut)) and _reach(one) is not None]
    if not gathered:
        raise Missing("no loss over gathered candidates was seen with its graph")
    rows = {matrix.name: found for matrix in gathered if (found := _reach(matrix)) is not None}
    if any(not anchors or reached >= _world(matrix) for matrix in gathered for anchors, reached in [rows[matrix.name]]):
        return
    copies = any(not one.trainable for one in recording.first.parameters.values())
    if not cut and (len(gathered) < 2 or copies):
        return
    first = gathered[0]
    own = rows[first.name][1] > 0
    effect = (
        "only its own rows carry one, so the gradient lacks what other ranks' losses say of them, or, where every rank "
        f"computes the whole matrix, is 1/{first.world_size} of what it should be, in the right direction"
        if own
        else "what the losses say of features as candidates is lost, which turns the gradient and halves it"
    )
    yield Finding(
        message=f"The {len(gathered)} losses over candidates of all {first.world_size} ranks get no gradient through "
        f"the gather: {effect}.",
        where=first.name,
        evidence=(
            *(
                Evidence(
                    name=f"candidates with a gradient, at {matrix.name}",
                    value=rows[matrix.name][1],
                    expected=round(_world(matrix)),
                    why=f"{matrix.world_size} ranks with {matrix.anchors:g} anchors each; read off the autograd graph",
                    source=recording.first.path,
                )
                for matrix in gathered
            ),
            *(
                Evidence(
                    name=one.name,
                    value=one.calls,
                    expected=0,
                    why=f"calls on features of width {one.shape[-1]} that need a gradient; its output carries none",
                    source=recording.first.path,
                )
                for one in cut[:4]
            ),
        ),
    )


def _covers(matrix: Matrix, *, sure: bool) -> bool:
    """Whether the candidates are those of all ranks; or a part of a square matrix is constant, as a gathered one's.

    A bank that fills adds candidates, too, and ever more: `sure` is whether features were seen to be gathered.
    """
    found = _reach(matrix)
    site = next(iter(matrix.sites.values()))
    each = site.candidates / site.anchors
    square = each[0] == 1
    of_ranks = matrix.gathered and each[0] <= 1.01 * matrix.world_size and (sure or each.max() <= 1.05 * each.min())
    return bool(of_ranks or (found is not None and square and 0 < found[1] < 0.75 * site.candidates[0]))


def _world(matrix: Matrix) -> float:
    """The candidates of all ranks, at the first call."""
    site = next(iter(matrix.sites.values()))
    square = site.anchors[0] == site.candidates[0]
    return 0.9 * float(site.candidates[0] if square else min(site.anchors[0] * matrix.world_size, site.candidates[0]))


def _reach(matrix: Matrix) -> tuple[bool, int] | None:
    known = [site.reach for site in matrix.sites.values() if site.reach is not None]
    return (all(one.anchors for one in known), max(one.reached for one in known)) if known else None
