"""A checkpoint in the layout of the case study: an FG-CLIP in bf16 with a memory bank that nothing ever enables."""

from __future__ import annotations

from pathlib import Path

import pytest

from fgclip_doctor.diagnosis import Report, diagnose
from fgclip_doctor.findings import Severity
from fgclip_doctor.registry import installed_checks
from fgclip_doctor.sources import load
from tests.real.conftest import Kept

pytestmark = pytest.mark.slow


@pytest.fixture
def report(kept: Kept, base: Path) -> Report:
    from tests.real.case_study_run import make_checkpoint

    path = kept.once("case-study", lambda path: make_checkpoint(path, base))
    report = diagnose(load([path]), installed_checks()[0])
    assert not report.crashed
    assert not report.problems
    return report


def test_parts_are_recognised(report: Report) -> None:
    assert {
        "bank.image_keys": "region_image_queue",
        "bank.text_keys": "region_text_queue",
        "bank.pointer": "queue_ptr",
        "bank.full": "queue_is_full",
        "clock.forwards": "training_steps",
        "scale.global": "logit_scale",
        "scale.region": "logit_scale_finegraind",
        "scale.hard": "logit_scale_hardneg",
        "head.image": "visual_projection.weight",
        "head.region": "roi_projection.weight",
        "head.text": "text_projection.weight",
        "head.text_long": "text_filip_projection.weight",
    }.items() <= report.detected.items()


def test_bank_never_active(report: Report) -> None:
    (finding,) = [one for one in report.findings if one.code == "FGD201"]
    assert not finding.explained_by
    assert not [one for one in report.findings if one.code == "FGD202" and "FGD201" not in one.explained_by]


def test_the_report_leads_with_causes(report: Report) -> None:
    explained = [bool(finding.explained_by) for finding in report.findings]
    assert explained == sorted(explained), [finding.code for finding in report.findings]
    assert report.findings[0].severity is Severity.ERROR
    assert all("FGD106" in one.explained_by for one in report.findings if one.code == "FGD303")


def test_every_head_got_a_gradient(report: Report) -> None:
    assert {"FGD102", "FGD103"} <= set(report.passed)


def test_updates_are_lost_and_the_scale_is_that_of_a_start_from_scratch(report: Report) -> None:
    assert {"FGD106", "FGD302"} <= {one.code for one in report.findings}
