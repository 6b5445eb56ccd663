"""Runs of the real `transformers.Trainer`: each planted fault is named, and the sound twin raises no alarm."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fgclip_doctor.cli import app
from fgclip_doctor.diagnosis import Report, diagnose
from fgclip_doctor.findings import Finding, Severity
from fgclip_doctor.registry import installed_checks
from fgclip_doctor.sources import load

pytestmark = pytest.mark.slow

CAUSES = {
    "bank_off": "FGD201",
    "head_detached": "FGD103",
    "head_left_out": "FGD102",
    "warmup_clock": "FGD401",
    "scale": "FGD302",
}
Trained = Callable[[str], Path]


def audit(path: Path, base: Path | None = None) -> Report:
    report = diagnose(load([path], base=base), installed_checks()[0])
    assert not report.crashed
    assert not report.problems
    return report


def alarms(report: Report) -> list[Finding]:
    return [finding for finding in report.findings if finding.severity.at_least(Severity.WARNING)]


def causes(report: Report) -> set[str]:
    """The codes of the alarms that no other finding explains."""
    return {finding.code for finding in alarms(report) if not finding.explained_by}


@pytest.mark.parametrize(("fault", "code"), CAUSES.items())
def test_fault_is_named(fault: str, code: str, trained: Trained) -> None:
    assert causes(audit(trained(fault))) == {code}


@pytest.mark.parametrize(("fault", "code"), CAUSES.items())
def test_fault_is_named_beside_its_base(fault: str, code: str, trained: Trained, base: Path) -> None:
    assert causes(audit(trained(fault), base)) == {code}


@pytest.mark.parametrize(
    ("fault", "step"),
    # the learning rate of so short a run is so high that only its first steps can't have moved the scale by themselves
    [("bank_off", 75), ("head_detached", 75), ("head_left_out", 75), ("scale", 15)],
)
def test_fault_is_named_from_one_checkpoint(
    fault: str, step: int, trained: Trained, trained_as_pickles: Trained
) -> None:
    for run in (trained(fault), trained_as_pickles(fault)):
        assert causes(audit(run / f"checkpoint-{step}")) == {CAUSES[fault]}


def test_sound_run_raises_no_alarm(trained: Trained, base: Path) -> None:
    run = trained("")
    assert not alarms(audit(run))
    assert not alarms(audit(run, base))
    assert not alarms(audit(base))


def test_sound_checkpoint_raises_no_alarm_at_any_step(trained: Trained, trained_as_pickles: Trained) -> None:
    checkpoints = [*trained("").glob("checkpoint-*"), *trained_as_pickles("").glob("checkpoint-*")]
    assert len(checkpoints) == 10
    found = {f"{path.parent.name}/{path.name}": alarms(audit(path)) for path in checkpoints}
    assert not any(found.values()), found


def test_head_is_named_by_its_own_name(trained: Trained) -> None:
    for fault, code in (("head_detached", "FGD103"), ("head_left_out", "FGD102")):
        (finding,) = [one for one in audit(trained(fault)).findings if one.code == code]
        assert "region_head.weight" in f"{finding.where} {finding.message}"


def test_parts_are_recognised_under_names_that_are_not_ours(trained: Trained) -> None:
    detected = audit(trained("")).detected
    assert {
        "bank.image_keys": "mem_img",
        "bank.text_keys": "mem_txt",
        "bank.pointer": "mem_ptr",
        "bank.full": "mem_filled",
        "clock.forwards": "forward_count",
        "scale.global": "clip.logit_scale",
        "scale.region": "region_logit_scale",
        "head.region": "region_head.weight",
        "head.image": "clip.visual_projection.weight",
        "head.text": "clip.text_projection.weight",
        "loss.global": "contrastive_loss",
        "loss.region": "region_loss",
    }.items() <= detected.items()


def test_command_line_tells_sound_from_faulty(trained: Trained) -> None:
    sound = CliRunner().invoke(app, ["audit", str(trained("")), "--format", "json", "--fail-on", "warning"])
    assert sound.exit_code == 0, sound.output
    faulty = CliRunner().invoke(app, ["audit", str(trained("bank_off")), "--format", "json"])
    assert faulty.exit_code == 1, faulty.output
    assert json.loads(faulty.stdout)["findings"][0]["code"] == "FGD201"


def test_bare_state_dict_is_audited_and_says_what_it_lacks(trained: Trained, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    path = tmp_path / "model.pt"
    torch.save(load_file(trained("") / "checkpoint-75" / "model.safetensors"), path)
    report = audit(path)
    assert not alarms(report)
    assert report.passed
    skipped = dict(report.skipped)
    assert {"FGD102", "FGD103", "FGD402", "FGD501"} <= skipped.keys()
    assert all(skipped.values())
