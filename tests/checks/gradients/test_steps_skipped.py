from __future__ import annotations

import numpy as np
import pytest

from fgclip_doctor import Missing, Run
from fgclip_doctor.recorded import Rank, Recording
from fgclip_doctor.run import Remark, Source
from fgclip_doctor_checks.gradients.steps_skipped import steps_skipped
from tests.runs import adam, checkpoint, run, series


def counted(first: int, second: int, name: str = "skipped") -> Run:
    """A count over a thousand steps, so many in each half."""
    count = [*np.linspace(0, first, 50), *np.linspace(first, first + second, 50)]
    return run(logged=[series(name, np.round(count), range(10, 1001, 10))])


def told(*steps: int) -> Run:
    one = run(logged=[series("loss", np.linspace(4, 3, 100), range(10, 1001, 10))])
    one.remarks = [Remark("step-skipped", Source("train.log", line=7), (), np.array(steps))]
    return one


def watched(skipped: int, steps: int) -> Run:
    one = run()
    seen = Rank(0, 1, "recording/rank0", clocks={"skipped": skipped, "steps": steps})
    one.recording = Recording((seen,), steps)
    return one


def deepspeed(skipped: int) -> Run:
    return run(checkpoint({"w": np.ones(2)}, 1000, trainer_step=1000, facts={"skipped_steps": skipped}))


def saved(adam_at: int, adam_later: int, *, fp16: bool = True) -> Run:
    weights = checkpoint({"w": np.ones((2, 2))}).tensors
    both = [
        checkpoint(weights, step, optimizer=adam(weights, step=done))
        for step, done in ((500, adam_at), (1000, adam_later))
    ]
    return run(*both, facts={"fp16": fp16})


def scaled(*values: float) -> Run:
    return run(logged=[series("loss_scale", values)])


@pytest.mark.parametrize(
    ("case", "source"),
    [
        (counted(16, 400), "trainer_state.json"),
        (counted(16, 400, "train/skipped_steps"), "trainer_state.json"),
        (told(*range(0, 1000, 4)), "train.log:7"),
        (watched(300, 700), "recording"),
        (saved(480, 700), "checkpoint-1000"),
        (deepspeed(400), "config.json"),
        (scaled(65536, 32768, 1024, 64, 4, 1, 1, 1), "trainer_state.json"),
    ],
    ids=["a count", "of a tracker", "lines", "a recording", "Adam behind", "DeepSpeed's count", "a scale of 1"],
)
def test_many_skipped_steps(case: Run, source: str) -> None:
    [finding] = steps_skipped(case)
    assert source in finding.evidence[0].source


@pytest.mark.parametrize(
    "case",
    [
        counted(16, 1),
        counted(100, 0),
        told(*range(16), 600),
        watched(18, 30),
        watched(25, 2000),
        deepspeed(24),
        saved(480, 979),
        scaled(*[1.0] * 10),
        scaled(*np.geomspace(65536, 512, 10)),
    ],
    ids=[
        *(
            "calibrated",
            "early alone",
            "lines of the calibration",
            "a short run's calibration",
            "seldom",
            "saved",
            "in step",
        ),
        *("bfloat16", "a scale that has settled"),
    ],
)
def test_what_float16_does_anyway(case: Run) -> None:
    assert not list(steps_skipped(case))


@pytest.mark.parametrize(("share", "expected"), [(0.09, 1), (0.11, 0)])
def test_flips_at_its_threshold(share: float, expected: int) -> None:
    assert len(list(steps_skipped(saved(500, 950), share=share))) == expected


@pytest.mark.parametrize(
    "case",
    [
        run(logged=[series("loss", [3.0] * 10)]),
        saved(480, 700, fp16=False),
        saved(125, 250),
        counted(500, 5000),
        run(logged=list(counted(16, 400).series.values()), facts={"bf16": True}),
    ],
    ids=["no count", "no float16", "a step that counts micro-batches", "a count of samples", "a count in bfloat16"],
)
def test_skipped_without_a_count(case: Run) -> None:
    with pytest.raises(Missing, match="nothing counts"):
        list(steps_skipped(case))
