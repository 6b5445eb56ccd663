from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import ArrayLike

from fgclip_doctor import Missing
from fgclip_doctor_checks.weights.weights_empty import weights_empty
from tests.runs import checkpoint, run

FULL, EMPTY = np.ones((4, 4)), np.ones(0)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"head.weight": FULL, "vision.fc.weight": EMPTY, "vision.fc.bias": EMPTY}, 1),
        ({"head.weight": FULL, "vision.fc.weight": FULL}, 0),
        ({"head.weight": FULL, "placeholder": EMPTY}, 0),
        ({"head.weight": EMPTY}, 0),
    ],
    ids=["two are empty", "all are there", "a placeholder", "there is nothing else"],
)
def test_weights_without_elements(weights: dict[str, ArrayLike], expected: int) -> None:
    assert len(list(weights_empty(run(checkpoint(weights))))) == expected


def test_skipped_without_weights() -> None:
    with pytest.raises(Missing, match="no weights"):
        list(weights_empty(run(checkpoint({}))))
