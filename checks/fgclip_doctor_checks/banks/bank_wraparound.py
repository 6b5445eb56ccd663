"""FGD205: rows that are lost where the ring ends."""

from collections.abc import Callable, Iterator
from math import ceil, gcd

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check
from fgclip_doctor.bank import Bank, memory_bank
from fgclip_doctor.ring import Pointers, Span, pointers, rows_per_forward, rows_per_step, spans

STATED = 0.03  # of pointers that are multiples of the stated rows of a forward by luck: two looks at a ring of 21 by 8


@check("FGD205", "bank-wraparound", Severity.WARNING)
def bank_wraparound(run: Run, *, share: float = 0.01, luck: float = 1e-3) -> Iterator[Finding]:
    """At the end of the ring rows are dropped, or its last rows are never replaced.

    Why: An enqueue that starts over at row 0 when a batch doesn't fit drops what doesn't fit at each turn, or leaves
        the last rows as they are, for good: stale, or the noise or zeros that they were initialised with.
    Evidence: Any of four. Two checkpoints or looks of a recording: the rows from some place to the end of the ring
        are bit-identical, though the pointer has passed beyond that place's start or turned. A log of the pointer, or
        checkpoints: of a full ring all pointers are multiples of one number, which doesn't divide its size; a ring
        that goes on where it started over shows that with a probability under `luck` (or 3 %, where that number is
        the rows of a forward). A log of each step in which every turn ends at row 0, as unlikely. Zero rows
        at the end of a bank that says that it is full.
    Benign: A size that the batch doesn't divide is no fault by itself: an index modulo the size handles it. Less than a
        `share` of the rows, as with a bank that is far larger than a batch, costs nothing worth a finding.
    Fix: Write to `(pointer + arange(rows)) % size`, and set the pointer to `(pointer + rows) % size`; or have a size
        that the global number of rows divides, and assert it.
    Sources: lightly `MemoryBankModule._dequeue_and_enqueue` (truncates the batch); PyContrast ContrastiveSeg#31 (the
        newest rows go); facebookresearch/moco and salesforce/ALBEF (assert that the batch divides the size).
    """
    bank = memory_bank(run)
    found: list[tuple[str, Evidence]] = []
    reasons: list[str] = []
    looks: tuple[Callable[[], tuple[str, Evidence] | None], ...] = (
        lambda: _tail(spans(run), share),
        lambda: _resets(run, bank, luck, share),
        lambda: _landings(run, luck, share),
        lambda: _zeros(bank, share),
    )
    for look in looks:
        try:
            found += [one for one in [look()] if one is not None]
        except Missing as reason:
            reasons.append(str(reason))
    if found:
        yield Finding(message=f"The ring of the memory bank {found[0][0]}.", where=bank.names, evidence=(found[0][1],))
    elif len(reasons) == len(looks):
        raise Missing("; ".join(dict.fromkeys(reasons)))


def _tail(found: list[Span], share: float) -> tuple[str, Evidence] | None:
    """The last rows stood still while the pointer went past where they begin."""
    import numpy as np

    for span in found:
        size, pointer = span.new.size, (span.new.pointer or 0) % span.new.size
        still = np.flatnonzero(span.kept)
        start = size - len(still)
        if not len(still) or not start or still[0] != start or span.new.pointer is None or pointer == start:
            continue
        turned = span.new.full or span.old.full or (span.new.full is None and pointer < start)  # it wrote behind itself
        if len(still) < share * size or span.new.blank or not turned:
            continue
        before, now = span.steps
        return (
            f"never replaces its last {len(still)} of {size} rows: all others changed between steps {before} and {now}",
            Evidence(
                name="rows that stood still",
                value=len(still),
                expected=0,
                why=f"rows {start} to {size}, with the pointer at {pointer}: those before were written anew",
                source=span.new.sources,
                step=now,
            ),
        )
    return None


def _resets(run: Run, bank: Bank, luck: float, share: float) -> tuple[str, Evidence] | None:
    """The pointer comes back to the same places in each turn, though the batch doesn't divide the ring."""
    known = pointers(run)
    full = [int(value) for value in known.values[known.turned]]
    unit = gcd(*full)
    moved = unit or not all(span.kept.all() for span in spans(run))  # a pointer that stays at 0 may be no pointer
    if len(full) < 2 or not moved:
        raise Missing("the pointer of a full ring is known at fewer than two places")
    try:
        forward = rows_per_forward(run) * run.number("world_size", 1.0)
    except Missing:
        forward = 0.0
    stated = forward >= 2 and forward == int(forward) and unit % int(forward) == 0
    unit = int(forward) if stated else unit
    if not 2 <= unit < bank.size or bank.size % unit == 0 or (stated and _as_expected(run, known)):
        return None
    common, lost = gcd(unit, bank.size), unit - bank.size % unit
    odds = float((ceil(bank.size / unit) * common / bank.size) ** (len(full) - (not stated)))  # one look told the unit
    if odds > (STATED if stated else luck) or lost < share * bank.size:
        return None
    return (
        f"starts over at 0 in each turn: its pointer stands at multiples of {unit} only, which don't divide its "
        f"{bank.size} rows, so {lost} of {bank.size + lost} rows are dropped",
        Evidence(
            name="what divides all pointers",
            value=unit,
            expected=common,
            why=f"{len(full)} looks at a full ring; by luck with probability {odds:.1g}",
            source=known.source,
        ),
    )


def _as_expected(run: Run, known: Pointers) -> bool:
    """Whether the pointer is where a sound ring has it that gets the stated rows at every step."""
    import numpy as np

    try:
        rows = rows_per_step(run)
    except Missing:
        return False
    off = (np.diff(known.values) - rows * np.diff(known.steps)) % known.size
    return bool((off[known.turned[1:]] == 0).all())


def _landings(run: Run, luck: float, share: float) -> tuple[str, Evidence] | None:
    """Each turn ends at row 0 exactly, however many rows a step brings."""
    import numpy as np

    known = pointers(run)
    near = np.diff(known.steps) == 1  # steps apart, or more than the landing may have happened in between
    moved = np.diff(known.values)
    rows, ends = moved[near & (moved > 0)], known.values[1:][near & (moved < 0)]
    if len(np.unique(rows)) < 2 or len(ends) < 2:
        raise Missing("the pointer isn't known at each of the steps in which the ring turned")
    unit, lost = gcd(*(int(one) for one in rows)), float(rows.mean()) / 2
    odds = min(unit / float(rows.mean()), 1.0) ** len(ends)
    if ends.any() or odds > luck or lost < share * known.size:
        return None
    return (
        f"starts over at 0 in each turn, though steps bring {rows.min()} to {rows.max()} rows: about {lost:.3g} of "
        f"{known.size} rows a turn are dropped",
        Evidence(
            name="turns that end at row 0",
            value=len(ends),
            expected=round(len(ends) * unit / float(rows.mean()), 1),
            why=f"all of them; by luck with probability {odds:.1g}",
            source=known.source,
        ),
    )


def _zeros(bank: Bank, share: float) -> tuple[str, Evidence] | None:
    """Rows at the end that nothing was written to, in a ring that is full."""
    import numpy as np

    if not bank.full:
        raise Missing("the bank doesn't say that it is full")
    empty = np.flatnonzero(np.min([norms == 0 for norms in bank.norms.values()], axis=0))
    start = bank.size - len(empty)
    if not len(empty) or empty[0] != start or start < bank.size / 2 or len(empty) < share * bank.size:
        return None
    return (
        f"leaves its last {len(empty)} of {bank.size} rows empty, though it counts as full",
        Evidence(
            name="zero rows", value=len(empty), expected=0, why=f"rows {start} to {bank.size}", source=bank.sources
        ),
    )
