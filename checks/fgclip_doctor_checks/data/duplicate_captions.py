"""FGD602."""

from collections.abc import Iterator
from math import log, log2

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check
from fgclip_doctor.annotations import Annotations, Clash, Repeats
from fgclip_doctor.terms import bank_rows, counts


@check("FGD602", "duplicate-captions", Severity.WARNING)
def duplicate_captions(run: Run, *, share: float = 0.02, candidates: float = 64) -> Iterator[Finding]:
    """Captions or images repeat so often that anchors meet their own caption among their negatives.

    Why: the target of a contrastive loss is one's own column alone. A copy of it among the candidates is pushed away
    though it is right, and the loss can't go under ln(1 + copies), however well the model knows.
    Evidence: `--data`. How many of the anchors meet a copy, over `share` of them, and the mean of ln(1 + copies), from
    how often each text occurs (in lower case) and the candidates per anchor; `candidates` where none are known. Copies
    in the same image always meet. A region shows its short and its long text with even odds, as in FG-CLIP.
    Benign: repeats that a batch rarely meets: in large data thousands may. Losses with several positives, rows of a
    bank that are masked by caption, and batches drawn without repeats cost nothing; annotations don't show those.
    Fix: mask equal captions (and equal images) in the logits, in the batch and in the bank; or draw batches without
    repeats; or say more in the captions. A larger batch or bank makes it worse.
    Sources: mlfoundations/open_clip#821; fartashf/vsepp#6; sentence-transformers' BatchSamplers.NO_DUPLICATES; the
    threshold of 2 % is a choice: copies then cost 1 % of a bit or more.
    """
    data = run.annotations
    for term, what, repeats in _judged(data):
        known, how = _candidates(run, term, candidates)
        within = data.regions_per_sample if term == "region" else 1.0
        others = max(known - within, 0.0)
        clash = _clash(repeats, others)
        if clash.share <= share:
            continue
        text, part = max((one.commonest for one in repeats), key=lambda common: common[1])
        bits = clash.floor / log(2)
        often = f' The commonest, "{text}", is {part:.2%} of them.' if part > 0.001 and term != "image" else ""
        yield Finding(
            message=f"With {known:.4g} candidates, {clash.share:.1%} of the anchors meet their own {what} among the "
            f"negatives: {bits:.2g} of {log2(max(known, 2)):.3g} bits can't be learnt, and the loss ends at "
            f"{clash.floor:.2g} or more.{often}",
            where=f"{data.path}: {what}",
            evidence=(
                Evidence(
                    name="anchors that meet a copy",
                    value=round(clash.share, 5),
                    expected=f"at most {share:.0%}",
                    why=f"{known:.4g} candidates ({how}) drawn from {repeats[0].total:,} texts counted",
                    source=data.path,
                ),
                Evidence(
                    name="least loss in nats",
                    value=round(clash.floor, 5),
                    expected=0.0,
                    why="mean of ln(1 + copies)",
                    source=data.path,
                ),
            ),
        )


def _judged(data: Annotations) -> Iterator[tuple[str, str, list[Repeats]]]:
    """Each contrast with what stands in it: the term whose candidates it has, its name, and one or two texts."""
    yield "global", "image", [data.images]
    for name in ("caption", "short_caption"):
        if name in data.texts:
            yield "global", name, [data.texts[name].repeats]
    if "short_expr" in data.texts:
        regions = [data.texts[name] for name in ("short_expr", "long_expr") if name in data.texts]
        both = len(regions) == 2 and 2 * regions[1].count > regions[0].count
        yield "region", "region caption", [one.repeats for one in regions[: 1 + both]]


def _clash(repeats: list[Repeats], others: float) -> Clash:
    found = [one.among(others, 1 / len(repeats)) for one in repeats]
    return Clash(sum(one.share for one in found) / len(found), sum(one.floor for one in found) / len(found))


def _candidates(run: Run, term: str, assumed: float) -> tuple[float, str]:
    try:
        _, inside, how, _ = counts(run, term)
    except Missing:
        return assumed, "assumed; --fact micro_batch=N states the samples per forward"
    rows = bank_rows(run, term)
    saved = run.checkpoints[-1].tensors if run.checkpoints else {}
    if any("caption" in name and "queue" in name and len(one.shape) == 1 for name, one in saved.items()):
        rows = 0  # a bank that keeps whose caption each row is leaves copies out
    return inside + rows, f"{how}, and {rows} rows of the bank" if rows else how
