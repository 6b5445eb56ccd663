"""``fgclip-doctor gate``: paths judged as CI would, commands run for a few steps, or configurations alone."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from fgclip_doctor import forecast, policy
from fgclip_doctor.comparison import compare
from fgclip_doctor.config import Config, plan_beside
from fgclip_doctor.diagnosis import Report, diagnose
from fgclip_doctor.findings import Evidence
from fgclip_doctor.inert import inert
from fgclip_doctor.live.gate import Outcome, run_steps
from fgclip_doctor.live.launcher import OVERFIT, fresh_directory
from fgclip_doctor.registry import Check
from fgclip_doctor.run import Missing, Run
from fgclip_doctor.sources import cache, load, recording, trainer
from fgclip_doctor.sources.facts import typed

RESUMED_STEPS = 5  # of the command that goes on from what the first one saved
LAST_LINES = 3  # of what a command printed, to say why it failed


class Failed(Exception):  # noqa: N818 - what is said of a command, not an error of ours
    """A command could not be judged: it failed, or did no optimizer step."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What is to be judged, and how."""

    paths: tuple[Path, ...] = ()
    commands: tuple[tuple[str, ...], ...] = ()
    steps: int = 20
    max_time: float = 1800.0
    repeat: bool = False
    resume: tuple[str, ...] = ()  # a command that goes on from what the first one saved
    overfit: bool = False
    config_only: bool = False
    record: Path | None = None
    base: Path | None = None
    against: Path | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    baseline: Path | None = None
    update_baseline: bool = False


def commands(words: Sequence[str] | None, quoted: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """The command after ``--``, and those that were given in quotes. Raises `Failed` for quotes that don't end."""
    return tuple(one for one in (tuple(words or ()), *map(_split, quoted)) if one)


def _split(text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise Failed(f"{text}: {str(error).lower()}") from None


def judge(gate: Gate, config: Config, checks: list[Check], *, say: Callable[[str], object]) -> tuple[Run, Report]:
    """The run that was judged (of several, the last) and one report on all. Raises `Failed`, `OSError`."""
    judged: list[tuple[Run, Report]] = []
    with cache.kept_in(cache.place(config.cache)):
        for run, notes in _runs(gate, config, say):
            run.plan = config.plan if config.plan.source else plan_beside(gate.paths)
            report = diagnose(run, checks, thresholds=config.thresholds, severities=config.severity)
            if gate.against:
                good = load([gate.against], gate.base, gate.facts, config.roles)
                good_report = diagnose(good, checks, thresholds=config.thresholds, severities=config.severity)
                report = replace(report, comparison=compare(run, report, good, good_report))
            judged.append((run, replace(report, observations=(*notes, *report.observations))))
    report = _joined([report for _, report in judged])
    accepted = policy.read_baseline(gate.baseline) if gate.baseline and not gate.update_baseline else {}
    report = policy.applied(report, set_aside=config.set_aside, baseline=accepted)
    if gate.baseline and gate.update_baseline:
        gate.baseline.write_text(policy.baseline_of(report), encoding="utf-8")
    return judged[-1][0], report


def _runs(gate: Gate, config: Config, say: Callable[[str], object]) -> Iterator[tuple[Run, list[Evidence]]]:
    if gate.config_only:
        yield from _configured(gate, config)
        return
    if gate.paths:
        yield load(gate.paths, gate.base, gate.facts, config.roles), []
    place = gate.record or fresh_directory()
    for number, words in enumerate(gate.commands):
        directory = place if len(gate.commands) == 1 else place / str(number + 1)
        outcome = _steps(words, directory, gate, say, until_saved=bool(gate.resume))
        run = load([directory], gate.base, gate.facts, config.roles)
        run.subject = shlex.join(words)
        notes = [_told(outcome, gate)]
        if gate.resume:
            if not outcome.saved:
                raise Failed(f"no checkpoint was saved within {outcome.step} steps, from which --resume could go on")
            _steps(gate.resume, directory / "resume", replace(gate, steps=RESUMED_STEPS), say)
            run.resumed = load([directory / "resume"], gate.base, gate.facts, config.roles)
        if gate.repeat:
            _steps(words, directory / "repeat", gate, say)
            run.repeated = recording.read(directory / "repeat").recording
        if gate.overfit:
            try:
                _steps(words, directory / "overfit", gate, say, variables={OVERFIT: "1"})
                run.overfitted = load([directory / "overfit"], gate.base, gate.facts, config.roles)
            except Failed as error:  # it runs otherwise, but not every training stands the same batch again
                notes.append(Evidence(name="overfitting", value="not known", why=str(error)))
        yield run, notes


def _steps(
    words: Sequence[str],
    directory: Path,
    gate: Gate,
    say: Callable[[str], object],
    *,
    variables: Mapping[str, str] | None = None,
    until_saved: bool = False,
) -> Outcome:
    """Run the steps. Raises `Failed` where there is nothing to judge."""
    if any(directory.glob("rank-*.jsonl")):
        raise Failed(f"{directory}: holds a recording already")
    say(f"fgclip-doctor: {inert(shlex.join(words))}: {gate.steps} steps, recorded in {directory}")
    with _progress(gate.steps) as on_step:
        outcome = run_steps(
            words,
            directory,
            steps=gate.steps,
            max_time=gate.max_time,
            variables=variables,
            on_step=on_step,
            until_saved=until_saved,
        )
    printed = (directory / "output.txt").read_text("utf-8", "replace").splitlines()[-LAST_LINES:]
    last = f"; it printed: {' | '.join(printed)}" if printed else ""
    if outcome.reason == "exit" and outcome.code:
        raise Failed(f"the command ended with {outcome.code} after {outcome.step} optimizer steps{last}")
    if not outcome.step:
        ended = f"in {outcome.seconds:.0f} s" if outcome.reason == "time" else "before it ended"
        raise Failed(f"no optimizer step of torch was seen {ended}{last}")
    if outcome.reason == "time":
        say(f"fgclip-doctor: --max-time is over at step {outcome.step} of {gate.steps}{last}")
    return outcome


def _told(outcome: Outcome, gate: Gate) -> Evidence:
    why = {
        "steps": "ended after the steps that were asked for",
        "time": "ended after --max-time",
        "exit": "it ended by itself",
    }[outcome.reason]
    seconds = f"{why}, {outcome.seconds:.0f} s after its start"
    return Evidence(
        name="optimizer steps run",
        value=outcome.step,
        expected=f"at least {gate.steps}",
        why=seconds,
        source=str(outcome.directory),
    )


def _configured(gate: Gate, config: Config) -> Iterator[tuple[Run, list[Evidence]]]:
    """What arguments and configurations say by themselves, with the forecast as what was measured."""
    settings = [path for path in gate.paths if path.suffix == ".toml"]
    others = [path for path in gate.paths if path not in settings]
    if others:
        yield _foretold(load(others, gate.base, gate.facts, config.roles))
    for path in settings:
        try:
            yield _foretold(forecast.read(path, gate.facts))
        except ValueError as error:  # what the settings of `train` can't be
            raise Failed(str(error)) from None
    for words in gate.commands:
        run = load([], gate.base, gate.facts, config.roles)
        run.subject = shlex.join(words)
        for fact in trainer.arguments(_flags(words), "the command line"):
            run.facts.setdefault(fact.name, fact)
        for fact in trainer.derived(run.facts):
            run.facts.setdefault(fact.name, fact)
        yield _foretold(run)


def _foretold(run: Run) -> tuple[Run, list[Evidence]]:
    try:
        lines = forecast.render(forecast.forecast(run)).splitlines()
    except (Missing, ValueError) as missing:
        return run, [Evidence(name="forecast", value="not known", why=str(missing))]
    return run, [Evidence(name="forecast", value=line.strip()) for line in lines if line.strip()]


def _flags(words: Sequence[str]) -> dict[str, object]:
    """``--key value``, ``--key=value`` and ``key=value`` of a command line."""
    flags: dict[str, object] = {}
    for word, following in zip(words, (*words[1:], ""), strict=True):
        name, equals, value = word.lstrip("-").partition("=")
        if equals:
            flags[name.replace("-", "_")] = typed(value)
        elif word.startswith("--"):
            flags[name.replace("-", "_")] = True if following.startswith("--") or not following else typed(following)
    return flags


def _joined(reports: Sequence[Report]) -> Report:
    """One report on several runs: each finding with the run that it is of."""
    if len(reports) == 1:
        return reports[0]
    ran = {code for report in reports for code in report.passed}
    findings = tuple(
        replace(finding, where=f"{report.subject}: {finding.where}")
        for report in reports
        for finding in report.findings
    )
    fired = {finding.code for finding in findings}
    return Report(
        subject=", ".join(report.subject for report in reports),
        detected={
            f"{n}: {role}": name for n, report in enumerate(reports, 1) for role, name in report.detected.items()
        },
        findings=findings,
        passed=tuple(sorted(ran - fired)),
        skipped=tuple(sorted({pair for report in reports for pair in report.skipped if pair[0] not in ran | fired})),
        crashed=tuple(pair for report in reports for pair in report.crashed),
        problems=tuple(line for report in reports for line in report.problems),
        observations=tuple(one for report in reports for one in report.observations),
        notes=tuple(line for report in reports for line in report.notes),
    )


@contextmanager
def _progress(steps: int) -> Iterator[Callable[[int], object]]:
    """A bar over the steps, where it can be seen."""
    if not sys.stderr.isatty():
        yield lambda step: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("optimizer steps", total=steps)
        yield lambda step: progress.update(task, completed=step)
