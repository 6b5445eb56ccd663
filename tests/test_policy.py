"""What a project sets aside is shown as such, and what is gone from its baseline is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fgclip_doctor import policy
from fgclip_doctor.config import ConfigError, read_config
from fgclip_doctor.diagnosis import Report
from fgclip_doctor.findings import Evidence, Finding, Severity


def finding(code: str, where: str) -> Finding:
    return Finding(
        code=code, name=f"rule-{code.lower()}", severity=Severity.ERROR, message="m", where=where,
        evidence=(Evidence(name="n", value=1),),
    )  # fmt: skip


def report(*findings: Finding, passed: tuple[str, ...] = ("FGD301",)) -> Report:
    return Report("run", {}, findings, passed=passed, skipped=(), crashed=(), problems=())


ONE, TWO = finding("FGD201", "image_queue"), finding("FGD204", "text_queue")


def test_an_ignore_with_a_reason_sets_its_findings_aside() -> None:
    judged = policy.applied(report(ONE, TWO), set_aside=[{"rule": "FGD204", "reason": "normalised on read"}])
    assert judged.findings == (ONE,)
    assert judged.suppressed == ((TWO, "normalised on read"),)


@pytest.mark.parametrize("entry", ['{ rule = "FGD204" }', '{ rule = "FGD204", reason = " " }', '{ reason = "r" }', "7"])
def test_an_ignore_without_a_reason_is_refused_in_a_line(tmp_path: Path, entry: str) -> None:
    (tmp_path / "doctor.toml").write_text(f"ignore = [{entry}]\n")
    with pytest.raises(ConfigError, match=r"^[^\n]*doctor\.toml[^\n]*ignore[^\n]*$"):
        read_config(tmp_path / "doctor.toml")


@pytest.mark.parametrize(("where", "left"), [("text_*", 0), ("image_*", 1), ("text_queue", 0)])
def test_an_ignore_may_be_of_one_place(where: str, left: int) -> None:
    judged = policy.applied(report(TWO), set_aside=[{"rule": "rule-fgd204", "where": where, "reason": "r"}])
    assert len(judged.findings) == left


def test_a_baseline_sets_aside_what_was_there_and_tells_what_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(policy.baseline_of(report(ONE, TWO)))
    known = policy.read_baseline(path)
    new = finding("FGD201", "text_queue")
    judged = policy.applied(report(ONE, new, passed=("FGD204",)), baseline=known)
    assert judged.findings == (new,)
    assert judged.suppressed == ((ONE, "in the baseline"),)
    assert judged.stale == ("FGD204 text_queue",)


def test_what_is_stale_is_told_in_the_order_of_the_rules() -> None:
    many = [finding(code, where) for code in ("FGD301", "FGD201") for where in ("d", "b", "c", "a")]
    known = {one.fingerprint: policy.Accepted(one.fingerprint, one.code, one.where, "m") for one in many}
    stale = policy.applied(report(passed=("FGD201", "FGD301")), baseline=known).stale
    assert stale == tuple(f"{code} {where}" for code in ("FGD201", "FGD301") for where in "abcd")


def test_what_could_not_be_checked_is_not_stale(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(policy.baseline_of(report(TWO)))
    assert not policy.applied(report(passed=("FGD301",)), baseline=policy.read_baseline(path)).stale


def test_a_baseline_is_the_same_bytes_whatever_the_order_and_keeps_what_it_held() -> None:
    assert policy.baseline_of(report(ONE, TWO)) == policy.baseline_of(report(TWO, ONE, ONE))
    judged = policy.applied(report(ONE, TWO), set_aside=[{"rule": "FGD204", "reason": "r"}])
    assert policy.baseline_of(judged) == policy.baseline_of(report(ONE, TWO))


def test_a_run_with_nothing_but_suppressed_findings_is_a_pass() -> None:
    judged = policy.applied(report(ONE, passed=()), set_aside=[{"rule": "FGD201", "reason": "r"}])
    assert judged.exit_code(Severity.INFO) == 0


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"baseline_version": 2, "findings": []}', '{"baseline_version": 1, "findings": [3]}', "[" * 9999],
)
def test_what_is_no_baseline_is_refused_in_a_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"baseline\.json"):
        policy.read_baseline(path)
    with pytest.raises(ConfigError, match="none"):
        policy.read_baseline(tmp_path / "none")


def test_the_baseline_is_json_without_numbers_that_drift() -> None:
    (entry,) = json.loads(policy.baseline_of(report(ONE)))["findings"]
    assert set(entry) == {"fingerprint", "code", "where", "message"}
