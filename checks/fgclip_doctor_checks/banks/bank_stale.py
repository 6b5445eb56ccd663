"""FGD207: rows of an encoder that is no more."""

from collections.abc import Iterator

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check, events
from fgclip_doctor.bank import Bank, Drift, memory_bank
from fgclip_doctor.ring import rows_per_step, spans
from fgclip_doctor_checks.causes import explaining


@check("FGD207", "bank-stale", Severity.WARNING)
def bank_stale(
    run: Run, *, drift: float = 0.5, errors: float = 10.0, turns: float = 1.5, share: float = 0.25, early: int = 50
) -> Iterator[Finding]:
    """Rows of the memory bank are far behind the encoder that they are compared with.

    Why: A row is a negative as its encoder saw it then. When the features have moved on since, old rows are told from
        new ones by their age, and not by their content: they are no negatives worth the name.
    Evidence: Two checkpoints or looks of a recording: over a `share` of the rows are bit-identical though the rows of
        the steps between suffice for `turns` of the ring. Or one: the mean of the older half of the ring is off that
        of the newer one by more than `drift` times the spread within the halves (squared lengths), and by `errors`
        times what halves of rows that don't drift show.
    Benign: The first `early` steps, the learning rate's warmup and 5 % of the run, in which features move and settle:
        the halves aren't compared there. Drift that is small beside the spread, as late in training at rates of 1e-6,
        whatever the age. Data in sorted order or a curriculum moves the mean without any drift of the encoder: shuffle
        before believing this.
    Fix: A smaller bank, a later start (XBM waits for 1,000 steps or more), a smaller learning rate, or keys of a
        momentum encoder. Rows that stand still: look at what keeps the enqueue from running.
    Sources: Wang et al. 2020, "Cross-Batch Memory for Embedding Learning" (slow drift, and when to start); He et al.
        2020, "Momentum Contrast" (keys have to be consistent).
    """
    bank = memory_bank(run)
    if not bank.written:
        raise Missing("the bank holds no rows yet, or it isn't known how many")
    still = _still(run, turns, share)
    if still is not None:
        yield Finding(
            message=f"{still.value:.0%} of the rows of the memory bank stood still over {still.why}.",
            where=bank.names,
            evidence=(still,),
            explained_by=explaining("FGD207", "still"),
        )
        return
    step = bank.checkpoint.step
    if step is not None and step < max(early, events.warmed_up(run), 0.05 * run.number("max_steps", 0.0)):
        raise Missing("the run is at its start, where features move and settle")
    found = bank.drift()
    worst = max(found, key=lambda one: one.share)
    if worst.share > drift and worst.ratio > errors:
        yield _drifted(bank, worst, drift)


def _still(run: Run, turns: float, share: float) -> Evidence | None:
    try:
        rate, found = rows_per_step(run), spans(run)
    except Missing:
        return None
    for span in found:
        (before, now), size = span.steps, span.new.size
        part = float(span.kept.mean())
        if span.old.full and part >= share and part < 1 and rate * (now - before) >= turns * size:
            return Evidence(
                name="rows that stood still",
                value=part,
                expected=0,
                why=f"steps {before} to {now}, whose {rate * (now - before):.0f} rows replace all {size}",
                source=span.new.sources,
                step=now,
            )
    return None


def _drifted(bank: Bank, worst: Drift, drift: float) -> Finding:
    return Finding(
        message=f"The older half of the {worst.modality} rows of the memory bank lies {worst.share:.2g} times the "
        "spread of the rows away from the newer one: the encoder has moved on, and these rows are told by their age.",
        where=bank.keys[worst.modality].name,
        evidence=(
            Evidence(
                name="drift between the halves",
                value=worst.share,
                expected=f"under {drift}",
                why=f"squared distance of their means over the spread within; {worst.ratio:.3g} times that by chance",
                source=str(bank.keys[worst.modality].source),
            ),
        ),
        explained_by=explaining("FGD207", "moved"),
    )
