from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fgclip_doctor import Missing, Run
from fgclip_doctor.untrained import left, look
from tests.runs import checkpoint, run

RNG = np.random.default_rng(0)


def trained(rows: int = 48, columns: int = 96) -> Any:
    """Values whose rows and columns have norms of their own, as training makes them."""
    return RNG.normal(0, 0.02, (rows, columns)) * np.exp(RNG.normal(0, 0.5, (rows, 1)) + RNG.normal(0, 0.5, columns))


def model(*fresh: str) -> Run:
    names = [f"visual.blocks.{block}.{part}" for block in range(4) for part in ("attn.weight", "mlp.weight")]
    weights = {name: RNG.normal(0, 0.02, (48, 96)) if name in fresh else trained() for name in names}
    return run(checkpoint(weights))


def test_a_kind_that_is_random_in_every_block() -> None:
    fresh = [f"visual.blocks.{block}.attn.weight" for block in range(4)]
    made = model(*fresh)
    [((kind, why), names)] = left(made, look(made, 0.0), structured=0.4, between=0.05).items()
    assert (kind, sorted(names)) == ("visual.blocks.*.attn.weight", fresh)
    assert "50% of 8" in why


def test_a_trained_model_has_none_and_of_a_new_one_nothing_is_said() -> None:
    made = model()
    assert not left(made, look(made, 0.0), structured=0.4, between=0.05)
    new = model(*made.tensors)
    with pytest.raises(Missing, match="can't be told"):
        left(new, look(new, 0.0), structured=0.4, between=0.05)
    with pytest.raises(Missing, match="large enough"):
        look(run(checkpoint({"w.weight": np.ones((4, 4))})), 0.0)
