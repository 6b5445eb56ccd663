from __future__ import annotations

import numpy as np
import pytest

from fgclip_doctor.progress import Course
from fgclip_doctor.swings import growing_noise, swings
from tests.runs import run, series

STEPS = np.arange(1, 601)
NOISE = np.random.default_rng(0).normal(0, 0.05, 600)


@pytest.mark.parametrize(("height", "found"), [(0.5, True), (0.05, False)])
def test_slow_swings_are_told_from_sampling_noise(height: float, *, found: bool) -> None:
    """Of an epoch that is known, and that the cycle of 75 steps is no multiple of."""
    values = 1.5 + height * np.sin(STEPS * 2 * np.pi / 75) + NOISE
    facts = {"dataset_size": 6400, "micro_batch": 64}
    told = swings(run(facts=facts), STEPS, values, turns=6, share=0.2, least=0.25)
    assert (told is not None) is found
    epoch = {"dataset_size": 75 * 64, "micro_batch": 64}
    assert swings(run(facts=epoch), STEPS, values, turns=6, share=0.2, least=0.25) is None


@pytest.mark.parametrize(("ends", "fall", "found"), [(6.0, 0.0, True), (1.2, 0.0, False), (6.0, 1.2, False)])
def test_noise_that_grows_while_the_loss_is_no_lower(ends: float, fall: float, *, found: bool) -> None:
    values = 1.5 - fall * STEPS / 600 + NOISE * np.linspace(1, ends, 600) * 1.5
    course = Course("total", series("loss", values, STEPS), None, STEPS, values)
    assert (growing_noise(course, STEPS, values, share=0.1, growing=2.0) is not None) is found
