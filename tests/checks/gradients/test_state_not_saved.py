"""What a dry run saw beside the state dict: FGD114, and of a bank FGD203; and what a load changes: FGD115."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fgclip_doctor import Missing, Run
from fgclip_doctor.recorded import Rank, Recording, State, Unsaved
from fgclip_doctor_checks.banks.bank_not_in_checkpoint import bank_not_in_checkpoint
from fgclip_doctor_checks.gradients.load_changes_state import load_changes_state
from fgclip_doctor_checks.gradients.state_not_saved import state_not_saved
from tests import runs

ROWS = Unsaved("queue", "tensor", (16, 4), bank=True, counts=False)
POINTER = Unsaved("queue_ptr", "number", (), bank=False, counts=False, first=0, last=12)
CALLS = Unsaved("calls", "number", (), bank=False, counts=True, first=0, last=12)
WIDTH = Unsaved("width", "number", (), bank=False, counts=False, first=3, last=8)
MEAN = Unsaved("centre", "tensor", (4,), bank=False, counts=False)


def dry(*unsaved: Unsaved, seen: bool = True, **fields: Any) -> Run:
    made = runs.run(
        runs.checkpoint({"queue": np.zeros((16, 4)), "queue_ptr": np.zeros(())}),
        roles={"bank.image_keys": "queue", "bank.pointer": "queue_ptr"},
    )
    state = State(12, unsaved, **fields) if seen else None
    made.recording = Recording((Rank(0, 1, "recording", state=state),), 12)
    return made


@pytest.mark.parametrize(
    ("unsaved", "bank", "rest"),
    [
        ((), set(), set()),
        ((ROWS, POINTER), {"queue, queue_ptr"}, set()),
        ((POINTER,), {"queue_ptr"}, set()),  # rows that are saved, and nobody knows which were written
        ((CALLS, MEAN, WIDTH), set(), {"calls", "centre"}),  # the size of a batch is no state
    ],
)
def test_a_bank_and_the_rest_are_told_apart(unsaved: tuple[Unsaved, ...], bank: set[str], rest: set[str]) -> None:
    run = dry(*unsaved)
    assert {finding.where for finding in bank_not_in_checkpoint(run)} == bank
    assert {finding.where for finding in state_not_saved(run)} == rest


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({}, []),
        ({"changed": ("head.weight",)}, ["head.weight"]),
        ({"late": ("made",), "changed": ("head.weight",)}, ["head.weight", "made"]),
        ({"failed": "RuntimeError: Missing key"}, ["load_state_dict"]),
    ],
)
def test_a_load_that_changes_something_is_a_finding(fields: dict[str, Any], where: list[str]) -> None:
    assert [finding.where for finding in load_changes_state(dry(**fields))] == where


def test_what_was_not_compared_is_skipped() -> None:
    for check in (state_not_saved, load_changes_state):
        with pytest.raises(Missing, match="only a dry run"):
            list(check(dry(seen=False)))
    with pytest.raises(Missing, match="too large"):
        list(load_changes_state(dry(skipped="the model is too large")))
    with pytest.raises(Missing, match="too large"):
        list(bank_not_in_checkpoint(dry(skipped="the model is too large")))
