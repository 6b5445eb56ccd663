from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fgclip_doctor import Finding, Missing
from fgclip_doctor.recorded import Recording
from fgclip_doctor.run import Source
from fgclip_doctor_checks.losses.dead_loss_term import dead_loss_term
from tests import runs
from tests.checks.losses.healthy_logs import Floats, learning, noisy
from tests.watched_ranks import rank

ROLES = {"loss.total": "loss", "loss.global": "loss_global", "loss.region": "loss_region", "loss.hard": "loss_hard"}
FACTS = {"micro_batch": 16, "accumulation": 1, "regions_per_sample": 2.0}
RNG = np.random.default_rng(0)
GLOBAL, REGION, HARD = (
    noisy(RNG, learning(200)),
    noisy(RNG, learning(200, 3.0, 1.0)),
    noisy(RNG, learning(200, 2.4, 0.9)),
)
SUM = GLOBAL + 0.1 * REGION + 0.5 * HARD


def found(total: Floats = SUM, *, facts: Any = None, every: Any = None, **terms: Floats) -> list[Finding]:
    """`every` gives the rows at which a term was logged."""
    steps = np.arange(1, len(total) + 1)
    logged = [runs.series("loss", total)]
    for name, values in terms.items():
        rows = (every or {}).get(name, np.ones(len(total), dtype=bool))
        logged.append(runs.series(f"loss_{name}", values[rows], steps[rows]))
    return list(dead_loss_term(runs.run(facts={**FACTS, **(facts or {})}, roles=ROLES, logged=logged)))


def where(findings: list[Finding]) -> list[str]:
    return [one.where for one in findings]


TERMS = {"global": GLOBAL, "region": REGION, "hard": HARD}


def test_quiet_on_a_sound_sum() -> None:
    assert not found(**TERMS)
    assert not found(np.round(SUM, 3), **{name: np.round(one, 3) for name, one in TERMS.items()})


def test_fires_on_a_term_that_never_changes() -> None:
    stuck = np.full(200, np.log(11))
    (finding,) = found(GLOBAL + 0.5 * stuck, **{"global": GLOBAL, "hard": stuck})
    assert finding.where == "loss_hard"
    assert "2.3979" in finding.message


def test_fires_on_a_constant_that_nobody_logged() -> None:
    (finding,) = found(GLOBAL + 0.1 * REGION + 0.5 * np.log(11), **{"global": GLOBAL, "region": REGION})
    assert finding.where == "loss"
    assert finding.evidence[0].value == pytest.approx(1.199, abs=1e-3)


def bursts(share: float = 0.5) -> Any:
    """Rows without those that an exception takes out, in bursts of four."""
    return np.random.default_rng(1).random(50).repeat(4) > share


def test_quiet_on_a_further_term_that_is_not_logged_and_moves() -> None:
    apart = 0.05 + 0.001 * RNG.normal(size=200)  # a regulariser that hardly does
    assert not found(GLOBAL + 0.1 * REGION + apart, **{"global": GLOBAL, "region": REGION})


def test_quiet_on_a_term_that_is_never_added() -> None:
    assert not found(GLOBAL + 0.5 * HARD, **TERMS)  # a weight of 0 may be meant


def test_fires_on_terms_that_are_swallowed() -> None:
    there = bursts()
    total = GLOBAL + np.where(there, 0.1 * REGION + 0.5 * HARD, 0.0)
    assert where(found(total, every={"region": there, "hard": there}, **TERMS)) == ["loss_region", "loss_hard"]


def test_quiet_on_a_term_that_a_recorder_samples_beside_the_log() -> None:
    run = runs.run(facts=FACTS, roles=ROLES, logged=[runs.series("loss", GLOBAL + REGION)])
    looked_at = np.r_[0:20, 29, 39, 49, 59, 99, 199]
    seen = runs.series("loss at train.py:131", REGION[looked_at], steps=looked_at)
    run.recording = Recording((rank(0),), 200)
    run.series[seen.name] = replace(seen, source=Source(run.recording.first.path, "train.py:131"))
    with pytest.raises(Missing):
        list(dead_loss_term(run))
    run.series[seen.name] = seen  # in the very log that has the total
    assert list(dead_loss_term(run))


def test_fires_on_a_term_that_is_logged_and_not_added() -> None:
    there = bursts(0.3)
    (finding,) = found(GLOBAL + 0.1 * REGION + 0.5 * np.where(there, HARD, 0.0), **TERMS)
    assert finding.where == "loss_hard"
    assert finding.evidence[0].value == pytest.approx(1 - there.mean(), abs=0.02)


@pytest.mark.parametrize("batch", [{"micro_batch": 2, "regions_per_sample": 0.5}, {"micro_batch": 0}])
def test_batches_without_a_region_are_sound(batch: Any) -> None:
    there = RNG.random(200) > 0.4
    assert not found(
        GLOBAL + np.where(there, REGION, 0),
        every={"region": there},
        facts=batch,
        **{"global": GLOBAL, "region": REGION},
    )


def test_quiet_on_terms_that_are_off_or_logged_less_often_or_coarsely() -> None:
    assert not found(GLOBAL, **{"global": GLOBAL, "hard": np.zeros(200)})
    assert not found(every={"hard": np.arange(200) % 10 == 0}, **TERMS)
    coarse = runs.run(
        facts=FACTS,
        roles=ROLES,
        logged=[runs.series("loss_global", GLOBAL), runs.series("loss_hard", np.full(200, 0.7))],
    )
    assert len(list(dead_loss_term(coarse))) == 1
    coarse.series["loss_hard"] = replace(coarse.series["loss_hard"], resolution=0.1)
    assert not list(dead_loss_term(coarse))


def test_flips_at_the_share() -> None:
    there = np.ones(200, dtype=bool)
    there[[20, 21, 60, 61, 62, 120, 121, 122, 160, 161]] = False  # 5 %
    total = GLOBAL + np.where(there, HARD, 0.0)
    terms = {"global": GLOBAL, "hard": HARD}
    assert found(total, every={"hard": there}, **terms)
    there[161] = True
    assert not found(total, every={"hard": there}, **terms)


def test_skipped_without_terms() -> None:
    with pytest.raises(Missing, match="no term"):
        found()
    with pytest.raises(Missing, match="20 times"):
        list(dead_loss_term(runs.run(logged=[runs.series("loss_global", GLOBAL[:19])])))
