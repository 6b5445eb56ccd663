from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fgclip_doctor import Missing, Run
from fgclip_doctor_checks.banks.bank_not_in_checkpoint import bank_not_in_checkpoint
from tests import features, runs
from tests.features import bank_run, saved

CONE = features.cone(np.random.default_rng(0), 128, 64)
HALF = tuple(np.concatenate([rows[:64], np.zeros_like(rows[64:])]) for rows in CONE)
WEIGHTS = {"visual_projection.weight": np.ones((64, 32))}


def messages(run: Run) -> list[str]:
    return [finding.message for finding in bank_not_in_checkpoint(run)]


def bankless(step: int = 240, trainer_step: int | None = 240, **facts: Any) -> Run:
    return runs.run(runs.checkpoint(WEIGHTS, step, trainer_step=trainer_step), facts=facts)


def test_fires_where_the_configured_bank_is_not_saved() -> None:
    (message,) = messages(bankless(bank_size=128, bank_enabled=True, bank_warmup=50))
    assert "holds none" in message


def test_fires_without_the_pointer() -> None:
    (message,) = messages(bank_run(saved(CONE, pointer=None, full=True)))
    assert "its pointer isn't" in message


def test_quiet_on_a_bank_saved_whole() -> None:
    assert not messages(bank_run(saved((HALF[0], HALF[1]), pointer=64, full=False)))
    assert not messages(bank_run(saved((HALF[0], HALF[1]), pointer=64, full=None)))
    assert not messages(bank_run(saved(CONE, pointer=64, full=None)))  # as MoCo's, read whole from the start


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (bankless(), "doesn't ask"),
        (bankless(bank_size=0), "doesn't ask"),
        (bankless(bank_size=128, bank_enabled=False), "doesn't ask"),
        (bankless(bank_size=128, bank_warmup=400), "warmup"),
        (runs.run(runs.checkpoint({**WEIGHTS, "xbm.feats": np.ones((4, 64))}), facts={"bank_size": 128}), "may be"),
        (runs.run(runs.checkpoint({**WEIGHTS, "rois.kept": np.ones((128, 64))}), facts={"bank_size": 128}), "may be"),
        (bank_run(saved(CONE, pointer=None, full=True, more={"cursor": np.array(3)})), "may be the pointer"),
        (Run("test"), "no checkpoint"),
    ],
)
def test_skipped_without_evidence(run: Run, reason: str) -> None:
    with pytest.raises(Missing, match=reason):
        messages(run)


def test_an_export_is_not_resumed() -> None:
    exported = runs.run(runs.checkpoint(WEIGHTS, None), facts={"bank_size": 128, "bank_warmup": 0})
    with pytest.raises(Missing, match="export"):
        messages(exported)
