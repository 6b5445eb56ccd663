"""FGD204: bank rows that aren't of length 1."""

from collections.abc import Iterator
from math import sqrt

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check
from fgclip_doctor.bank import memory_bank, switched_off
from fgclip_doctor_checks.causes import explaining


@check("FGD204", "bank-rows-not-unit", Severity.WARNING)
def bank_rows_not_unit(
    run: Run, *, tolerance: float = 0.01, half_tolerance: float = 0.02, share: float = 0.01
) -> Iterator[Finding]:
    """Rows of the memory bank are zero or aren't unit vectors, so their logits are off by their length.

    Why: In-batch logits are cosines times the scale. A row of another length is a negative at another scale: lengths of
        sqrt(d), those of an unnormalised normal vector, silence the batch, and a zero row is a candidate at logit 0.
    Evidence: The lengths of the written rows: how many are further than `tolerance` from 1 (`half_tolerance` where they
        are stored in 16 bits) if they are over a `share` of all, and how many are zero.
    Benign: A bank may store raw features and normalise them when it reads; the weights don't show that. Rows that the
        pointer hasn't reached may be anything.
    Fix: Normalise before the enqueue, keep the result of the call, skip degenerate regions, and assert the lengths.
    Sources: lightly-ai/lightly#1009 (the result of normalize was discarded).
    """
    bank = memory_bank(run)
    written = bank.written
    if written == 0:
        raise Missing("the bank says itself that it holds no rows yet")
    if written is None and (bank.blank or switched_off(run)):
        raise Missing("it isn't known whether a row was ever written")
    for modality, tensor in bank.keys.items():
        allowed = tolerance if tensor.dtype in ("float32", "float64") else half_tolerance
        lengths = sorted(float(one) for one in bank.norms[modality][:written])
        zeros = lengths.count(0.0)
        off = sum(not abs(length - 1) <= allowed for length in lengths if length != 0.0)
        if written is None:  # zero rows are then those that were never written
            lengths, zeros = lengths[zeros:], 0
        if not zeros and off <= share * len(lengths):
            continue
        median = lengths[len(lengths) // 2]
        root = sqrt(bank.dimension)
        told = f"; that is sqrt({bank.dimension}), a normal vector's" if abs(median / root - 1) < 0.05 else ""
        yield Finding(
            message=f"Of {len(lengths)} written {modality} rows in the memory bank, {off} aren't of length 1 (median "
            f"{median:.4g}{told}) and {zeros} are zero. Harmless only if the loss normalises what it reads.",
            where=tensor.name,
            evidence=(
                Evidence(
                    name="rows of another length",
                    value=off,
                    expected=f"at most {share:.0%} of {len(lengths)}",
                    why=f"lengths further than {allowed} from 1, as stored in {tensor.dtype}",
                    source=str(tensor.source),
                ),
                Evidence(name="median length", value=median, expected=1.0, why="unit rows", source=str(tensor.source)),
                Evidence(name="zero rows", value=zeros, expected=0, why="written rows", source=str(tensor.source)),
            ),
            explained_by=explaining("FGD204"),
        )
