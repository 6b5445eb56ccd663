"""Two ranks under torchrun against one process with the joined batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fgclip_doctor.core import pretrained
from fgclip_doctor.training.loop import train
from tests.training.test_loop import equal, state
from tests.training.two_ranks import CASES, MODEL, PASSES, outcome, run_settings

ROOT = Path(__file__).parents[2]
RTOL = 1e-5


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory in which two ranks left what they found."""
    directory = tmp_path_factory.mktemp("ranks")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "tests.training.two_ranks", str(directory)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "checks")])},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    return directory


@pytest.fixture(scope="module")
def ranks(out: Path) -> list[dict[str, Any]]:
    """The outcome of every case, by rank."""
    return [torch.load(out / f"outcomes-{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope="module", params=list(CASES))
def case(request: pytest.FixtureRequest, ranks: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The outcome of a case on one process and on two ranks, which agree to the bit."""
    one, other = (rank[request.param] for rank in ranks)
    assert equal(one, other)
    return outcome(request.param), one


def test_losses_are_those_of_the_joined_batch(case: tuple[dict[str, Any], dict[str, Any]]) -> None:
    joined, split = case
    assert len(joined["terms"]) == len(split["terms"]) == PASSES
    for alone, together in zip(joined["terms"], split["terms"], strict=True):
        assert alone.keys() == together.keys()
        for name, values in alone.items():
            assert together[name] == pytest.approx(values, rel=RTOL, abs=1e-6), name


def test_gradients_are_those_of_the_joined_batch(case: tuple[dict[str, Any], dict[str, Any]]) -> None:
    joined, split = case
    for alone, together in zip(joined["gradients"], split["gradients"], strict=True):
        assert alone.keys() == together.keys()
        differences = {name: together[name] - gradient for name, gradient in alone.items()}
        whole, off = (torch.cat([one.flatten() for one in every.values()]) for every in (alone, differences))
        assert off.norm() < RTOL * whole.norm()
        for name, difference in differences.items():
            rounding = 5e-7  # of gradients that are all but zero: a bias of the keys moves no softmax
            assert difference.norm() < 1e-4 * alone[name].norm() + rounding, name


def test_bank_and_parameters_are_those_of_the_joined_batch(case: tuple[dict[str, Any], dict[str, Any]]) -> None:
    joined, split = (outcome["model"] for outcome in case)
    torch.testing.assert_close(split, joined, rtol=RTOL, atol=2e-6)


def test_the_cases_are_what_they_are_meant_to_be(ranks: list[dict[str, Any]]) -> None:
    regions = {name: [terms["region"]["anchors"] for terms in ranks[0][name]["terms"]] for name in CASES}
    assert regions == {name: PASSES * [sum(map(sum, shares))] for name, shares in CASES.items()}
    banks = {name: ranks[0][name]["model"] for name in CASES}
    pointers = {name: bank["bank.queue_ptr"].item() for name, bank in banks.items()}
    filled = 2  # passes: the warmup is over after the first
    assert pointers == {name: filled * first[0] % MODEL.memory_bank_size for name, first in regions.items()}
    assert banks["even"]["bank.queue_is_full"]
    assert not banks["no-regions"]["bank.region_image_queue"].any()


def test_a_run_on_two_ranks_is_that_of_one_process(out: Path, tmp_path: Path) -> None:
    alone = train(run_settings(tmp_path, ranks=1))
    history = [state(run)["log_history"] for run in (alone, out / "whole")]
    for one, other in zip(*history, strict=True):
        assert other == pytest.approx(one, rel=1e-4, abs=1e-5), one["step"]
    one, other = (pretrained.read(run / "checkpoint-6") for run in (alone, out / "whole"))
    torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)  # AdamW takes signs of gradients near zero for steps


def test_the_random_state_of_every_rank_is_saved(out: Path) -> None:
    names = {path.name for path in (out / "whole" / "checkpoint-6").glob("rng_state*")}
    assert names == {"rng_state_0.pth", "rng_state_1.pth"}
    assert torch.load(out / "whole" / "checkpoint-6" / "training_args.bin", weights_only=True)["world_size"] == 2


def test_a_run_resumed_on_two_ranks_is_bit_identical(out: Path) -> None:
    whole, resumed = (out / run / "checkpoint-6" for run in ("whole", "resumed"))
    assert equal(pretrained.read(whole), pretrained.read(resumed))
    for name in ("optimizer.pt", "scheduler.pt", "rng_state_0.pth", "rng_state_1.pth"):
        one, other = (torch.load(directory / name, weights_only=True) for directory in (whole, resumed))
        assert equal(one, other), name
    assert state(out / "whole")["log_history"] == state(out / "resumed")["log_history"]


def test_another_number_of_ranks_cannot_resume(out: Path) -> None:
    with pytest.raises(ValueError, match="2 ranks saved it, and 1 can't"):
        train(run_settings(out / "whole", ranks=1, resume=True))


def test_a_head_that_is_cut_off_stops_no_rank(out: Path) -> None:
    optimizer = torch.load(out / "faulty" / "checkpoint-3" / "optimizer.pt", weights_only=True)
    names = [name for group in optimizer["param_groups"] for name in group["param_names"]]
    assert {names[number] for number in range(len(names)) if number not in optimizer["state"]} == {
        "roi_projection.weight"
    }
