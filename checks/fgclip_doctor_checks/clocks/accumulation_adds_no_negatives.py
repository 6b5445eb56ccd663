"""FGD403."""

from collections.abc import Iterator

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check
from fgclip_doctor.terms import terms


@check("FGD403", "accumulation-adds-no-negatives", Severity.INFO)
def accumulation_adds_no_negatives(run: Run, *, fewest: int = 8, candidates: float = 16.0) -> Iterator[Finding]:
    """Much accumulation over few candidates: each step averages many small problems, and adds no negatives to any.

    Why: the loss of a micro-batch sees that micro-batch alone, and accumulation sums the gradients of such losses: the
    noise falls, and the number of candidates stays. InfoNCE can tell no more than ln N of them.
    Evidence: an accumulation of `fewest` or more beside a loss term with `candidates` or fewer for each anchor.
    Benign: it is a choice where memory is short, so this is no warning. Losses that cache features over micro-batches
    (GradCache, open_clip's --accum-freq) do add negatives, and so do a memory bank and a gather across ranks, which
    count as candidates here.
    Fix: to have more negatives, raise the micro-batch (gradient checkpointing pays for it), gather across ranks, cache
    features, or use a bank; raising the accumulation only averages more.
    Sources: huggingface/sentence-transformers#2916, #1822; mlfoundations/open_clip#267 (--accum-freq caches features).
    """
    accumulation, stated = run.number("accumulation"), run.fact("accumulation").source
    name, count, source = min(_candidates(run), key=lambda one: one[1])
    if accumulation < fewest or count > candidates or stated.key == "accum_freq":
        return
    yield Finding(
        message=f"Each step averages {accumulation:g} losses in which an anchor of the {name} loss has {count:.4g} "
        "candidates: more accumulation makes it less noisy, and adds no negatives.",
        where=stated.key,
        evidence=(
            Evidence(
                name="candidates per anchor",
                value=round(count, 3),
                expected=f"over {candidates:g}, whatever the accumulation",
                why=f"the accumulation is {accumulation:g}, {stated}",
                source=source,
            ),
        ),
    )


def _candidates(run: Run) -> list[tuple[str, float, str]]:
    """Loss terms with their candidates; the negatives of a hard loss are made for it, and no batch adds to them."""
    try:
        known = [one for one in terms(run) if not isinstance(one, Missing) and one.name != "hard"]
    except Missing:
        known = []
    found = [(term.name, term.candidates, str(term.series.source)) for term in known]
    if not found and not run.has_role("bank.image_keys"):
        found = [("global", run.number("micro_batch") * run.number("world_size"), str(run.fact("micro_batch").source))]
    if not found:
        raise Missing("the number of candidates of no loss term is known")
    return found
