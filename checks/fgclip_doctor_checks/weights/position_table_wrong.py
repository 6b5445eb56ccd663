"""FGD705."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check, moments
from fgclip_doctor.parts import modality
from fgclip_doctor.provenance import derived, likeness, position_tables, randomness
from fgclip_doctor.run import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

LONGEST = 64  # rows of a table in which a stretch can be told from smoothness


@check("FGD705", "position-table-wrong", Severity.ERROR)
def position_table_wrong(run: Run, *, alike: float = 0.2, linear: float = 0.9) -> Iterator[Finding]:
    """The positions beyond the old length are random, or the table was stretched twice.

    Why: a longer table is interpolated from the trained one. Where a loader leaves the new rows as initialised, long
    texts get random positions; where the stretch runs again on a table that is long already, neighbours are alike.
    Evidence: beside a trained short table, a long one whose further rows have a cosine under `alike` with the stretched
    short one, and are independent of each other; not where Adam's state shows that these rows are never used. Of one
    table: `linear` of its rows lie on the line between their neighbours (once stretched by four, 75 % do; twice, 94 %).
    Benign: FG-CLIP's third table, of which only the first rows are used; a model from scratch, whose short table is
    random too; a table of another length than a stretch by four gives. Image tables are not compared.
    Fix: interpolate before load_state_dict, and only if the table in the weights is shorter than the model's.
    Sources: Zhang et al. 2024 (Long-CLIP), section 3.2; mlfoundations/open_clip a87f11e (missing interpolation).
    """
    tables = {name: one for name, one in position_tables(run.tensors).items() if modality(name) != "image"}
    if not tables:
        raise Missing("no table of text positions is in the weights")
    random: dict[str, tuple[Tensor, float]] = {}
    sound: set[tuple[int, ...]] = set()
    for long, short, made in derived(run, tables):
        rows = long.values()
        kept = (4 * short.shape[0] - long.shape[0]) // 3
        tail, look, trained = rows[kept:], randomness(rows[kept:]), randomness(short.values())
        cosine = likeness(tail, made[kept:])
        if look is None or trained is None or trained.independent:
            continue
        if not look.independent or abs(cosine) >= alike:
            sound.add(long.shape)
        elif _used(run, long.name, kept) is not False:
            random[long.name] = long, cosine
    for name, (long, cosine) in random.items():
        if long.shape in sound and _used(run, name, 0) is None:
            continue  # two tables share the positions, and which rows of which are used isn't known
        yield _finding(
            name, f"Most rows of {name} are random, and not interpolated from the table of short texts", cosine, long
        )
    for name, table in tables.items():
        if table.shape[0] >= LONGEST and (share := _on_lines(table.values())) >= linear:
            what = f"{name} looks stretched twice: {share:.0%} of its rows lie on the line between their neighbours"
            yield _finding(name, what, share, table)


def _finding(name: str, message: str, value: float, table: Tensor) -> Finding:
    twice = "twice" in message
    evidence = Evidence(
        name="rows on the line between their neighbours" if twice else "cosine with the stretched table",
        value=round(value, 4),
        expected="0.75 at most" if twice else "near 1",
        why="of the last half of the table" if twice else f"of the rows beyond the shared ones, of {table.shape[0]}",
        source=str(table.source),
    )
    return Finding(message=f"{message}: what it knew of these positions is lost.", where=name, evidence=(evidence,))


def _used(run: Run, name: str, kept: int) -> bool | None:
    """Whether any row from `kept` on ever had a gradient; None where Adam's state doesn't tell."""
    optimizer = run.checkpoint.optimizer
    index = optimizer.index_of(name) if optimizer else None
    rows = moments.alive_rows(optimizer, index) if optimizer and index is not None else None
    return None if rows is None or not rows.size else bool(rows[kept:].any())


def _on_lines(rows: NDArray[Any]) -> float:
    """The share of rows in the last half that are the mean of their neighbours, to a fifth of a usual step."""
    import numpy as np

    half = rows[len(rows) // 2 :].astype(np.float64)
    steps = np.linalg.norm(np.diff(half, axis=0), axis=1)
    bends = np.linalg.norm(np.diff(half, n=2, axis=0), axis=1)
    usual = float(np.median(steps))
    return float(np.mean(bends < 0.2 * usual)) if usual > 0 else 0.0
