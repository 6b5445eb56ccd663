from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from fgclip_doctor import Missing, Run
from fgclip_doctor_checks.weights.texts_pooled_at_start import texts_pooled_at_start
from tests.runs import checkpoint, group, optimizer, run, state

TOKENS, POSITIONS = "text_model.embeddings.token_embedding.weight", "text_model.embeddings.position_embedding.weight"
UNUSED = "text_model.embeddings.position_embedding_res.weight"
IMAGE = "vision_model.embeddings.position_embedding.weight"


def trained(tokens: Sequence[int], positions: Sequence[int], *, step: int = 20, names: Sequence[str] = ()) -> Run:
    """Adam's state after gradients on these rows; all rows of the image tower's table had some."""
    names = names or (TOKENS, POSITIONS, UNUSED, IMAGE)
    squares = [np.zeros((64, 4)), np.zeros((16, 4)), np.zeros((16, 4)), np.ones((16, 4))][: len(names)]
    for square, rows in zip(squares, (tokens, positions), strict=False):
        square[list(rows), 1] = 1e-12
    states = [state(index, step, square, square) for index, square in enumerate(squares)]
    held = optimizer([group(0, list(range(len(names))))], states, dict(enumerate(names)))
    return run(checkpoint(dict(zip(names, squares, strict=True)), step, optimizer=held))


def test_one_token_at_one_position() -> None:
    [finding] = texts_pooled_at_start(trained([62], [0]))
    assert finding.where == TOKENS
    assert "62" in finding.message


@pytest.mark.parametrize(
    ("tokens", "positions"), [([62, 3], [0]), ([62], [0, 1]), ([62], [5]), (range(20), range(12)), ([62, 63], [0, 1])]
)
def test_more_than_one_is_quiet(tokens: Sequence[int], positions: Sequence[int]) -> None:
    """Few tokens, as of one and the same caption everywhere, are another fault."""
    assert not list(texts_pooled_at_start(trained(tokens, positions)))


@pytest.mark.parametrize(
    "unsure",
    [trained([62], [0], step=4), trained([], []), trained([62], [0], names=(TOKENS,))],
    ids=["the first steps", "frozen tables", "no positions"],
)
def test_skipped_where_nothing_tells(unsure: Run) -> None:
    with pytest.raises(Missing, match="no table"):
        list(texts_pooled_at_start(unsure))
