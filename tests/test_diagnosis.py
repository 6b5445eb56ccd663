"""One crash hides nothing, silence is never a pass, and causes come before symptoms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from fgclip_doctor import Check, Evidence, Finding, Missing, Run, Severity, check
from fgclip_doctor.diagnosis import diagnose

RUN = Run(subject="here")
PROOF = (Evidence(name="x", value=1.0, expected=2.0, why="because", source="file"),)


def rule(code: str, severity: Severity = Severity.ERROR, *, because: tuple[str, ...] = (), fires: bool = True) -> Check:
    @check(code, f"rule-{code[-3:]}", severity)
    def function(run: Run) -> Iterator[Finding]:
        """A defect.

        Fix: mend it.
        """
        if fires:
            yield Finding(message="broken", where=code, evidence=PROOF, explained_by=because)

    return function


@check("LAB900", "crashes", Severity.ERROR)
def crashes(run: Run) -> Iterator[Finding]:
    """A bug."""
    yield Finding(message="first", where="x", evidence=PROOF)
    raise ZeroDivisionError("oops")


@check("LAB901", "blind", Severity.ERROR)
def blind(run: Run) -> Iterator[Finding]:
    """Needs what isn't there."""
    raise Missing("no weights")
    yield


def test_one_crash_hides_nothing() -> None:
    report = diagnose(RUN, [crashes, blind, rule("LAB001"), rule("LAB002", fires=False)])
    assert [code for code, _ in report.crashed] == ["LAB900"]
    assert "ZeroDivisionError: oops (test_diagnosis.py:" in report.crashed[0][1]
    assert report.skipped == (("LAB901", "no weights"),)
    assert report.passed == ("LAB002",)
    assert [finding.code for finding in report.findings] == ["LAB001"]
    assert report.exit_code(None) == 2, "a check that crashed is never a pass"


def test_what_overflows_in_a_check_is_no_warning() -> None:
    @check("LAB902", "overflows", Severity.ERROR)
    def overflows(run: Run) -> Iterator[Finding]:
        """Weights of 1e38 are squared."""
        if np.square(np.float32(1e38)) < 1:
            yield Finding(message="small", where="x", evidence=PROOF)

    assert diagnose(RUN, [overflows]).passed == ("LAB902",)


def test_a_finding_is_stamped_with_its_rule() -> None:
    (finding,) = diagnose(RUN, [rule("LAB001", Severity.WARNING)]).findings
    assert (finding.code, finding.name, finding.severity, finding.fix) == (
        "LAB001",
        "rule-001",
        Severity.WARNING,
        "mend it.",
    )
    assert finding.fingerprint == diagnose(RUN, [rule("LAB001")]).findings[0].fingerprint
    assert finding.fingerprint != diagnose(RUN, [rule("LAB002")]).findings[0].fingerprint


def test_causes_come_before_their_symptoms() -> None:
    symptom = rule("LAB001", because=("LAB003", "LAB009"))  # LAB009 doesn't fire
    chained = rule("LAB002", because=("LAB001",))
    cause = rule("LAB003", Severity.WARNING)
    unrelated = rule("LAB004", Severity.INFO)
    findings = diagnose(RUN, [symptom, chained, cause, unrelated]).findings
    assert [finding.code for finding in findings] == ["LAB003", "LAB004", "LAB001", "LAB002"]
    assert findings[2].explained_by == ("LAB003",)


def test_a_cause_may_be_asked_for_at_one_place() -> None:
    here, elsewhere = rule("LAB001", because=("LAB003@LAB003",)), rule("LAB002", because=("LAB003@LAB002",))
    findings = {one.code: one for one in diagnose(RUN, [here, elsewhere, rule("LAB003")]).findings}  # at its code
    assert findings["LAB001"].explained_by == ("LAB003",)
    assert findings["LAB002"].explained_by == ()


def test_codes_that_explain_each_other_are_both_reported() -> None:
    findings = diagnose(RUN, [rule("LAB001", because=("LAB002",)), rule("LAB002", because=("LAB001",))]).findings
    assert {finding.code for finding in findings} == {"LAB001", "LAB002"}


def test_exit_codes() -> None:
    quiet, info, error = rule("LAB001", fires=False), rule("LAB002", Severity.INFO), rule("LAB003")
    assert diagnose(RUN, [quiet]).exit_code(Severity.ERROR) == 0
    assert diagnose(RUN, [quiet, info]).exit_code(Severity.ERROR) == 0
    assert diagnose(RUN, [quiet, info]).exit_code(Severity.INFO) == 1
    assert diagnose(RUN, [error]).exit_code(Severity.ERROR) == 1
    assert diagnose(RUN, [error]).exit_code(None) == 0
    assert diagnose(RUN, [blind]).exit_code(Severity.ERROR) == 2, "nothing could be checked"
    torn = replace(RUN, problems=["model.safetensors: may be truncated"])
    assert diagnose(torn, [quiet]).exit_code(Severity.ERROR) == 2, "what could not be read is no pass"
    assert diagnose(torn, [error]).exit_code(Severity.ERROR) == 1


def test_thresholds_reach_the_check_by_code_and_by_name() -> None:
    seen = []

    @check("LAB001", "with-limit", Severity.INFO)
    def with_limit(run: Run, *, limit: float = 1.0) -> Iterator[Finding]:
        """A limit."""
        seen.append(limit)
        yield from ()

    diagnose(RUN, [with_limit])
    diagnose(RUN, [with_limit], thresholds={"with-limit": {"limit": 2.0}})
    diagnose(RUN, [with_limit], thresholds={"LAB001": {"limit": 3.0}})
    assert seen == [1.0, 2.0, 3.0]
