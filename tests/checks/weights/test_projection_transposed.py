from __future__ import annotations

import numpy as np
import pytest

from fgclip_doctor import Missing
from fgclip_doctor_checks.weights.projection_transposed import projection_transposed
from tests.runs import checkpoint, run

RNG = np.random.default_rng(0)
PROJECTION = RNG.normal(0, 0.02, (64, 64))
TUNED = PROJECTION + RNG.normal(0, 1e-3, (64, 64))
ROLES = {"head.text": "text_projection.weight", "head.text_long": "text_filip_projection.weight"}


@pytest.mark.parametrize(
    ("base", "weights"),
    [
        ({"text_projection.weight": PROJECTION}, {"text_projection.weight": TUNED.T}),
        ({"text_projection": PROJECTION}, {"text_projection.weight": TUNED}),
        ({"text_projection.weight": PROJECTION}, {"text_projection": TUNED}),
        ({"text_projection.weight": PROJECTION}, {"other": TUNED, "text_projection.weight": TUNED.T}),
    ],
    ids=["same layout", "OpenAI's layout", "into OpenAI's layout", "among others"],
)
def test_the_transpose_of_the_base_is_named(base: dict[str, np.ndarray], weights: dict[str, np.ndarray]) -> None:
    [finding] = projection_transposed(run(checkpoint(weights), base=checkpoint(base)))
    assert finding.where == list(weights)[-1]


@pytest.mark.parametrize(
    ("base", "weights"),
    [
        ({"text_projection.weight": PROJECTION}, {"text_projection.weight": TUNED}),
        ({"text_projection": PROJECTION}, {"text_projection.weight": TUNED.T}),
        ({"text_projection.weight": PROJECTION + PROJECTION.T}, {"text_projection.weight": PROJECTION + PROJECTION.T}),
        ({"text_projection.weight": PROJECTION}, {"text_projection.weight": RNG.normal(0, 0.02, (64, 64))}),
    ],
    ids=["same layout", "OpenAI's layout", "symmetric", "a new matrix"],
)
def test_what_was_loaded_right_is_quiet(base: dict[str, np.ndarray], weights: dict[str, np.ndarray]) -> None:
    assert not list(projection_transposed(run(checkpoint(weights), base=checkpoint(base))))


def test_a_branch_head_that_is_the_transpose_of_its_elder_is_named() -> None:
    weights = {"text_projection.weight": PROJECTION, "text_filip_projection.weight": TUNED.T}
    [finding] = projection_transposed(run(checkpoint(weights), roles=ROLES))
    assert finding.where == "text_filip_projection.weight"
    copied = {**weights, "text_filip_projection.weight": TUNED}
    assert not list(projection_transposed(run(checkpoint(copied), roles=ROLES)))


@pytest.mark.parametrize("copy", [TUNED, TUNED.T])
def test_a_linear_branch_head_beside_a_bare_elder_is_quiet(copy: np.ndarray) -> None:
    """A bare parameter is used as x @ W or as F.linear(x, W): nothing says which copy is right."""
    weights = {"visual.proj": PROJECTION, "roi_projection.weight": copy}
    roles = {"head.image": "visual.proj", "head.region": "roi_projection.weight"}
    with pytest.raises(Missing, match="--base"):
        list(projection_transposed(run(checkpoint(weights), roles=roles)))


@pytest.mark.parametrize(("share", "expected"), [(0.6, 0), (0.7, 1)])
def test_flips_where_the_transpose_is_twice_as_near(share: float, expected: int) -> None:
    """share * W.T + (1 - share) * W lies (1 - share) from the transpose and share from W: a ratio of 1/2 at 2/3."""
    mixed = share * PROJECTION.T + (1 - share) * PROJECTION
    case = run(checkpoint({"w": mixed}), base=checkpoint({"w": PROJECTION}))
    assert len(list(projection_transposed(case))) == expected


def test_skipped_without_anything_to_compare() -> None:
    with pytest.raises(Missing, match="--base"):
        list(projection_transposed(run(checkpoint({"text_projection.weight": PROJECTION}))))
