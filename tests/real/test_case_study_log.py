"""The case study from its log alone: its explosion and its oscillation are chance, read with a yardstick."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fgclip_doctor.diagnosis import Report, diagnose
from fgclip_doctor.findings import Severity
from fgclip_doctor.registry import installed_checks
from fgclip_doctor.sources import load

STATED = {"micro_batch": "4", "accumulation": "8", "bank_size": "128", "dimension": "512", "scale": "14.24"}
STATED |= {"world_size": "1", "regions_per_sample": "1.05"}
NOISE = 0.30 / 8**0.5  # of the null with 132 candidates, over 8 forwards


def audited(path: Path, region: np.ndarray) -> Report:
    """A log of 240 steps: the global loss learns, the region loss is given from step 2 on, every second step."""
    rng = np.random.default_rng(0)
    steps = np.arange(2, 2 * len(region) + 1, 2)
    overall = np.interp(steps, [0, 50, 150], [2.0, 1.5, 1.2]) + rng.normal(0, 0.05, len(steps))
    lines = [
        f"step {step} [ACCUMULATED] Total: {a + 0.1 * b:.4f} | Global: {a:.4f} | Region: {b:.4f}"
        for step, a, b in zip(steps, overall, region, strict=True)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return diagnose(load([path], facts=STATED), installed_checks()[0])


@pytest.mark.parametrize("seed", range(3))
def test_at_chance_before_and_after_the_bank_came_on(tmp_path: Path, seed: int) -> None:
    noise = np.random.default_rng(seed + 1).normal(0, NOISE, 120)
    report = audited(tmp_path / "train.log", np.where(np.arange(120) < 25, 1.52, 5.08) + noise)
    found = {finding.code: finding for finding in report.findings}
    assert found.keys() >= {"FGD501", "FGD502", "FGD504"}
    assert not found.keys() & {"FGD201", "FGD503", "FGD505"}
    assert "region" in found["FGD501"].where.lower()
    assert "the bank did switch on" in found["FGD502"].message
    assert found["FGD502"].evidence[0].step == 52
    assert report.findings[0].code == "FGD501"
    assert found["FGD502"].explained_by == found["FGD504"].explained_by == ("FGD501",)


def test_a_region_loss_that_learns_across_the_same_jump_is_no_fault(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).normal(0, NOISE, 120)
    before, after = np.linspace(1.52, 0.6, 25), np.linspace(4.1, 1.5, 95)
    report = audited(tmp_path / "train.log", np.concatenate([before, after]) + noise)
    assert [finding.code for finding in report.findings if finding.severity.at_least(Severity.WARNING)] == []
