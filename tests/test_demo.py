"""The demo, whole: real training, real audits."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from fgclip_doctor.demo import demo
from fgclip_doctor.diagnosis import diagnose
from fgclip_doctor.findings import Severity
from fgclip_doctor.registry import installed_checks
from fgclip_doctor.sources import load


@pytest.mark.slow
def test_the_demo_names_the_faults_and_clears_the_corrected_run(tmp_path: Path) -> None:
    checks, _ = installed_checks()
    console = Console(file=io.StringIO(), width=100)
    demo(tmp_path, checks, console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "FGD701 weights-left-at-init" in shown.split("--base add")[1], "the deeper cause"
    changed = " ".join(shown.split("by --against")[1].split())  # however the lines break
    assert "0 findings new" in changed
    for code in ("FGD106", "FGD201", "FGD302", "FGD401", "FGD701"):
        assert f"fixed {code}" in changed
    assert "bits learnt by the region loss" in changed

    reported = diagnose(load([tmp_path / "as-reported" / "checkpoint-160"]), checks)
    seen = {one.name: one.value for one in reported.observations}
    assert seen["memory bank"] == "never switched on"
    assert seen["gradient reaches head.image"] == seen["gradient reaches head.region"] == "yes"
    assert str(seen["bits learnt, by the region loss"]).startswith("0.0")
    # bf16 parameters, no bank, the scale of a start from scratch, a warmup in forwards: all from one checkpoint
    assert {"FGD106", "FGD201", "FGD302", "FGD401"} <= {finding.code for finding in reported.findings}
    scales_frozen = [finding for finding in reported.findings if finding.code == "FGD303"]
    assert all("FGD106" in finding.explained_by for finding in scales_frozen)

    for healthy in ("corrected", "base"):
        report = diagnose(load([tmp_path / healthy]), checks)
        loud = [finding for finding in report.findings if finding.severity.at_least(Severity.WARNING)]
        assert loud == [], healthy
        assert report.crashed == ()
    corrected = diagnose(load([tmp_path / "corrected"]), checks)
    seen = {one.name: one.value for one in corrected.observations}
    assert seen["memory bank"] == "in use, full"
    assert float(str(seen["bits learnt, by the bank's pairs"])) > 2
