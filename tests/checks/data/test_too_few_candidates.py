from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fgclip_doctor.recorded import LossSite
from fgclip_doctor.run import Missing, Plan
from fgclip_doctor_checks.data.too_few_candidates import too_few_candidates
from tests import runs
from tests.annotated import audited, records


def found(run: Any, **thresholds: float) -> dict[str, float]:
    """The candidates of each loss that has too few."""
    return {finding.where: finding.evidence[0].value for finding in too_few_candidates(run, **thresholds)}


GLOBAL, REGION = "candidates of the global loss", "candidates of the region loss"


def test_a_batch_of_four_without_a_bank_gives_two_bits(tmp_path: Path) -> None:
    run = audited(tmp_path, records(40), micro_batch=4, world_size=1, regions_per_sample=1.05)
    assert found(run) == {GLOBAL: 4, REGION: pytest.approx(4.2)}
    assert "2.00 bits at most" in next(iter(too_few_candidates(run))).message


def test_regions_of_the_data_are_candidates(tmp_path: Path) -> None:
    run = audited(tmp_path, records(200), micro_batch=8, world_size=1)
    assert run.number("regions_per_sample") > 2
    assert found(run) == {GLOBAL: 8}


def test_the_rows_of_a_bank_are_candidates(tmp_path: Path) -> None:
    run = audited(tmp_path, records(40), micro_batch=4, world_size=1, regions_per_sample=1.05, bank_size=128)
    assert REGION not in found(run)


def test_ranks_add_candidates_and_accumulation_does_not(tmp_path: Path) -> None:
    assert GLOBAL in found(audited(tmp_path, records(40), micro_batch=4, accumulation=64))
    assert found(audited(tmp_path, records(40), micro_batch=4, world_size=8)) == {}


def test_it_flips_at_the_threshold() -> None:
    assert found(runs.run(facts={"micro_batch": 11})) == {}
    assert found(runs.run(facts={"micro_batch": 10})) == {GLOBAL: 10}
    assert found(runs.run(facts={"micro_batch": 11}), least=12) == {GLOBAL: 11}


def test_one_candidate_is_a_loss_of_nothing() -> None:
    (finding,) = too_few_candidates(runs.run(facts={"micro_batch": 1}))
    assert "is 0 and has no gradient" in finding.message


def test_what_is_planned_or_has_no_bound_is_no_finding() -> None:
    planned = runs.run(facts={"micro_batch": 4})
    planned.plan = Plan(candidates={0: 4.0})
    for run in (planned, runs.run(facts={"micro_batch": 4, "loss_kind": "sigmoid"}), runs.run()):
        with pytest.raises(Missing):
            list(too_few_candidates(run))


@pytest.mark.parametrize(("targets", "kind", "few"), [("diagonal", "softmax", True), ("constant", "softmax", False)])
def test_recorded_candidates_win(targets: str, kind: str, few: bool) -> None:
    counts = np.full(5, 6)
    values = np.ones(5)
    site = LossSite("train.py:7", kind, targets, 0, counts, counts, counts, counts, values, values, values)
    run = runs.watched(roles={}, sites=(site,))
    run.facts.update(runs.run(facts={"micro_batch": 64}).facts)
    assert found(run) == ({"candidates of the train.py:7 loss": 6} if few else {})


def test_losses_with_as_many_candidates_are_told_as_one() -> None:
    values = np.ones(5)

    def site(place: int, count: int) -> LossSite:
        counts = np.full(5, count)
        return LossSite(
            f"train.py:{place}", "softmax", "diagonal", 0, counts, counts, counts, counts, values, values, values
        )

    run = runs.watched(roles={}, sites=(site(7, 6), site(8, 6), site(9, 4)))
    places = "candidates of the train.py:7, train.py:8 losses", "candidates of the train.py:9 loss"
    assert found(run) == dict(zip(places, (6, 4), strict=True))


def test_logged_candidates_win() -> None:
    logged = [
        runs.series("region_loss", [1.0] * 20),
        runs.series("region_candidates", [6.0] * 20),
    ]
    run = runs.run(facts={"micro_batch": 64}, roles={"loss.region": "region_loss"}, logged=logged)
    assert found(run) == {REGION: 6}
