"""Two real ranks, watched: each fault between them is named, and a sound run is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fgclip_doctor import Missing
from fgclip_doctor.run import Run
from fgclip_doctor.sources import load
from fgclip_doctor_checks import CHECKS
from tests.gauntlet.core_runs import CoreBase, on_ranks, tuned

CODES = {
    "": set[str](),
    "gather-without-gradient": {"FGD801"},
    "ranks-diverge": {"FGD802"},
    "labels-not-offset": {"FGD803"},
    "negatives-of-each-rank": {"FGD804"},
    "bank-of-each-rank": {"FGD208"},
}
JUDGED = set.union(*CODES.values())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("base")
    CoreBase(width=32).make(directory, None)
    return directory


def watched(fault: str, base: Path, directory: Path) -> Run:
    """A run of 16 steps on two ranks, with a bank from the fifth."""
    bank = {"memory_bank_warmup_steps": 4, "memory_bank_size": 48}
    run = tuned(*filter(None, [fault]), width=32, ranks=2, micro_batch=4, max_steps=16, save_steps=16, model=bank)
    on_ranks(replace(run.config, output_dir=directory / "run", base=base), 2, directory / "recording")
    return load([directory / "recording"], facts={"micro_batch": "4"})


@pytest.mark.slow
@pytest.mark.parametrize("fault", CODES)
def test_a_fault_between_ranks_is_named(fault: str, base: Path, tmp_path: Path) -> None:
    run = watched(fault, base, tmp_path)
    assert run.recording is not None
    assert [rank.rank for rank in run.recording.ranks] == [0, 1]
    fired = set()
    for check in CHECKS:
        try:
            fired |= {check.code for _ in check(run)} if check.code in JUDGED else set()
        except Missing:
            continue
    assert fired == CODES[fault]
