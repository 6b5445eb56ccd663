"""A recording's banks, ranks and losses, as the files of JSON lines tell of them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fgclip_doctor.bank import banks, memory_bank
from fgclip_doctor.recorded import Reach
from fgclip_doctor.run import Missing, Run
from fgclip_doctor.sources import load
from fgclip_doctor.sources.following import Following
from fgclip_doctor.sources.recording import NEWEST
from fgclip_doctor_checks.banks.bank_never_active import bank_never_active

K, D = 12, 8
BUFFERS = [
    ["bank.image_queue", [D, K], "float32"],
    ["bank.text_queue", [D, K], "float32"],
    ["bank.queue_ptr", [1], "int64"],
]
HEAD = ["visual_projection.weight", [D, 5], "float32", True, 0]
LOSS = {"site": 0, "name": "loss.py:3", "of": "softmax", "step": 0, "forward": 1, "gradient": True, "anchors": 4.0}
LOSS |= {"candidates": 7.5, "loss": 1.0, "null": 2.0, "top1": 0.5, "first": 4, "last": 4, "lowest": 4, "highest": 7}


def rows(step: int, value: float) -> list[dict[str, Any]]:
    data = base64.b64encode(np.full((D, K), value, np.float32).tobytes()).decode()
    named = {"kind": "rows", "step": step, "shape": [D, K], "dtype": "float32", "data": data}
    return [{**named, "name": f"bank.{side}_queue"} for side in ("image", "text")]


def pointer(step: int, at: int) -> dict[str, Any]:
    return {"kind": "scalars", "step": step, "values": {"bank.queue_ptr": at}}


def recorded(directory: Path, *records: dict[str, Any], rank: int = 0) -> Run:
    start = {"kind": "start", "version": 1, "rank": rank, "world_size": 2}
    model = {"kind": "model", "step": 0, "parameters": [HEAD], "buffers": BUFFERS, "groups": [{"lr": 1e-3}]}
    step = {"kind": "step", "step": 40, "lr": [1e-3], "evaluating": {}, "gathers": [], "forwards": 40}
    lines = [json.dumps(record, separators=(",", ":")) for record in (start, model, *records, step)]
    (directory / f"rank-{rank}.000.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    return load([directory])


def test_a_bank_is_read_where_its_rows_were_written(tmp_path: Path) -> None:
    """Its pointer of a later step would call rows written that weren't."""
    run = recorded(tmp_path, *rows(1, 1.0), pointer(1, 2), *rows(16, 2.0), pointer(16, 5), pointer(40, 9))
    assert [(bank.checkpoint.step, bank.pointer) for bank in banks(run)] == [(1, 2), (16, 5)]
    assert memory_bank(run).pointer == 5
    assert run.checkpoint.step == 40


def test_a_ring_that_has_wrapped_was_written_as_far_as_its_pointer_was_seen(tmp_path: Path) -> None:
    """Alone, a pointer at 0 may be that of a bank that was never used."""
    run = recorded(tmp_path, pointer(1, 0), *rows(1, 1.0), pointer(8, 9), pointer(16, 0), *rows(16, 2.0))
    assert [bank.written for bank in banks(run)] == [None, 9]


def test_rows_of_the_end_are_those_of_the_latest_checkpoint(tmp_path: Path) -> None:
    run = recorded(tmp_path, *rows(40, 1.0), pointer(40, 9), *rows(40, 2.0))
    assert memory_bank(run).checkpoint is run.checkpoint
    assert (memory_bank(run).rows("image") == 2.0).all()


def test_the_first_and_the_newest_rows_are_kept(tmp_path: Path) -> None:
    looks = [record for step in range(1, 9) for record in (*rows(step, step), pointer(step, step))]
    assert [bank.checkpoint.step for bank in banks(recorded(tmp_path, *looks))] == [1, *range(9 - NEWEST, 9)]


def test_a_bank_of_which_only_the_names_are_known_has_no_rows(tmp_path: Path) -> None:
    run = recorded(tmp_path, pointer(40, 9))
    assert not banks(run)
    with pytest.raises(Missing, match="no values"):
        memory_bank(run).look()


def test_losses_say_which_candidates_carry_a_gradient(tmp_path: Path) -> None:
    reach = {
        "kind": "reach",
        "site": 0,
        "name": "loss.py:3",
        "of": "softmax",
        "anchors": True,
        "columns": 8,
        "reached": 4,
    }
    older = {"kind": "loss", **LOSS}
    run = recorded(tmp_path, reach, older, {**older, "forward": 2, "twins": 1.0})
    (site,) = run.watched.first.sites
    assert site.reach == Reach(anchors=True, columns=8, reached=4)
    assert site.candidates.tolist() == [7.5, 7.5]
    assert site.twins is not None
    np.testing.assert_array_equal(site.twins, [np.nan, 1.0])
    assert (site.targets, site.offset) == ("shifted", 4)


def test_a_loss_with_a_graph_and_no_call_is_left_out(tmp_path: Path) -> None:
    reach = {
        "kind": "reach",
        "site": 0,
        "name": "loss.py:3",
        "of": "softmax",
        "anchors": True,
        "columns": 8,
        "reached": 4,
    }
    assert recorded(tmp_path, reach).watched.first.sites == ()


def test_ranks_are_told_by_their_hashes(tmp_path: Path) -> None:
    hashes = {"kind": "digest", "step": 3, "values": {"bank.image_queue": "abc"}}
    updates = [
        {"kind": "updates", "step": step, "ratios": {}, "digest": digest} for step, digest in ((1, "p"), (2, ""))
    ]
    recorded(tmp_path, hashes, *updates)
    run = recorded(tmp_path, {**hashes, "values": {"bank.image_queue": "xyz"}}, *updates, rank=1)
    assert [rank.digests for rank in run.watched.ranks] == [
        {"bank.image_queue": {3: image}, "parameters": {1: "p"}} for image in ("abc", "xyz")
    ]


def test_a_recording_that_is_followed_can_be_seen_as_it_was_at_a_step(tmp_path: Path) -> None:
    steps = [{"kind": "step", "step": n, "lr": [0.1], "evaluating": {}, "gathers": [], "elapsed": n} for n in (5, 9)]
    recorded(tmp_path, steps[0], pointer(9, 3), steps[1])
    following = Following([tmp_path], base=None, facts={}, roles={})
    assert following.until(5) is None  # nothing was read yet
    assert (now := following.poll()) is not None
    assert now.watched.step == 40
    seen = [following.until(step) for step in (4, 5, 6, 9)]
    assert [run.watched.step for run in seen if run is not None] == [5, 5, 9, 9]
    assert ["bank.queue_ptr" in run.series for run in seen if run is not None] == [False, False, True, True]


@pytest.mark.parametrize(
    ("start", "known"), [({"lr": 0.0}, 1e-3), ({"lr": 2e-3}, 2e-3), ({"lr": 0.0, "initial_lr": 3.0}, 3.0)]
)
def test_a_rate_of_0_before_a_warmup_that_is_set_by_hand_is_no_frozen_group(
    start: dict[str, float], known: float, tmp_path: Path
) -> None:
    model = {"kind": "model", "step": 0, "parameters": [HEAD], "buffers": [], "groups": [start]}
    run = recorded(tmp_path, model, pointer(1, 0))
    assert run.optimizer.groups[0].initial_lr == known


@pytest.mark.parametrize(
    ("switch", "warmup", "configured"),
    [
        ("bank.queue_on", 10, None),
        ("bank.bank_enabled", 10, None),
        ("use_queue", 10, False),
        ("queue_on", 0, False),
    ],
)
def test_what_a_warmup_sets_is_no_configuration(
    tmp_path: Path, switch: str, warmup: int, configured: bool | None
) -> None:
    arguments = {"kind": "arguments", "of": "Namespace", "values": {"queue_warmup_steps": warmup}}
    run = recorded(tmp_path, arguments, {"kind": "scalars", "step": 40, "values": {switch: False}})
    fact = run.facts.get("bank_enabled")
    assert (None if fact is None else fact.value) == configured


def test_a_buffer_is_no_configuration(tmp_path: Path) -> None:
    buffers = [*BUFFERS, ["use_memory_bank", [], "bool"]]
    model = {"kind": "model", "step": 0, "parameters": [HEAD], "buffers": buffers, "groups": [{"lr": 1e-3}]}
    seen = {"kind": "scalars", "step": 40, "values": {"use_memory_bank": False, "bank.queue_warmup_steps": 10}}
    assert "bank_enabled" not in recorded(tmp_path, model, seen).facts


def test_what_the_arguments_switch_off_is_off(tmp_path: Path) -> None:
    told = {"queue_warmup_steps": 10, "use_memory_bank": False}
    arguments = {"kind": "arguments", "of": "Namespace", "values": told}
    run = recorded(tmp_path, arguments, {"kind": "scalars", "step": 40, "values": {"bank.queue_on": False}})
    assert run.facts["bank_enabled"].value is False


@pytest.mark.parametrize("seen", [(False, False), (False, True), (True, False)])
def test_a_switch_that_stays_off_is_a_bank_that_was_never_active(tmp_path: Path, seen: tuple[bool, bool]) -> None:
    arguments = {"kind": "arguments", "of": "Namespace", "values": {"queue_warmup_steps": 10}}
    looks = [
        {"kind": "scalars", "step": at, "values": {"bank.queue_on": on}} for at, on in zip((20, 40), seen, strict=True)
    ]
    run = recorded(tmp_path, arguments, *rows(1, 1.0), *looks, pointer(40, 9), *rows(40, 2.0))
    messages = [finding.message for finding in bank_never_active(run)]
    assert ["switched off" in one for one in messages] == ([] if any(seen) else [True])
