"""No check that reads a log cries wolf on a sound run that looks like a fault."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fgclip_doctor import Run, Severity
from fgclip_doctor.diagnosis import diagnose
from fgclip_doctor_checks import CHECKS
from tests.checks.losses.healthy_logs import HEALTHY

OF_LOGS = [one for one in CHECKS if one.code.startswith(("FGD3", "FGD5")) or one.code in ("FGD111", "FGD404")]


@pytest.mark.parametrize("make", HEALTHY, ids=lambda make: make.__name__)
def test_quiet_on_a_healthy_run(make: Callable[[np.random.Generator], Run]) -> None:
    for seed in range(3):
        report = diagnose(make(np.random.default_rng(seed)), OF_LOGS)
        assert not report.crashed
        loud = [one.message for one in report.findings if one.severity.at_least(Severity.WARNING)]
        assert loud == []
