"""A finding is told once, with the step at which it was there first, and withdrawn where later evidence clears it."""

from __future__ import annotations

from fgclip_doctor.diagnosis import Report
from fgclip_doctor.findings import Evidence, Finding
from fgclip_doctor.live.follow import Follower
from fgclip_doctor.run import Run
from tests.runs import series

FOUND = Finding(
    message="it is so", where="here", evidence=(Evidence(name="a", value=1, why="b", source="c"),), code="FGD999"
)
Look = tuple[int | None, str]  # the step of the run, if it is new; and whether the finding is there, not, or skipped


def told(*looks: Look) -> list[tuple[list[int], list[int]]]:
    """The steps of what was told and of what was withdrawn, look by look."""
    waiting, states = list(looks), list[str]()

    def poll() -> Run | None:
        step, state = waiting.pop(0)
        states.append(state)
        return None if step is None else Run("run", series={"loss": series("loss", [1.0] * step)})

    def judge(_: Run) -> Report:
        skipped = (("FGD999", "no evidence"),) if states[-1] == "skipped" else ()
        findings = (FOUND,) if states[-1] == "found" else ()
        return Report(
            subject="run", detected={}, findings=findings, passed=(), skipped=skipped, crashed=(), problems=()
        )

    follower, seen = Follower(poll, judge), []
    while waiting:
        follower.not_before = 0.0  # a diagnosis here takes no time to speak of
        changes = follower.look()
        seen.append(([t.step for t in changes.new], [t.step for t in changes.withdrawn]) if changes else ([], []))
    return seen


def test_a_finding_is_told_once_and_when_it_was_there_twice() -> None:
    assert told((5, "found"), (6, "found"), (7, "found")) == [([], []), ([5], []), ([], [])]


def test_what_is_there_once_alone_is_not_told() -> None:
    assert told((5, "found"), (6, ""), (7, "found"), (8, "")) == [([], [])] * 4


def test_a_run_that_stands_still_confirms_what_was_found() -> None:
    assert told((5, "found"), (None, "found"), (None, "found")) == [([], []), ([5], []), ([], [])]


def test_later_evidence_clears_a_finding_but_no_evidence_does_not() -> None:
    looks = ((5, "found"), (6, "found"), (7, "skipped"), (8, ""), (9, "found"), (10, "found"))
    assert told(*looks) == [([], []), ([5], []), ([], []), ([], [5]), ([], []), ([9], [])]


def test_a_fast_run_is_dated_by_the_look_at_which_the_evidence_was_there() -> None:
    def at(step: int) -> Run:
        looked = [one for one in (1, 2, 3, 5, 10, 20, 40, 80, 160, 320, 640) if one <= step]
        return Run("run", series={"watching/elapsed": series("watching/elapsed", [0.1] * len(looked), steps=looked)})

    def judge(run: Run) -> Report:
        found = int(run.series["watching/elapsed"].steps[-1]) >= 20
        return Report(
            subject="run",
            detected={},
            findings=(FOUND,) if found else (),
            passed=(),
            skipped=(),
            crashed=(),
            problems=(),
        )

    runs = [at(3), at(640)]
    changes = Follower(lambda: runs.pop(0), judge, at)
    assert changes.look() is not None
    changes.not_before = 0.0
    final = changes.look(last=True)
    assert final is not None
    assert [told.step for told in final.new] == [20]
    assert final.step == 640
