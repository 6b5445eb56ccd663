from __future__ import annotations

import numpy as np
import pytest

from fgclip_doctor import Missing, Run
from fgclip_doctor.provenance import stretched
from fgclip_doctor_checks.weights.position_table_wrong import position_table_wrong
from tests.runs import checkpoint, group, optimizer, run, state

SHORT, LONG, MASKED = (f"text_model.embeddings.position_embedding{kind}.weight" for kind in ("", "_res", "_ori"))
RNG = np.random.default_rng(0)
TRAINED = np.cumsum(RNG.normal(0, 0.01, (48, 64)), axis=0)
KEPT, LENGTH = 20, 132
RANDOM = RNG.normal(0, 0.02, (LENGTH, 64))


def long(table: np.ndarray = TRAINED, length: int = LENGTH) -> np.ndarray:
    rows = stretched(table, length)
    assert rows is not None
    return rows


def left(ours: float, short: np.ndarray = TRAINED) -> np.ndarray:
    """A stretched table with a share of random values in its further rows."""
    rows = long(short)
    rows[KEPT:] += ours * (RANDOM[KEPT:] - rows[KEPT:])
    return rows


def saved(used: int | None = None, **tables: np.ndarray) -> Run:
    """Tables by short names; `used` is how many rows of the long one had a gradient."""
    names = {"short": SHORT, "long": LONG, "masked": MASKED}
    weights = {names[name]: rows for name, rows in tables.items()}
    if used is None:
        return run(checkpoint(weights))
    square = np.zeros((LENGTH, 64))
    square[:used] = 1e-9
    held = optimizer([group(0, [0])], [state(0, 9, square, square)], {0: LONG})
    return run(checkpoint(weights, optimizer=held))


@pytest.mark.parametrize("used", [None, LENGTH, KEPT + 1])
def test_random_rows_beyond_the_shared_ones(used: int | None) -> None:
    [finding] = position_table_wrong(saved(used, short=TRAINED, long=left(1.0)))
    assert finding.where == LONG


@pytest.mark.parametrize(
    "quiet",
    [
        saved(short=TRAINED, long=long()),
        saved(short=TRAINED, long=long() + RNG.normal(0, 0.02, (LENGTH, 64))),
        saved(KEPT, short=TRAINED, long=left(1.0)),
        saved(short=TRAINED, long=long(), masked=left(1.0)),
        saved(short=RANDOM[:48], long=RNG.normal(0, 0.02, (LENGTH, 64))),
        saved(short=TRAINED, long=left(1.0)[:-1]),
    ],
    ids=["stretched", "and trained", "never used", "the masked one of two", "from scratch", "no stretch by four"],
)
def test_quiet(quiet: Run) -> None:
    assert not list(position_table_wrong(quiet))


@pytest.mark.parametrize(("cosine", "expected"), [(0.17, 1), (0.23, 0)])
def test_the_cosine_decides(cosine: float, expected: int) -> None:
    rows, made = long(), long()[KEPT:]
    noise = RNG.normal(0, 1, made.shape)
    noise -= made * (noise * made).sum() / (made**2).sum()
    unit = noise / np.linalg.norm(noise)
    rows[KEPT:] = cosine * made / np.linalg.norm(made) + np.sqrt(1 - cosine**2) * unit
    found = list(position_table_wrong(saved(short=TRAINED, long=rows)))
    assert len(found) == expected


def test_a_table_that_was_stretched_twice() -> None:
    again = long(long(), 4 * LENGTH - 3 * KEPT)
    [finding] = position_table_wrong(saved(long=again))
    assert "twice" in finding.message


def test_image_tables_are_not_compared() -> None:
    with pytest.raises(Missing, match="no table"):
        list(position_table_wrong(run(checkpoint({"vision_model.embeddings.position_embedding.weight": RANDOM}))))
