"""Makes each run of the gauntlet once, audits every view of its evidence, and judges what was said."""

from __future__ import annotations

import hashlib
import re
import shutil
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fgclip_doctor.diagnosis import Report, diagnose
from fgclip_doctor.findings import Finding, Severity
from fgclip_doctor.registry import installed_checks
from fgclip_doctor.sources import load
from tests.gauntlet.cases import Case, Fault, Hidden, Sound, by_name
from tests.gauntlet.trainer_runs import PlainRun
from tests.gauntlet.views import Evidence, View, checkpoints, evidence
from tests.kept import Kept

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Heard:
    """What one audit said, in its order."""

    evidence: str
    findings: tuple[Finding, ...]
    troubles: tuple[str, ...]  # checks that crashed and files that couldn't be read: never to be

    @property
    def alarms(self) -> tuple[Finding, ...]:
        return tuple(one for one in self.findings if one.severity.at_least(Severity.WARNING))


@dataclass(frozen=True)
class Judged:
    """A fault in one view: `expected` is empty where the view can't show it."""

    view: View
    expected: tuple[str, ...]
    hidden: str
    heard: Heard

    @property
    def found(self) -> bool:
        return any(one.code in self.expected for one in self.heard.findings)

    @property
    def first(self) -> bool:
        return bool(self.heard.findings) and self.heard.findings[0].code in self.expected

    @property
    def beside(self) -> tuple[str, ...]:
        """Alarms that are neither the fault's nor explained by others."""
        return tuple(
            dict.fromkeys(
                one.code for one in self.heard.alarms if one.code not in self.expected and not one.explained_by
            )
        )


@dataclass(frozen=True)
class Outcome:
    """A case with all that was heard of it."""

    case: Case
    path: Path | None
    judged: tuple[Judged, ...] = ()  # of a fault
    heard: tuple[Heard, ...] = ()  # of a sound run
    error: str = ""  # why it could not be made
    seconds: float = 0.0

    @property
    def false_alarms(self) -> tuple[tuple[str, Finding], ...]:
        return tuple((one.evidence, alarm) for one in self.heard for alarm in one.alarms)

    @property
    def troubles(self) -> tuple[str, ...]:
        return tuple(trouble for one in (*(j.heard for j in self.judged), *self.heard) for trouble in one.troubles)


def prepare() -> None:
    """Makes a process train on one thread, for models this small gain nothing by a second, and quietly."""
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def work(name: str, cache: Path, again: bool) -> Outcome:
    return run_case(by_name(name), cache, again=again)


def run_case(case: Case, cache: Path, *, again: bool = False) -> Outcome:
    """Makes the run of a case, unless it is in the cache, and audits it."""
    start = time.perf_counter()
    try:
        path, base = made(case, Kept(cache), again=again)
    except Exception:  # noqa: BLE001 - a run that can't be made is a line of the table, and not the end of it
        return Outcome(case, None, error=traceback.format_exc(), seconds=time.perf_counter() - start)
    judged = tuple(judge(case, path, base)) if isinstance(case, Fault) else ()
    heard = tuple(listen(case, path, base)) if isinstance(case, Sound) else ()
    return Outcome(case, path, judged, heard, seconds=time.perf_counter() - start)


def made(case: Case, kept: Kept, *, again: bool = False) -> tuple[Path, Path | None]:
    """The directories of the run, which has its recording beside it, and of its base. Their names tell their recipe."""
    start = case.run.start
    base = None
    if start is not None:
        base = kept.once(f"base-{key(start)}", lambda path: start.make(path, None))
    name = f"{slug(case)}-{key(case.run)}"
    if again:
        shutil.rmtree(kept.folder / name, ignore_errors=True)
    kept_there = kept.once(name, lambda path: case.run.make(path / "run", base, path / "recording"))
    return kept_there / "run", base


def slug(case: Case) -> str:
    return re.sub(r"[^a-z0-9]+", "-", case.name.lower()).strip("-")


def key(recipe: object) -> str:
    """A hash of a recipe and of the code that carries it out."""
    return hashlib.sha256(f"{recipe!r}{_makers(type(recipe).__module__)}".encode()).hexdigest()[:10]


@cache
def _makers(module: str) -> str:
    files = [ROOT.joinpath(*module.split(".")).with_suffix(".py"), *sorted(ROOT.glob("fgclip_doctor/core/**/*.py"))]
    files += [*sorted(ROOT.glob("fgclip_doctor/training/**/*.py")), *sorted(ROOT.glob("fgclip_doctor/live/*.py"))]
    files += [ROOT / "tests" / "real" / "trainer_run.py", ROOT / "tests" / "gauntlet" / "watched.py"]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def views(case: Case, base: Path | None) -> list[View]:
    """The evidence that there is: adapters by themselves can't be compared with the weights that they adapt."""
    comparable = base is not None and not (isinstance(case.run, PlainRun) and case.run.adapters)
    return [view for view in View if comparable or view is not View.BASE]


def judge(fault: Fault, path: Path, base: Path | None) -> Iterator[Judged]:
    """A fault in each view of its evidence."""
    for view in views(fault, base):
        seen = evidence(view, path, base=base, facts=fault.run.facts, form=form(fault), target=beside(path))
        expected = fault.expected(view)
        hidden = expected.reason if isinstance(expected, Hidden) else ""
        yield Judged(view, () if isinstance(expected, Hidden) else tuple(expected.split()), hidden, audit(view, seen))


def listen(sound: Sound, path: Path, base: Path | None) -> Iterator[Heard]:
    """A sound run in each view of its evidence, in all of it, each checkpoint alone, and its log without any fact."""
    for view in views(sound, base):
        seen = evidence(view, path, base=base, facts=sound.run.facts, form=form(sound), target=beside(path))
        yield audit(view, seen)
        if seen.facts:
            yield audit(f"{view} without facts", Evidence(seen.paths))
        if view is View.RECORDING:
            yield audit("both and recording", Evidence([path, *seen.paths]))
    for checkpoint in checkpoints(path):
        yield audit(checkpoint.name, Evidence([checkpoint]))


def audit(name: str, seen: Evidence) -> Heard:
    report = report_of(seen)
    crashed = [f"{name}: {code} crashed: {error}" for code, error in report.crashed]
    unread = [f"{name}: {problem}" for problem in report.problems]
    return Heard(name, report.findings, (*crashed, *unread))


def report_of(seen: Evidence) -> Report:
    checks, problems = installed_checks()
    if problems:
        raise RuntimeError("; ".join(problems))
    run = load(list(seen.paths), base=seen.base, facts=seen.facts)
    return diagnose(run, [check for check in checks if not check.preview])


def form(case: Case) -> int:
    """Which of the log's formats a case gets."""
    return int(hashlib.sha256(case.name.encode()).hexdigest(), 16)


def beside(path: Path) -> Path:
    """Where the views of a run are made."""
    return path.with_name(f"{path.name}.views")
