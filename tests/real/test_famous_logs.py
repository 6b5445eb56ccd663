"""What people wrote down of runs that puzzled them, as text and facts alone, and what arithmetic says of it."""

from __future__ import annotations

from math import log
from pathlib import Path

import pytest

from fgclip_doctor import Finding, theory
from fgclip_doctor.diagnosis import Report, diagnose
from fgclip_doctor.findings import Severity
from fgclip_doctor.registry import installed_checks
from fgclip_doctor.sources import load

REGION = (2.0, 1.7, 1.6, 1.4, 1.5, 5.0, 4.5, 5.5, 4.6, 5.4)
GLOBAL = (2.0, 1.8, 1.7, 1.6, 1.5, 1.45, 1.4, 1.35, 1.3, 1.3)
BATCH = {"micro_batch": "4", "accumulation": "8", "bank_size": "128"}


def audited(path: Path, lines: list[str], **facts: str) -> Report:
    log_file = path / "train.log"
    log_file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    report = diagnose(load([log_file], facts=facts), installed_checks()[0])
    assert not report.crashed
    return report


def by_code(report: Report) -> dict[str, Finding]:
    return {finding.code: finding for finding in report.findings}


@pytest.mark.parametrize("every", [10, 25])
@pytest.mark.parametrize("logged", ["scale in the log", "scale stated", "as the second table of a run"])
def test_ten_lines_of_the_run_this_project_was_born_from(tmp_path: Path, every: int, logged: str) -> None:
    """Micro-batches of 4, accumulation 8, a bank of 128, bfloat16: "explodes" at step 50, then "oscillates".

    Its notes conclude that the bank never ran. The jump is ln(132 / 4) = 3.5, which nothing but the bank explains.
    """
    facts = dict(BATCH)
    lines = [
        f"step {every * n} | Global: {a} | Region: {b}" for n, (a, b) in enumerate(zip(GLOBAL, REGION, strict=True), 1)
    ]
    if logged == "scale in the log":
        lines = [f"{line} | logit_scale_finegraind: 2.656250 | lr: 5e-06" for line in lines]
    elif logged == "scale stated":
        facts |= {"scale": "14.2428", "learning_rate": "5e-6", "dimension": "512"}
    else:
        lines = ["step,global_loss,region_loss,logit_scale_finegraind,learning_rate"]
        rows = zip(GLOBAL, REGION, strict=True)
        lines += [f"{every * n},{a},{b},2.656250,5e-06" for n, (a, b) in enumerate(rows, 1)]
    report = audited(tmp_path, lines, **facts)
    found = by_code(report)
    assert found.keys() >= {"FGD303", "FGD501", "FGD502", "FGD504"}
    order = [finding.code for finding in report.findings]
    assert order[:2] == ["FGD501", "FGD303"]  # the cause of both curves first, and what holds the scale
    assert order[-2:] == ["FGD502", "FGD504"]  # what "explodes" and "oscillates" are symptoms of it
    assert found["FGD502"].explained_by == found["FGD504"].explained_by == ("FGD501",)
    assert not found.keys() & {"FGD201", "FGD503", "FGD505"}  # the bank ran, and nothing is unstable
    assert "at chance, as it was before its bank came on" in found["FGD501"].message
    assert "the bank did switch on" in found["FGD502"].message
    assert found["FGD502"].evidence[0].step == 6 * every
    assert "sampling noise" in found["FGD504"].message
    assert "bfloat16" in found["FGD303"].message
    assert "can't move" in found["FGD303"].message


def test_the_same_ten_lines_learning_are_no_fault(tmp_path: Path) -> None:
    region = (1.5, 1.2, 1.0, 0.8, 0.7, 3.9, 3.3, 2.9, 2.6, 2.4)
    lines = [
        f"step {10 * n} | Region: {b} | Global: {a}" for n, (a, b) in enumerate(zip(GLOBAL, region, strict=True), 1)
    ]
    report = audited(tmp_path, lines, scale="14.3", **BATCH)
    assert not [one.message for one in report.findings if one.severity.at_least(Severity.WARNING)]


def test_a_loss_that_stays_at_4_85_with_batch_128(tmp_path: Path) -> None:
    """mlfoundations/open_clip#17: "constantly at 4.8xxx". ln 128 = 4.852."""
    lines = [f"step {100 * n} loss {4.85 + 0.001 * (n % 5):.4f}" for n in range(1, 20)]
    found = by_code(audited(tmp_path, lines, micro_batch="128"))
    assert set(found) == {"FGD501"}
    assert "(collapsed)" in found["FGD501"].message
    assert "ln 128 is 4.85" in found["FGD501"].message


@pytest.mark.parametrize(("batch", "shown"), [(25, "5.5597"), (64, "6.920"), (256, "8.909")])
def test_a_loss_of_5_56_with_batch_25_is_chance(tmp_path: Path, batch: int, shown: str) -> None:
    """dewenzeng/positional_cl#5 (5.5597 with 25 samples), HobbitLong/SupContrast#42 (6.920, 64) and #3 (8.909, 256).

    25 samples are 50 views, and each is set against the other 2 N - 1 = 49. However many of these count as positives,
    equal logits give every one of them ln 49 = 3.892, and so does their mean. That is not 5.56. But these losses, all
    descended from SupContrast, end with a factor of temperature / base_temperature = 0.1 / 0.07 = 1.4286, and

        0.1 / 0.07 * ln 49 = 5.5597,  0.1 / 0.07 * ln 127 = 6.9203,  0.1 / 0.07 * ln 511 = 8.9091.

    So it is chance, to four digits, with all logits equal: the features have collapsed.
    """
    level = theory.supervised_chance(batch, temperature=0.1)
    assert level == pytest.approx(0.1 / 0.07 * log(2 * batch - 1))
    assert level == pytest.approx(float(shown), abs=6e-4)
    found = by_code(audited(tmp_path, [f"step {10 * n} loss {shown}" for n in range(1, 31)], micro_batch=str(batch)))
    assert set(found) == {"FGD501"}
    assert "2 N - 1 views" in found["FGD501"].message


@pytest.mark.parametrize("level", ["5.2", "5.9"])
def test_another_level_that_stands_still_is_not_called_chance(tmp_path: Path, level: str) -> None:
    report = audited(tmp_path, [f"step {10 * n} loss {level}" for n in range(1, 31)], micro_batch="25")
    assert "FGD501" not in by_code(report)


def test_3_43_near_ln_32_in_a_run_that_learns_is_a_coincidence(tmp_path: Path) -> None:
    lines = [f"step {20 * n} loss {3.43 + 3.2 * 0.8**n:.3f}" for n in range(1, 60)]
    assert not audited(tmp_path, lines, micro_batch="32").findings


@pytest.mark.parametrize("sound", [0, 1, 5])
def test_a_loss_of_zero_beside_a_gradient_norm_of_nan(tmp_path: Path, sound: int) -> None:
    """transformers' Trainer puts 0.0 for a loss that was NaN all along: huggingface/trl#6702."""
    lines = [f"{{'loss': {2.1 - 0.1 * n:.1f}, 'grad_norm': 3.2, 'epoch': 0.0{n}}}" for n in range(1, sound + 1)]
    lines += [f"{{'loss': 0.0, 'grad_norm': nan, 'epoch': 0.0{n}}}" for n in range(6, 9)]
    found = by_code(audited(tmp_path, lines))
    assert set(found) == {"FGD506"}
    assert "0.0 beside a gradient norm that is not finite" in found["FGD506"].message
    assert set(by_code(audited(tmp_path, lines[-1:]))) == {"FGD506"}
