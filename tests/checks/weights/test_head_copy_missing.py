from __future__ import annotations

import numpy as np
import pytest

from fgclip_doctor import Missing, Run
from fgclip_doctor_checks.weights.head_copy_missing import head_copy_missing
from tests.runs import adam, checkpoint, run

HEAD, COPY = "visual_projection.weight", "roi_projection.weight"
ROLES = {"head.image": HEAD, "head.region": COPY}
SHAPE, STEPS, WIDTH = (64, 96), 50, 0.04


def random(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, WIDTH, SHAPE)


def trained(seed: int = 0) -> np.ndarray:
    """With the spread of row norms and the large singular values that training gives."""
    rng = np.random.default_rng(seed)
    return random(seed) * rng.uniform(0.3, 2, (64, 1)) + np.outer(rng.normal(0, 0.1, 64), rng.normal(0, 1, 96))


def started(head: np.ndarray, copy: np.ndarray, *, lr: float | None = 1e-5, planned: int = 1000) -> Run:
    weights = checkpoint({HEAD: head, COPY: copy}, STEPS).tensors
    state = None if lr is None else adam(weights, step=STEPS, lr=lr)
    return run(checkpoint(weights, STEPS, optimizer=state), facts={"max_steps": planned}, roles=ROLES)


@pytest.mark.parametrize("lr", [1e-5, None], ids=["with an optimizer", "weights alone"])
def test_a_random_head_beside_a_trained_one_is_named(lr: float | None) -> None:
    [finding] = head_copy_missing(started(trained(), random(1), lr=lr))
    assert finding.where == COPY
    assert abs(float(str(finding.evidence[0].value))) < 0.1


@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_a_copy_is_quiet(noise: float) -> None:
    copy = trained() + noise * random(2)
    assert not list(head_copy_missing(started(trained(), copy)))


def test_a_head_that_was_trained_apart_is_quiet() -> None:
    assert not list(head_copy_missing(started(trained(0), trained(5))))


@pytest.mark.parametrize(("lr", "expected"), [(1.5e-4, 1), (1.7e-4, 0)])
def test_a_head_that_can_be_taught_is_a_choice(lr: float, expected: int) -> None:
    """Four widths of 0.04 are 1000 steps of 1.6e-4."""
    assert len(list(head_copy_missing(started(trained(), random(1), lr=lr)))) == expected


@pytest.mark.parametrize(
    "unsure",
    [started(random(0), random(1)), started(trained(), random(1)[:32]), started(trained(), random(1), lr=1e-3)],
    ids=["from scratch", "another shape", "moved too far"],
)
def test_skipped_where_nothing_tells(unsure: Run) -> None:
    with pytest.raises(Missing, match="no branch head"):
        list(head_copy_missing(unsure))
