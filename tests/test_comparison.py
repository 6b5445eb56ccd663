"""A run beside a good one: what differs beyond chance is told once, and by which finding it is accounted for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fgclip_doctor.comparison import compare
from fgclip_doctor.diagnosis import Comparison, Report
from fgclip_doctor.findings import Evidence, Finding, Severity
from fgclip_doctor.run import Event, Run, Source
from tests import runs

ROUNDING = Finding(
    code="FGD106", name="updates-lost-to-rounding", severity=Severity.ERROR, message="Lost.", where="blocks.0.weight",
    evidence=(Evidence(name="lost", value=0.9),),
)  # fmt: skip
NEVER_ON = replace(ROUNDING, code="FGD201", name="bank-never-active", where="queue")


def report(*findings: Finding) -> Report:
    return Report("run", {}, findings, (), (), (), ())


def trained(seed: int, *, loss: float = 0.7, dtype: str = "float32", **facts: float) -> Run:
    """A run of 200 steps whose region loss ends at `loss`."""
    random = np.random.default_rng(seed)
    tensors = {f"blocks.{layer}.weight": random.normal(size=(4, 4)) for layer in range(8)}
    saved = runs.checkpoint(tensors, 200, dtype=dtype)
    return runs.run(
        replace(saved, optimizer=runs.adam(saved.tensors, step=200)),
        facts={"micro_batch": 4, "candidates": 4, "scale": 14.24, "dimension": 64, "learning_rate": 1e-3} | facts,
        roles={"loss.region": "region_loss"},
        logged=(runs.series("region_loss", random.normal(loss, 0.1, 200)),),
    )


def differences(comparison: Comparison) -> dict[str, tuple[str, ...]]:
    return {one.what: one.explained_by for one in comparison.differences}


def test_another_seed_is_no_difference() -> None:
    assert differences(compare(trained(1), report(), trained(2), report())) == {}


def test_what_was_learnt_less_is_told_with_its_cause() -> None:
    found = compare(trained(1, loss=1.4), report(ROUNDING), trained(2), report())
    assert differences(found) == {"bits learnt by the region loss": ("FGD106",)}
    (difference,) = found.differences
    assert float(difference.here) < 0.2 < 0.8 < float(difference.there)  # type: ignore[arg-type]


def test_what_nothing_accounts_for_is_left_unexplained() -> None:
    found = compare(trained(1, learning_rate=5e-6), report(), trained(2), report())
    assert [one.what for one in found.unexplained] == ["learning_rate"]


def test_a_finding_that_the_run_no_longer_has_accounts_for_what_changed() -> None:
    good = trained(1)
    good.events.append(Event("bank-on", 50, "on", Source("log")))
    found = compare(good, report(), trained(2), report(NEVER_ON))
    assert found.fixed == (NEVER_ON,)
    assert differences(found) == {"event bank-on": ("FGD201",)}


def test_findings_are_new_or_unchanged_by_rule_and_place() -> None:
    elsewhere = replace(NEVER_ON, where="other/queue")
    found = compare(trained(1), report(ROUNDING, NEVER_ON), trained(2), report(elsewhere))
    assert (found.new, found.unchanged, found.fixed) == ((ROUNDING,), (NEVER_ON,), ())


def test_tensors_that_differ_in_the_same_way_are_one_line() -> None:
    found = compare(trained(1, dtype="bfloat16"), report(ROUNDING), trained(2), report())
    assert differences(found)["dtype of 8 tensors"] == ("FGD106",)


def test_a_difference_is_accounted_for_by_causes_and_by_none_that_is_about_something_else() -> None:
    scale_stuck = replace(ROUNDING, code="FGD303", where="logit_scale", explained_by=("FGD106",))
    found = compare(
        trained(1, loss=1.4, max_grad_norm=0, logit_scale_init=2.7),
        report(ROUNDING, NEVER_ON, scale_stuck),
        trained(2, max_grad_norm=1, logit_scale_init=4.6),
        report(),
    )
    assert differences(found) == {
        "bits learnt by the region loss": ("FGD106",),  # of as many candidates, so no bank accounts for it
        "logit_scale_init": ("FGD303",),  # a symptom, as no cause is about scales
        "max_grad_norm": (),
    }


def test_more_candidates_are_said_and_a_bank_accounts_for_them() -> None:
    found = compare(trained(1, loss=1.4), report(NEVER_ON), trained(2, candidates=84), report())
    assert differences(found) == {
        "bits learnt by the region loss of 4 candidates, 84 there": ("FGD201",),
        "candidates": (),
    }


@pytest.mark.parametrize(
    ("dtype", "share", "told"),
    [("float32", 1e-5, False), ("float32", 4e-3, True), ("bfloat16", 4e-3, False), ("bfloat16", 4e-2, True)],
)
def test_a_gradient_that_is_rounding_in_both_is_no_difference(dtype: str, share: float, told: bool) -> None:
    """What is smaller than the numbers of its type are apart is no gradient, as that of a key's bias isn't."""
    fine, other = trained(1), trained(2)
    for run, kind, least in ((fine, "float32", 1e-7), (other, dtype, share)):
        moments = {
            index: runs.state(
                index, 200, np.full((4, 4), 1e-9), np.full((4, 4), (least if index == 0 else 1.0) ** 2), dtype=kind
            )
            for index in run.optimizer.indices
        }
        run.checkpoints = (replace(run.checkpoint, optimizer=replace(run.optimizer, states=moments)),)
    assert bool(differences(compare(fine, report(), other, report()))) == told
