"""FGD202: bank rows that were drawn, not encoded."""

from collections.abc import Iterator
from math import expm1, log

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check, theory
from fgclip_doctor.bank import Bank, Rows, memory_bank, warmup_over
from fgclip_doctor.terms import scale_of
from fgclip_doctor_checks.causes import explaining

NOTHING = 0.1  # nats that a loss may gain from rows which cost nothing


@check("FGD202", "bank-holds-noise", Severity.ERROR)
def bank_holds_noise(run: Run) -> Iterator[Finding]:
    """Bank rows that count as negatives can't be told from random unit vectors.

    Why: A loss against random negatives teaches nothing: in the hundreds of dimensions that embeddings have, noise is
        far from every anchor by itself. It happens where the enqueue writes to a copy, or the flag is set without it.
    Evidence: Three statistics of the rows that are said to be written (mean cosine, mean squared cosine, cosine with
        the paired rows of the other bank), each within 4 standard deviations of what random rows give. Noise passes
        unseen once in 2,000 times at most; of encoded rows that use at most half of the dimensions, or that agree with
        their partners by a cosine of 0.1, fewer than 1 in 1,000 banks are called noise. Where the rows are too few for
        that, the check is skipped.
    Benign: Rows that the pointer hasn't reached are noise in many implementations, and nothing uses them. Encoded rows
        that look unaligned still share a mean direction, and an untrained encoder's do too.
    Fix: Enqueue detached, normalised features after the loss, in the module that is saved, and set the fill flag only
        when the pointer wraps.
    Sources: lightly-ai/lightly#968 (a bank of random noise through a whole training); Fisher, Lewis and Embleton 1987,
        "Statistical Analysis of Spherical Data" (uniformity on the sphere).
    """
    bank = memory_bank(run)
    written, pointer = bank.written, (bank.pointer or 0) % bank.size  # some count on, and wrap when they write
    if written == 0:
        raise Missing("the bank says itself that it holds no rows yet")
    if written is None and not warmup_over(run):
        raise Missing("it isn't known how many rows were written, and the bank may be off or still in its warmup")
    whole = bank.look(0, bank.size if written is None else written)
    halves = [bank.look(0, pointer), bank.look(pointer)] if written == bank.size and pointer else []
    noisy = [one for one in whole if one.verdict == "noise"]
    noisy += [rows for half in halves for rows in half if rows.verdict == "noise" and not _covered(rows, noisy)]
    for rows in noisy:
        yield Finding(
            message=f"The {rows.modality} rows {rows.start} to {rows.stop} of the bank count as written, but they "
            f"look like random vectors in all {len(rows.evidence())} respects that were tested: as "
            "negatives they teach nothing.",
            where=bank.keys[rows.modality].name,
            evidence=(*rows.evidence(), *_free(run, bank)),
            explained_by=explaining("FGD202"),
        )
    if not noisy and all(rows.verdict == "undecided" for rows in whole):
        raise Missing(f"{whole[0].count} rows of width {bank.dimension} are too few to tell from random ones")


def _free(run: Run, bank: Bank) -> Iterator[Evidence]:
    """From which cosine on a pair pays nothing for rows of noise, and so learns nothing from them."""
    role = "region" if run.has_role("scale.region") else "global"
    try:
        scale, source = scale_of(run, role)
    except Missing:
        return
    level = theory.null(anchors=1, candidates=bank.size, scale=scale, dimension=bank.dimension).level
    cosine = (level - log(expm1(NOTHING))) / scale
    if cosine < 1:
        yield Evidence(
            name="cosine of a pair that pays nothing for these rows",
            value=round(cosine, 3),
            why=f"from it on, {bank.size} random rows of width {bank.dimension} add under {NOTHING:g} nats to its loss "
            f"at scale {scale:.4g}, so a low loss is no merit: ln (1 + exp({level:.3g} - {scale:.4g} cos))",
            source=source,
        )


def _covered(rows: Rows, found: list[Rows]) -> bool:
    return any(one.modality == rows.modality and one.start <= rows.start and rows.stop <= one.stop for one in found)
