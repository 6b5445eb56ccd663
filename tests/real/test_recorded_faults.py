"""Planted faults of what is trained, as a recorder saw them: each is named, and nothing is on the sound run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fgclip_doctor import Check, Missing, Run
from fgclip_doctor.core.config import FgclipConfig
from fgclip_doctor.live.recorder import Recorder
from fgclip_doctor.sources import recording, roles
from fgclip_doctor.training.loop import train
from fgclip_doctor.training.settings import TrainConfig
from fgclip_doctor_checks.gradients.checkpointing_blocks_gradient import checkpointing_blocks_gradient
from fgclip_doctor_checks.gradients.eval_mode_in_training import eval_mode_in_training
from fgclip_doctor_checks.gradients.learning_rate_group_wrong import learning_rate_group_wrong
from fgclip_doctor_checks.gradients.parameter_frozen import parameter_frozen
from fgclip_doctor_checks.gradients.parameter_never_got_gradient import parameter_never_got_gradient
from fgclip_doctor_checks.gradients.parameter_not_in_optimizer import parameter_not_in_optimizer

HEAD = "roi_projection.weight"
NAMED = {
    "head-frozen": {parameter_frozen},
    "head-not-in-optimizer": {parameter_not_in_optimizer},
    "head-detached": {parameter_never_got_gradient},
    "head-learning-rate-zero": {learning_rate_group_wrong},
    "checkpointing-cuts-gradients": {checkpointing_blocks_gradient, parameter_never_got_gradient},
    "evaluation-mode": {eval_mode_in_training},
}
CHECKS = set().union(*NAMED.values())


def recorded(directory: Path, *faults: str) -> Run:
    """A short run that was watched."""
    model = FgclipConfig.preset(
        "tiny", roi_projection=True, use_memory_bank=True, memory_bank_size=21, memory_bank_warmup_steps=4
    )
    config = TrainConfig(
        output_dir=directory / "run",
        model=model,
        max_steps=8,
        micro_batch=4,
        scenes=32,
        learning_rate=1e-4,
        warmup_steps=1,
        save_steps=8,
        faults=faults,
    )
    recorder, kept = Recorder(directory / "recording"), list[Any]()

    def start(config: TrainConfig, *watched: Any) -> None:
        kept.extend(watched)  # or they are gone before the recorder's last look
        recorder.start(*watched)

    train(config, on_start=start)
    recorder.stop(0)
    run = recording.read(directory / "recording")
    run.roles = roles.find(run.tensors, run.series)
    return run


def fires(check: Check, run: Run) -> bool:
    try:
        return any(check(run))
    except Missing:
        return False


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # the warning of that very fault
@pytest.mark.parametrize("fault", ["", *NAMED])
def test_a_fault_that_was_watched_is_named(fault: str, tmp_path: Path) -> None:
    run = recorded(tmp_path, *filter(None, [fault]))
    assert {check.name for check in CHECKS if fires(check, run)} == {check.name for check in NAMED.get(fault, ())}
