from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fgclip_doctor import Missing
from fgclip_doctor.recorded import LossSite
from fgclip_doctor.terms import Term, logged_candidates, null_of, scale_with_level, terms
from tests.watched_ranks import rank, site, watched


def with_nan(first: int) -> LossSite:
    """Calls whose logits are NaN from the `first` on: nothing is allowed among them, so one candidate is counted."""
    one = site()
    bad = np.arange(len(one.loss)) >= first
    return replace(
        one,
        loss=np.where(bad, np.nan, one.loss),
        null=np.where(bad, np.nan, one.null),
        candidates=np.where(bad, 1 - 1e-7, one.candidates),
    )


def test_a_site_is_read_as_far_as_its_logits_are_numbers() -> None:
    run = watched(rank(0, with_nan(5)), dimension=64)
    (term,) = terms(run)
    assert isinstance(term, Term)
    assert (term.candidates, term.since) == (8, 0)
    assert np.isfinite(term.null.level)
    log = logged_candidates(run, term.name)
    assert log is not None
    assert log.values.tolist() == [8.0] * 5


def test_a_site_without_a_single_number_is_no_term() -> None:
    run = watched(rank(0, replace(with_nan(0), candidates=np.full(20, 8.0))), dimension=64)
    (reason,) = terms(run)
    assert isinstance(reason, Missing)
    with pytest.raises(Missing, match="not finite"):
        logged_candidates(run, "loss.py:12")


@pytest.mark.parametrize("scale", [1.0, 14.3, 30.0, 100.0, 200.0, 400.0])
def test_the_spread_of_logits_tells_their_scale(scale: float) -> None:
    level = null_of(anchors=8, candidates=60, scale=scale, dimension=64).level
    assert scale_with_level(level, 8, 60, 64) == pytest.approx(scale, rel=5e-3)


def test_logits_that_spread_like_no_unit_features_have_no_scale() -> None:
    assert scale_with_level(400.0, 8, 60, 64) is None  # that of scale 1,400
    assert scale_with_level(4.0, 8, 60, 64) is None  # under ln 60
