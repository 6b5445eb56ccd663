"""The command line. Each command is a few lines; whatever is heavy is imported inside the command that needs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand, TyperGroup

from fgclip_doctor import __version__
from fgclip_doctor.config import Config, ConfigError, parse_fail_on, plan_beside, read_config
from fgclip_doctor.registry import Check, RegistryError, installed_causes, installed_checks, selected

if TYPE_CHECKING:
    from rich.progress import Progress

    from fgclip_doctor.diagnosis import Report
    from fgclip_doctor.findings import Severity
    from fgclip_doctor.run import Run

UsageError: Any = typer.BadParameter.__mro__[1]  # click's, of which typer has a copy under no public name
LONG_READ_BYTES = 1 << 28  # from here on, reading takes long enough for a progress bar


class OneLine(TyperGroup):
    """Says what is wrong with the words that it is given in one line."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "" in (args[: args.index("--")] if "--" in args else args):  # a path of no letters is this directory
            raise _fail("an empty word is given, as a variable that isn't set leaves one")
        wordless = not args  # then it is the help that is raised
        try:
            return super().parse_args(ctx, args)
        except UsageError as error:
            raise (error if wordless else _misused(error, "")) from None

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UsageError as error:
            raise _misused(error, ctx.invoked_subcommand) from None


def _misused(error: Any, command: str | None) -> typer.Exit:
    return _fail(f"{error.format_message()} See {' '.join(filter(None, ('fgclip-doctor', command, '--help')))}.")


app = typer.Typer(
    name="fgclip-doctor",
    cls=OneLine,
    help="Finds the silent faults of contrastive fine-tuning, and proves them with numbers.",
    no_args_is_help=True,
    rich_markup_mode=None,  # rich's help costs 50 ms on every command
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Format(StrEnum):
    TEXT = "text"
    JSON = "json"
    GITHUB = "github"
    JUNIT = "junit"
    SARIF = "sarif"
    MARKDOWN = "markdown"
    HTML = "html"


def _examples(*commands: str) -> str:
    """What stands under a command's help, on lines of their own, which ``\\b`` asks for."""
    return "\n".join(["\b", "Examples:", *(f"  fgclip-doctor {command}" for command in commands)])


def _fail(message: str) -> typer.Exit:
    """One clear line on stderr, and the exit code for what is not a finding."""
    from fgclip_doctor.inert import inert

    typer.echo(f"fgclip-doctor: {inert(message)}", err=True)
    return typer.Exit(2)


def _words(error: Exception) -> str:
    """What went wrong, a file that the system refused before its reason."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _show(text: str) -> None:
    """Print `text`. A reader that has left, as `head` does, has seen enough: the exit code stays what it is."""
    if sys.stdout is None:
        raise _fail("standard output is closed")
    try:
        typer.echo(text, nl=False)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is left in the buffer
        if not isinstance(error, BrokenPipeError):
            raise _fail(f"standard output: {error.strerror}") from None


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fgclip-doctor {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    if isinstance(sys.stdout, TextIOWrapper):  # names may have letters that the terminal's encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")


def _rules_from(incomplete: str) -> list[tuple[str, str]]:
    """Codes and what they find, for the shell to complete."""
    return [(one.code, one.defect) for one in installed_checks()[0] if one.code.startswith(incomplete)]


Select = Annotated[
    list[str] | None,
    typer.Option("--select", autocompletion=_rules_from, help="Only these rules: codes, prefixes or names."),
]
Ignore = Annotated[
    list[str] | None,
    typer.Option("--ignore", autocompletion=_rules_from, help="Not these rules: codes, prefixes or names."),
]
Facts = Annotated[
    list[str] | None, typer.Option("--fact", metavar="NAME=VALUE", help="State what no file says, e.g. micro_batch=4.")
]
Base = Annotated[Path | None, typer.Option("--base", readable=False, help="The weights that the run started from.")]
Against = Annotated[
    Path | None, typer.Option("--against", readable=False, help="A run that is known to be good: what differs?")
]
Output = Annotated[Path | None, typer.Option("--output", "-o", readable=False, help="Write the report to this file.")]
FailOn = Annotated[
    str | None, typer.Option("--fail-on", help="Exit with 1 from here on: error (default), warning, info, never.")
]
Baseline = Annotated[
    Path | None, typer.Option("--baseline", readable=False, help="Findings that were there before: set aside.")
]
Also = Annotated[
    list[str] | None, typer.Option("--also", metavar="FORMAT=FILE", help="Write another format, too, to a file.")
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", readable=False, help="TOML file to use instead of pyproject.toml.")
]


@app.command(
    short_help="Find the faults of a checkpoint or a run.",
    epilog=_examples(
        "audit checkpoint-240/",
        "audit runs/exp7 --base openai-clip/ --fact accumulation=8",
        "audit checkpoint-240/ --format json --fail-on warning",
    ),
)
def audit(
    paths: Annotated[
        list[Path],  # not `readable` for typer, whose complaint takes four lines
        typer.Argument(metavar="PATH...", readable=False, help="Checkpoints, run directories, weight files."),
    ],
    base: Base = None,
    data: Annotated[
        Path | None, typer.Option("--data", readable=False, help="What it is trained on: JSON of captions and regions.")
    ] = None,
    against: Against = None,
    fact: Facts = None,
    output_format: Annotated[Format, typer.Option("--format", help="What to print.")] = Format.TEXT,
    output: Output = None,
    also: Also = None,
    select: Select = None,
    ignore: Ignore = None,
    fail_on: FailOn = None,
    baseline: Baseline = None,
    update_baseline: Annotated[
        bool, typer.Option("--update-baseline", help="Write what is found now to the baseline, and leave with 0.")
    ] = False,
    config_file: ConfigFile = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also list what passed and what was skipped.")
    ] = False,
    show_parse: Annotated[
        bool, typer.Option("--show-parse", help="First print what is understood of each log, line by line.")
    ] = False,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Measure every tensor again, and keep nothing for the next audit.")
    ] = False,
) -> None:
    """Say what a checkpoint or a run directory tells: each fault, its evidence, its cause and its fix."""
    from dataclasses import replace

    from fgclip_doctor import policy
    from fgclip_doctor.comparison import compare
    from fgclip_doctor.diagnosis import diagnose
    from fgclip_doctor.sources import annotation_file, cache, load
    from fgclip_doctor.sources.files import Unreadable

    try:
        if update_baseline and baseline is None:
            raise ConfigError("--update-baseline needs --baseline FILE")
        config, checks = _settings(config_file, select, ignore)
        accepted = policy.read_baseline(baseline) if baseline and not update_baseline else {}
        threshold = config.fail_on if fail_on is None else parse_fail_on(fail_on)
        facts = {name: str(value) for name, value in config.facts.items()} | _facts(fact or [])
        with cache.kept_in(None if no_cache else cache.place(config.cache)):
            with _data_bar() as bar, annotation_file.watched(bar):
                run = load(paths, base=base, facts=facts, roles=config.roles, data=data)
            run.plan = config.plan if config.plan.source else plan_beside(paths)
            if show_parse:
                _explain_logs(paths, to_stderr=output_format is not Format.TEXT)
            _read_weights(run)
            report = diagnose(run, checks, thresholds=config.thresholds, severities=config.severity)
            if against:
                good = load([against], base=base, facts=facts, roles=config.roles)
                good_report = diagnose(good, checks, thresholds=config.thresholds, severities=config.severity)
                report = replace(report, comparison=compare(run, report, good, good_report))
        report = policy.applied(report, set_aside=config.set_aside, baseline=accepted)
        if baseline and update_baseline:
            baseline.write_text(policy.baseline_of(report), encoding="utf-8")
    except (ConfigError, RegistryError, Unreadable, OSError) as error:
        raise _fail(_words(error)) from None
    _print(report, run, output_format, output, also or [], verbose=verbose, threshold=threshold, checks=checks)
    raise typer.Exit(0 if update_baseline else report.exit_code(threshold))


class WithCommand(TyperCommand):
    """A command whose words after ``--`` are somebody else's command line."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--" in args:
            place = args.index("--")
            ctx.meta["command"] = args[place + 1 :]
            args = args[:place]
        return super().parse_args(ctx, args)


@app.command(
    cls=WithCommand,
    short_help="Follow a run while it goes on.",
    epilog=_examples(
        "watch -- python train.py --lr 5e-6",
        "watch --stop-on error -- torchrun --nproc-per-node 8 train.py",
        "watch runs/exp7",
        "watch runs/exp7 --once",
    ),
)
def watch(
    context: typer.Context,
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="[PATH...] [-- COMMAND...]", readable=False, help="What to follow.")
    ] = None,
    record: Annotated[
        Path | None, typer.Option("--record", readable=False, help="Where a command's recording goes.")
    ] = None,
    interval: Annotated[float, typer.Option("--interval", min=0.1, help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, and leave.")] = False,
    screen: Annotated[
        bool | None, typer.Option("--dashboard/--lines", help="A screen of its own, or lines as findings appear.")
    ] = None,
    stop_on: Annotated[
        str | None, typer.Option("--stop-on", help="End the command after its next checkpoint: error, warning, info.")
    ] = None,
    stop_now: Annotated[bool, typer.Option("--stop-now", help="With --stop-on: don't wait for a checkpoint.")] = False,
    tensorboard: Annotated[
        Path | None, typer.Option("--tensorboard", readable=False, help="Write doctor/ scalars for TensorBoard here.")
    ] = None,
    base: Base = None,
    fact: Facts = None,
    select: Select = None,
    ignore: Ignore = None,
    fail_on: Annotated[
        str | None, typer.Option("--fail-on", help="Of a path that ended: exit with 1 from here on (default: error).")
    ] = None,
    config_file: ConfigFile = None,
) -> None:
    """Follow a run that writes logs, or run a command and watch it: each finding as soon as there is evidence.

    A command needs no change: it is watched through its environment, and its exit code is ours.
    """
    from fgclip_doctor import policy
    from fgclip_doctor.diagnosis import diagnose
    from fgclip_doctor.live import watch as watching
    from fgclip_doctor.live.follow import Follower
    from fgclip_doctor.live.launcher import fresh_directory
    from fgclip_doctor.sources.following import Following

    words = context.meta.get("command")
    if bool(words) == bool(paths):
        raise _fail("watch takes a PATH that grows, or -- and a command to run")
    try:
        config, checks = _settings(config_file, select, ignore)
        facts = {name: str(value) for name, value in config.facts.items()} | _facts(fact or [])
        directory = record or fresh_directory()
        followed = paths or [directory]
        following = Following(followed, base=base, facts=facts, roles=config.roles)

        def judge(run: Run) -> Report:
            run.plan = config.plan if config.plan.source else plan_beside(followed)
            report = diagnose(run, checks, thresholds=config.thresholds, severities=config.severity)
            return policy.applied(report, set_aside=config.set_aside)

        options = watching.Options(
            interval=interval,
            stop_on=parse_fail_on(stop_on) if stop_on else None,
            stop_at_once=stop_now,
            dashboard=sys.stdout.isatty() and not once and not words if screen is None else screen,
            tensorboard=tensorboard,
        )
        threshold = config.fail_on if fail_on is None else parse_fail_on(fail_on)
        subject = " ".join(words) if words else ", ".join(map(str, followed))
        watcher = watching.Watcher(Follower(following.poll, judge, following.until), options, subject=subject)
        if words:
            raise typer.Exit(watching.command(words, directory, watcher))
        report = watching.paths(watcher, once=once, over=following.ended)
    except (ConfigError, RegistryError, OSError) as error:
        raise _fail(_words(error)) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if report is None:
        raise _fail(following.problem or f"{subject}: nothing to read")
    raise typer.Exit(report.exit_code(threshold))


@app.command(
    cls=WithCommand,
    short_help="Judge a run before it is long: in CI, or ahead of a week.",
    epilog=_examples(
        "gate --steps 20 -- python train.py --lr 5e-6",
        "gate --steps 20 --repeat --format github -- torchrun --nproc-per-node 2 train.py",
        "gate --overfit --resume 'python train.py --resume last' -- python train.py",
        "gate checkpoints/ --baseline doctor-baseline.json --format junit --output doctor.xml",
        "gate --config-only training_args.bin --fact scale=100 --fact dimension=512",
    ),
)
def gate(
    context: typer.Context,
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="[PATH...] [-- COMMAND...]", readable=False, help="What to judge.")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Optimizer steps of the command to run.")] = 20,
    max_time: Annotated[float, typer.Option("--max-time", min=1, help="Seconds after which it is ended.")] = 1800.0,
    commands: Annotated[
        list[str] | None, typer.Option("--command", help="One more command to run and judge, in quotes.")
    ] = None,
    repeat: Annotated[bool, typer.Option("--repeat", help="Run it twice: do the losses agree?")] = False,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="COMMAND", help="One in quotes that goes on from what was saved: does it?"),
    ] = None,
    overfit: Annotated[
        bool, typer.Option("--overfit", help="Run it again on its first batch alone: is that one learnt?")
    ] = False,
    config_only: Annotated[
        bool, typer.Option("--config-only", help="Run nothing: judge and forecast from arguments and configurations.")
    ] = False,
    record: Annotated[Path | None, typer.Option("--record", readable=False, help="Where the recordings go.")] = None,
    base: Base = None,
    against: Against = None,
    fact: Facts = None,
    output_format: Annotated[Format, typer.Option("--format", help="What to print.")] = Format.TEXT,
    output: Output = None,
    also: Also = None,
    select: Select = None,
    ignore: Ignore = None,
    fail_on: FailOn = None,
    baseline: Baseline = None,
    update_baseline: Annotated[
        bool, typer.Option("--update-baseline", help="Write what is found now to the baseline, and leave with 0.")
    ] = False,
    config_file: ConfigFile = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also list what passed and what was skipped.")
    ] = False,
) -> None:
    """Judge paths as CI would, or run the first steps of a training command, end it cleanly, and judge those.

    Its checkpoints and logs are left alone, and no process of it is left behind.
    """
    from fgclip_doctor import gating
    from fgclip_doctor.run import Missing
    from fgclip_doctor.sources.files import Unreadable

    try:
        words = gating.commands(context.meta.get("command"), commands or [])
        resumed = next(iter(gating.commands(None, [resume or ""])), ())
    except gating.Failed as error:
        raise _fail(str(error)) from None
    if not paths and not words:
        raise _fail("gate takes a PATH, or -- and a command to run")
    if resumed and (len(words) != 1 or config_only):
        raise _fail("--resume goes on from one command that is run")
    try:
        config, checks = _settings(config_file, select, ignore)
        threshold = config.fail_on if fail_on is None else parse_fail_on(fail_on)
        wanted = gating.Gate(
            paths=tuple(paths or ()),
            commands=words,
            steps=steps,
            max_time=max_time,
            repeat=repeat,
            resume=resumed,
            overfit=overfit,
            config_only=config_only,
            record=record,
            base=base,
            against=against,
            facts={name: str(value) for name, value in config.facts.items()} | _facts(fact or []),
            baseline=baseline,
            update_baseline=update_baseline,
        )
        run, report = gating.judge(wanted, config, checks, say=lambda line: typer.echo(line, err=True))
    except (ConfigError, RegistryError, Unreadable, Missing, OSError, gating.Failed) as error:
        raise _fail(_words(error)) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    _print(report, run, output_format, output, also or [], verbose=verbose, threshold=threshold, checks=checks)
    raise typer.Exit(0 if update_baseline else report.exit_code(threshold))


@app.command(
    short_help="Train FG-CLIP.",
    epilog=_examples(
        "train --set steps=20 --set output_dir=runs/first",
        "train settings.toml --set model.memory_bank_size=128",
        "train --resume --set output_dir=runs/first",
    ),
)
def train(
    settings_file: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG.toml]", help="Settings; without them, small synthetic scenes.")
    ] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting, over those of the file.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the latest checkpoint in output_dir.")] = False,
) -> None:
    """Train FG-CLIP, and say before the first step what will happen."""
    from rich.console import Console

    from fgclip_doctor import train_command

    try:
        config = train_command.settings(settings_file, assignments or [], resume=resume)
        train_command.train(config, Console())
    except (ValueError, OSError, ModuleNotFoundError) as error:
        raise _fail(_words(error)) from None
    except train_command.Interrupted as left:
        typer.echo(f"fgclip-doctor: {left}", err=True)
        raise typer.Exit(130) from None


@app.command(
    short_help="Say what a run's losses will mean.",
    epilog=_examples(
        "forecast --fact micro_batch=4 --fact scale=14.24 --fact dimension=512",
        "forecast training_args.bin --fact scale=100",
    ),
)
def forecast(
    path: Annotated[
        Path | None, typer.Argument(metavar="[PATH]", help="Settings of `train`, training_args.bin, a checkpoint.")
    ] = None,
    fact: Facts = None,
    output_format: Annotated[Literal["text", "json"], typer.Option("--format", help="What to print.")] = "text",
) -> None:
    """Say what a run's losses will mean: candidates, chance, null level and noise, and when the bank is on and full."""
    from fgclip_doctor import forecast as plan
    from fgclip_doctor.run import Missing
    from fgclip_doctor.sources.files import Unreadable

    try:
        foretold = plan.forecast(plan.read(path, _facts(fact or [])))
    except (ValueError, Missing, Unreadable) as error:
        raise _fail(str(error)) from None
    _show(plan.render_json(foretold) if output_format == "json" else plan.render(foretold))


@app.command(short_help="See it find the faults of a small run.", epilog=_examples("demo --directory /tmp/demo"))
def demo(
    directory: Annotated[Path, typer.Option("--directory", help="Where the runs are kept.")] = Path(
        ".fgclip-doctor/demo"
    ),
) -> None:
    """Train the case study's run in small, audit it, correct it, audit again: under three minutes on two cores."""
    from rich.console import Console

    from fgclip_doctor.demo import demo as run_demo

    try:
        _, checks = _settings(None, None, None)
        run_demo(directory, checks, Console())
    except (ConfigError, RegistryError, OSError) as error:
        raise _fail(_words(error)) from None


@app.command(epilog=_examples("rules --select FGD2"))
def rules(select: Select = None, ignore: Ignore = None) -> None:
    """List the rules of every installed pack."""
    try:
        _, checks = _settings(None, select or ["all"], ignore)
    except (ConfigError, RegistryError) as error:
        raise _fail(str(error)) from None
    width = max((len(check.name) for check in checks), default=0)
    for check in checks:
        _show(f"{check.code}  {check.name:<{width}}  {check.severity:<7}  {check.defect}\n")


@app.command(short_help="Explain a rule.", epilog=_examples("explain FGD201"))
def explain(code: Annotated[str, typer.Argument(autocompletion=_rules_from, help="A rule's code or name.")]) -> None:
    """Explain a rule: why it hurts, how it is measured, its benign look-alike, its fix in code, causes and sources."""
    from fgclip_doctor import explanations

    checks, _ = installed_checks()
    check = next((one for one in checks if code.lower() in (one.code.lower(), one.name)), None)
    if check is None:
        raise _fail(f"there is no rule {code!r}; `fgclip-doctor rules` lists them")
    _show(explanations.plain(check, installed_causes(), {one.code: one.name for one in checks}))


def _settings(file: Path | None, select: list[str] | None, ignore: list[str] | None) -> tuple[Config, list[Check]]:
    """The configuration and the checks that it and the command line leave; the command line wins."""
    config = read_config(file)
    checks, problems = installed_checks()
    for problem in problems:
        typer.echo(f"fgclip-doctor: {problem}", err=True)
    config.check_against(checks)
    return config, selected(checks, _codes(select) or config.select, (*config.ignore, *_codes(ignore)))


def _codes(entries: list[str] | None) -> list[str]:
    """``--select FGD1,FGD2 --select FGD301`` as a flat list."""
    return [code.strip() for entry in entries or [] for code in entry.split(",") if code.strip()]


def _facts(entries: list[str]) -> dict[str, str]:
    facts = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not (name and equals and value):
            raise ConfigError(f"--fact takes NAME=VALUE, not {entry!r}")
        facts[name.strip()] = value.strip()
    return facts


def _explain_logs(paths: list[Path], *, to_stderr: bool) -> None:
    from fgclip_doctor.sources import text_log

    for path in paths:
        for log in text_log.logs(path):
            for line in text_log.explain(log):
                typer.echo(line, err=to_stderr)


@contextmanager
def _data_bar() -> Iterator[Callable[[int, int], None]]:
    """A progress bar for large annotations where one can be seen: to be told how many bytes of how many are read."""
    shown: list[Progress] = []

    def show(done: int, total: int) -> None:
        if total < LONG_READ_BYTES or not sys.stderr.isatty():
            return
        if not shown:
            shown.append(_bar("reading annotations"))
            shown[0].add_task("annotations", total=total)
            shown[0].start()
        shown[0].update(shown[0].task_ids[0], completed=done)

    try:
        yield show
    finally:
        for bar in shown:
            bar.stop()


def _bar(what: str) -> Progress:
    """A bar in bytes on stderr, which leaves no trace."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (what, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


def _read_weights(run: Run) -> None:
    """Take the streamed statistics of large weights ahead of the checks, with a progress bar where one can be seen."""
    tensors = list(run.checkpoints[-1].tensors.values()) if run.checkpoints else []
    total = sum(tensor.nbytes for tensor in tensors)
    if total < LONG_READ_BYTES or not sys.stderr.isatty():
        return
    with _bar("reading weights") as progress:
        task = progress.add_task("weights", total=total)
        for tensor in tensors:
            _ = tensor.statistics
            progress.advance(task, tensor.nbytes)


def _print(
    report: Report,
    run: Run,
    output_format: Format,
    output: Path | None,
    also: list[str],
    *,
    verbose: bool,
    threshold: Severity | None,
    checks: list[Check],
) -> None:
    for entry in also:
        name, _, file = entry.partition("=")
        if name not in list(Format) or not file:
            raise _fail(f"--also takes FORMAT=FILE with one of {', '.join(Format)}, not {entry!r}")
        _write(Path(file), _rendered(report, run, Format(name), verbose=verbose, threshold=threshold, checks=checks))
    if output_format is Format.TEXT and output is None and sys.stdout is not None and sys.stdout.isatty():
        from rich.console import Console

        from fgclip_doctor.reports import terminal

        Console().print(terminal.render(report, verbose=verbose))
        return
    rendered = _rendered(report, run, output_format, verbose=verbose, threshold=threshold, checks=checks)
    if output is None:
        _show(rendered)
        return
    _write(output, rendered)


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise _fail(_words(error)) from None


def _rendered(
    report: Report, run: Run, output_format: Format, *, verbose: bool, threshold: Severity | None, checks: list[Check]
) -> str:
    match (
        output_format
    ):  # each imports what it needs alone: an audit is over in less time than matplotlib takes to load
        case Format.JSON:
            from fgclip_doctor.reports import json

            return json.render(report, version=__version__)
        case Format.GITHUB:
            from fgclip_doctor.reports import github, markdown

            if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
                with Path(summary).open("a", encoding="utf-8") as file:
                    file.write(markdown.render(report, limit=github.SUMMARY_LENGTH))
            return github.render(report)
        case Format.JUNIT:
            from fgclip_doctor.reports import junit

            return junit.render(report, fail_on=threshold)
        case Format.SARIF:
            from fgclip_doctor.reports import sarif

            return sarif.render(report, version=__version__, checks=checks)
        case Format.HTML:
            from fgclip_doctor.reports import html

            return html.render(report, run, version=__version__)
        case Format.MARKDOWN:
            from fgclip_doctor.reports import markdown

            return markdown.render(report)
        case _:
            from fgclip_doctor.reports import text

            return text.render(report, verbose=verbose)
