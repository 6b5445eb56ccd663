from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fgclip_doctor import Missing, Run
from fgclip_doctor.observations import observe
from fgclip_doctor.recorded import Columns, LossSite, Recording
from fgclip_doctor.run import Fact, Source
from fgclip_doctor_checks.banks.bank_never_active import bank_never_active
from tests import features, runs
from tests.features import bank_run, saved
from tests.runs import series
from tests.watched_ranks import rank, site

RNG = np.random.default_rng(0)
NOISE, CONE = features.noise(RNG, 128, 64), features.cone(RNG, 128, 64)
ZEROS = (np.zeros((128, 64), np.float32), np.zeros((128, 64), np.float32))
ONES = (ZEROS[0] + 0.125, ZEROS[1] + 0.125)


def messages(run: Run, **thresholds: Any) -> list[str]:
    return [finding.message for finding in bank_never_active(run, **thresholds)]


@pytest.mark.parametrize("rows", [NOISE, ZEROS, ONES])
@pytest.mark.parametrize("full", [False, None])
def test_fires_where_nothing_was_enqueued(rows: features.Pairs, full: bool | None) -> None:
    (message,) = messages(bank_run(saved(rows, pointer=0, full=full, forwards=1920), bank_warmup=50))
    assert "Nothing was ever enqueued" in message


def test_fires_where_the_switch_is_still_off() -> None:
    run = bank_run(saved(CONE, pointer=40, full=True, enabled=False), bank_warmup=50)
    assert "switched off" in messages(run)[0]


def test_fires_where_no_row_changes() -> None:
    run = bank_run(saved(CONE, pointer=40, full=True, step=120), saved(CONE, pointer=40, full=True, step=240))
    assert "between step 120 and step 240" in messages(run)[0]


def mixed(rows: int) -> features.Pairs:
    images, texts = (np.concatenate([cone[:rows], noise[rows:]]) for cone, noise in zip(CONE, NOISE, strict=True))
    return images, texts


@pytest.mark.parametrize("rows", [8, 16, 32])
def test_fires_where_the_pointer_never_moves(rows: int) -> None:
    (message,) = messages(bank_run(saved(mixed(rows), pointer=0, full=None)))
    assert f"first rows (about {rows})" in message


@pytest.mark.parametrize(("rows", "pointer"), [(128, 0), (120, 0), (32, 32), (32, None)])
def test_quiet_where_it_moves(rows: int, pointer: int | None) -> None:
    """All rows are written, but for the end of the ring (another rule's matter); or it stands where they end."""
    assert not messages(bank_run(saved(mixed(rows), pointer=pointer, full=None)))


def named_by_epoch(steps: int, **facts: int) -> Run:
    """What MoCo saves: the number in the name counts epochs, and no optimizer's state counts steps."""
    case = bank_run(saved(NOISE, pointer=0, full=None, step=3), **facts)
    stated = {"epochs_done": Fact("epochs_done", facts["epochs_done"], Source("checkpoint_0003.pth", "epoch"))}
    case.checkpoints = (replace(case.checkpoint, facts=stated, trainer_step=None),)
    log = series("loss", np.ones(steps // 10), np.arange(steps // 10) * 10 + 10)
    case.series, case.roles = {"loss": log}, {**case.roles, "loss.total": "loss"}
    return case


@pytest.mark.parametrize("epochs", [2, 3, 4])
def test_a_number_that_counts_epochs_counts_no_steps(epochs: int) -> None:
    assert messages(named_by_epoch(300, epochs_done=epochs))


@pytest.mark.parametrize(("steps", "epochs"), [(190, 3), (300, 1)], ids=["within patience", "the number is another"])
def test_a_bank_may_be_in_its_warmup_still(steps: int, epochs: int) -> None:
    with pytest.raises(Missing, match="warmup"):
        messages(named_by_epoch(steps, epochs_done=epochs))


def waiting(*sites: LossSite, own: float | None = 400, full: bool = True, world_size: int = 1, **facts: float) -> Run:
    """A recorded run of 240 steps whose bank is full, and whose model waits for `own` steps with it."""
    more = {} if own is None else {"bank.warmup_steps": np.array(own)}
    case = bank_run(saved(CONE, pointer=40, full=full, more=more), bank_size=128)
    warmup = Source("rank-0.000.jsonl", "Namespace: bank_warmup_steps")
    case.facts = {**case.facts, "bank_warmup": Fact("bank_warmup", facts.get("bank_warmup", 50), warmup)}
    case.recording = Recording((replace(rank(0, *sites), world_size=world_size),), 240)
    return case


def joining(columns: int, step: int = 60) -> LossSite:
    changes = (Columns(0, 1, 32, 32), Columns(step, step + 1, 32, columns))
    return site(anchors=32, candidates=32, changes=changes)


BATCH = site(anchors=32, candidates=32)


@pytest.mark.parametrize(
    "sites", [(BATCH,), (BATCH, joining(24)), (BATCH, site(kind="sigmoid", anchors=32, candidates=32))]
)
def test_fires_where_a_full_bank_still_waits_for_a_longer_warmup_of_the_model(sites: tuple[LossSite, ...]) -> None:
    (message,) = messages(waiting(*sites))
    assert "bank.warmup_steps is 400, where the configuration says 50" in message


@pytest.mark.parametrize(
    "run",
    [
        waiting(joining(160)),
        waiting(BATCH, joining(40)),  # a sample of the rows
        waiting(BATCH, site("xbm.py:9", anchors=256, candidates=128, targets="other")),  # the bank alone
        waiting(BATCH, site("moco.py:9", anchors=32, candidates=129, targets="constant")),
        waiting(BATCH, own=None),  # used for something else, or in a loss that isn't seen
        waiting(BATCH, own=50),
        waiting(BATCH, own=239),
        waiting(BATCH, full=False),
        waiting(),
        waiting(site("own.py:3", targets="constant", anchors=32, candidates=11)),  # of no batch of pairs
    ],
)
def test_quiet_where_the_rows_may_count(run: Run) -> None:
    assert not messages(run)


@pytest.mark.parametrize(("loss", "state"), [(BATCH, "candidates of no recorded loss"), (joining(160), "in use, full")])
def test_a_full_bank_is_not_said_to_be_in_use_unseen(loss: LossSite, state: str) -> None:
    (seen,) = (one for one in observe(waiting(loss, own=None))[0] if one.name == "memory bank")
    assert state in str(seen.value)


def test_candidates_of_all_ranks_are_no_rows_of_a_bank() -> None:
    gathered = site(anchors=32, candidates=64)
    assert messages(waiting(gathered, world_size=2))
    assert not messages(waiting(gathered))


def test_carries_its_proof() -> None:
    (finding,) = bank_never_active(bank_run(saved(NOISE, pointer=0, full=False, forwards=1920), bank_warmup=50))
    proof = {one.name: one for one in finding.evidence}
    assert proof["pointer"].value == 0
    assert proof["optimizer steps done"].value == 240
    assert "1920 forwards" in proof["optimizer steps done"].why
    assert abs(float(str(proof["image rows: mean cosine between rows"].value))) < 0.01


@pytest.mark.parametrize(
    "run",
    [
        bank_run(saved(CONE, pointer=0, full=None)),  # a ring without a flag that has just wrapped
        bank_run(saved(CONE, pointer=0, full=False)),  # and one whose flag comes a step late
        bank_run(saved(CONE, pointer=40, full=False)),
        bank_run(saved(CONE, pointer=0, full=True, enabled=True)),
        bank_run(saved(CONE, pointer=0, full=True, step=120), saved(CONE[::-1], pointer=0, full=True, step=240)),
        bank_run(saved(CONE, pointer=4, full=True, step=240), saved(CONE, pointer=4, full=True, step=240)),  # a copy
    ],
)
def test_quiet_on_a_bank_in_use(run: Run) -> None:
    assert not messages(run)


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (bank_run(saved(NOISE, pointer=0, full=False), bank_warmup=50, bank_enabled=False), "switches the memory bank"),
        (bank_run(saved(NOISE, pointer=0, full=False, forwards=1920), bank_warmup=400), "warmup"),
        (bank_run(saved(NOISE, pointer=0, full=False, step=40)), "warmup"),
        (bank_run(saved(NOISE, pointer=0, full=False, enabled=False), bank_warmup=1000), "warmup"),
        (bank_run(saved(NOISE, pointer=None, full=None), bank_warmup=50), "neither the pointer"),
        (bank_run(saved((NOISE[0][:16], NOISE[1][:16]), pointer=0, full=None)), "too few"),
        (Run("test"), "no checkpoint"),
    ],
)
def test_skipped_without_evidence(run: Run, reason: str) -> None:
    with pytest.raises(Missing, match=reason):
        messages(run)


def test_flips_at_the_end_of_the_warmup() -> None:
    unused = saved(NOISE, pointer=0, full=False)
    assert messages(bank_run(unused, bank_warmup=216))  # 240 steps are more than 1.1 times it and two
    with pytest.raises(Missing):
        messages(bank_run(unused, bank_warmup=217))
    assert messages(bank_run(unused), patience=240)
    with pytest.raises(Missing):
        messages(bank_run(unused), patience=241)
    assert messages(bank_run(unused, max_steps=480), share=0.5)
    with pytest.raises(Missing):
        messages(bank_run(unused, max_steps=481), share=0.5)


@pytest.mark.parametrize(("candidates", "calls", "told"), [(160, 21, 1), (129, 21, 1), (160, 20, 0), (150, 21, 0)])
def test_a_warmup_of_unknown_length_is_over_where_all_rows_have_counted_for_long(
    candidates: int, calls: int, told: int
) -> None:
    """Rows that nothing was written to: with the batch's 32 candidates, or as in MoCo with the positive alone."""
    run = bank_run(saved(NOISE, pointer=0, full=False, step=40))
    run.recording = Recording((rank(0, site(anchors=32, candidates=candidates, calls=calls)),), 40)
    if told:
        assert "Nothing was ever enqueued" in messages(run)[0]
    else:
        with pytest.raises(Missing, match="warmup"):
            messages(run)


@pytest.mark.parametrize(
    ("pointer", "ready", "loss", "told"),
    [
        ([96, 20, 40], [0, 0, 0], BATCH, 1),
        ([20, 40, 96], [0, 0, 0], BATCH, 0),  # it hasn't wrapped yet
        ([96, 20, 40], [0, 1, 1], BATCH, 0),
        ([96, 20, 40], [0, 0, 0], joining(160), 0),
    ],
)
def test_a_flag_of_any_name_that_keeps_a_full_ring_out(
    pointer: list[int], ready: list[int], loss: LossSite, told: int
) -> None:
    flag = runs.tensor("is_ready", np.array([False]), "bool")
    run = bank_run(saved(CONE, pointer=40, full=None, more={"is_ready": flag}), bank_size=128, bank_warmup=50)
    run.recording = Recording((rank(0, loss),), 240)
    run.series = {"queue_ptr": series("queue_ptr", pointer), "is_ready": series("is_ready", ready)}
    found = messages(run)
    assert len(found) == told
    assert all("is_ready was never set" in one for one in found)


@pytest.mark.parametrize(
    ("pointer", "clock", "loss", "warmup", "told"),
    [
        ([96, 20, 40], [0, 1, 2], BATCH, 50, 1),
        ([20, 40, 96], [0, 1, 2], BATCH, 50, 0),  # it hasn't wrapped yet
        ([96, 20, 40], [0, 49, 50], BATCH, 50, 0),
        ([96, 20, 40], [4, 4, 4], BATCH, 50, 0),  # a setting, as the micro-batches of a step
        ([96, 20, 40], [0, 1, 2], joining(160), 50, 0),
        ([96, 20, 40], [0, 1, 2], BATCH, 40, 0),  # which is not what the module waits for
    ],
)
def test_a_counter_that_will_not_get_to_the_end_of_the_warmup(
    pointer: list[int], clock: list[int], loss: LossSite, warmup: int, told: int
) -> None:
    own = {"memory_start": np.array([50.0]), "clock": np.array([float(clock[-1])])}
    more = {name: runs.tensor(name, value, "int64") for name, value in own.items()}
    run = bank_run(saved(CONE, pointer=40, full=None, more=more), bank_size=128, bank_warmup=warmup)
    run.recording = Recording((rank(0, loss),), 240)
    run.series = {"queue_ptr": series("queue_ptr", pointer), "clock": series("clock", clock)}
    run.series["memory_start"] = series("memory_start", [50, 50, 50])
    found = messages(run)
    assert len(found) == told
    assert all("waits until 50, and clock is at 2 after 240 steps" in one for one in found)


@pytest.mark.parametrize(("pointer", "told"), [(32, 1), (None, 0)])
def test_a_pointer_that_moves_over_rows_that_stay_0(pointer: int | None, told: int) -> None:
    run = bank_run(saved(ZEROS, pointer=pointer, full=None, step=3))
    if told:
        assert "written to something else" in messages(run)[0]
    else:
        with pytest.raises(Missing, match="warmup"):
            messages(run)
