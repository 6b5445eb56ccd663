"""A series with restarts, and what of it still stands."""

from __future__ import annotations

import numpy as np

from tests import runs


def test_without_a_restart_everything_stands() -> None:
    one = runs.series("loss", [3.0, 2.0, 1.0], steps=[1, 1, 5])
    assert one.standing is one


def test_a_restart_takes_the_place_of_what_it_redid() -> None:
    redone = runs.series("loss", [5.0, 4.0, 3.0, 2.5, 3.5, 3.1], steps=[10, 20, 30, 40, 30, 40], forwards=range(6))
    assert redone.legs == (slice(0, 4), slice(4, 6))
    standing = redone.standing
    assert standing.steps.tolist() == [10, 20, 30, 40]
    assert standing.values.tolist() == [5.0, 4.0, 3.5, 3.1]
    assert standing.forwards is not None
    assert standing.forwards.tolist() == [0, 1, 4, 5]


def test_the_loss_of_a_run_is_what_stands() -> None:
    run = runs.run(logged=[runs.series("loss", np.arange(6.0), steps=[1, 2, 3, 1, 2, 3])], roles={"loss.total": "loss"})
    assert run.loss("total").values.tolist() == [3.0, 4.0, 5.0]
