"""``fgclip-doctor forecast``: what a run's losses will mean, from its plan alone.

For every loss term, how many candidates an anchor has, chance and null level with its noise, before the memory bank
switches on and once it is full; and when that is, in steps and in forward passes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil, exp, log, log2, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgclip_doctor import theory
from fgclip_doctor.inert import inert
from fgclip_doctor.run import FACTS, Fact, Missing, Run
from fgclip_doctor.terms import HARD_CANDIDATES, dimension_of, null_of, scale_of

if TYPE_CHECKING:
    from fgclip_doctor.training.settings import TrainConfig

SCALE_CAP = 100.0  # Radford et al. 2021, section 2.5
LOG_SPACE = 5.0  # a scale below this is likely to be a logit_scale, which runs from 2.66 to 4.61
ASSUMED = {"accumulation": 1.0, "world_size": 1.0, "regions_per_sample": 1.0}
# What a fact may be, so that nonsense is refused in words: counts that a run may have, scales that a softmax stands
LIMITS = {
    "micro_batch": (1, 1e7),
    "accumulation": (1, 1e6),
    "world_size": (1, 1e6),
    "regions_per_sample": (1e-3, 1e4),
    "candidates": (2, 1e9),
    "candidates.global": (2, 1e9),
    "candidates.region": (2, 1e9),
    "candidates.hard": (2, 1e9),
    "bank_size": (1, 1e9),
    "bank_warmup": (0, 1e12),
    "scale": (1e-3, 1e3),
    "logit_scale_init": (-7, log(1e3)),
    "dimension": (16, 1e6),
    "max_steps": (1, 1e12),
    "warmup_steps": (0, 1e12),
    "dataset_size": (1, 1e12),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One loss term while its candidates stay as they are. Levels and noise are in nats."""

    name: str  # "", or "bank off" and "bank full"
    candidates: float
    chance: float  # every candidate alike, as for collapsed features
    null: float  # features that know nothing of each other
    noise_forward: float  # standard deviation of the null over forwards
    noise_step: float  # ... and over steps, each the mean of its forwards
    null_at_cap: float  # at a scale of 100
    noise_forward_at_cap: float
    most_bits: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TermForecast:
    """One loss term over the run."""

    name: str
    anchors: float
    scale: float
    phases: tuple[Phase, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """When the bank switches on and is full, if its warmup is counted in `clock`. A step is an optimizer step."""

    clock: str  # "step" or "forward"
    on_step: float
    on_forward: float
    full_step: float
    full_forward: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BankForecast:
    """The memory bank over the run. Two switches where nothing says which clock its warmup is counted in."""

    size: int
    rows_per_forward: float
    switches: tuple[Switch, ...]
    null_shift: float  # how far the null level of the region loss moves, in nats
    candidates_shift: float  # ln of the ratio of the candidates: what the shift is about
    bits_of_old_null: float  # learnt bits that the level of chance before would mean with the bank full


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What the plan of a run says of its losses."""

    subject: str
    facts: Mapping[str, Any]
    assumed: Mapping[str, Any]
    terms: tuple[TermForecast, ...]
    bank: BankForecast | None
    notes: tuple[str, ...]


def read(path: Path | None, stated: Mapping[str, str]) -> Run:
    """The plan that a settings file of `train`, a training_args.bin, a checkpoint or a run directory tells.

    Raises `Unreadable`, or `SettingsError` for a settings file.
    """
    from fgclip_doctor.sources import load

    if path is None:
        return load([], facts=stated)
    if path.suffix != ".toml":
        return load([path], facts=stated)
    from fgclip_doctor.training import settings_file

    config = settings_file.read(path, output_dir=".")
    there = config.base is not None and config.base.exists()  # a base brings its scales
    run = load([config.base] if config.base and there else [], facts=stated)
    if config.base and not there:  # as where the settings are committed
        run.notes.append(f"{config.base}, the base, isn't here, so its scales are those of the settings")
    run.subject = str(path)
    for fact in planned(config, ranks=1, source=str(path)):
        found_later = config.data is not None and fact.name in ("dataset_size", "regions_per_sample")
        if fact.name not in stated and not found_later:
            run.facts[fact.name] = fact
    return run


def planned(config: TrainConfig, *, ranks: int, source: str) -> Iterator[Fact]:
    """The facts that the settings of a training run state."""
    from fgclip_doctor.sources import trainer

    yield from trainer.facts({**config.to_training_args(ranks), **config.model.to_dict()}, source)


def forecast(run: Run, scales: Mapping[str, float] | None = None) -> Forecast:
    """The forecast of a plan. Raises `Missing`, naming every fact that is needed and not known, or not possible.

    `scales` are exp(logit_scale) by term where a model is at hand; otherwise they are what the run tells.
    """
    _refuse_nonsense(run.facts)
    known = {name: float(run.facts[name].value) for name in LIMITS if name in run.facts}
    plan = ASSUMED | known
    dimension = _need(run, known=bool(scales))
    bank = known.get("bank_size") if _has_bank(run) else None
    terms = []
    for name in ("global", "region", "hard"):
        rows = int(bank or 0) if name == "region" else 0
        anchors, candidates = _counts(name, plan, rows)
        counts = {"bank off": candidates, "bank full": candidates + rows} if rows else {"": candidates}
        scale = scales[name] if scales else _scale(run, name)
        if not 0 <= scale <= LIMITS["scale"][1]:
            raise Missing(f"the scale of the {name} loss is {scale:g}, which no softmax stands")
        phases = (
            _phase(phase, anchors, count, scale, dimension, plan["accumulation"]) for phase, count in counts.items()
        )
        terms.append(TermForecast(name=name, anchors=anchors, scale=scale, phases=tuple(phases)))
    banked = None if bank is None else _bank(run, terms[1], int(bank), plan)
    used = [name for name in FACTS if name in run.facts and (name in LIMITS or name.startswith("bank_"))]
    return Forecast(
        subject=run.subject or "--fact",
        facts={name: run.facts[name].value for name in used},
        assumed={name: value for name, value in ASSUMED.items() if name not in run.facts},
        terms=tuple(terms),
        bank=banked,
        notes=tuple(_notes(run, terms, banked, plan, ours=bool(scales))),
    )


def _counts(name: str, plan: Mapping[str, float], rows: int) -> tuple[float, float]:
    """Anchors and candidates of one forward, on all ranks, without the `rows` of the bank. At least 1 each."""
    batch = plan.get("micro_batch", 0.0) * plan["world_size"]
    if name != "global":
        batch *= plan["regions_per_sample"]
    if name == "hard":
        return max(batch, 1.0), plan.get("candidates.hard", float(HARD_CANDIDATES))
    stated = plan.get(f"candidates.{name}", plan.get("candidates", 0.0))
    inside = stated - rows if stated > rows else stated  # what is stated counts the bank's rows too
    candidates = max(inside or batch, 1.0)
    return min(max(batch, 1.0) if batch else candidates, candidates), candidates


def _refuse_nonsense(facts: Mapping[str, Fact]) -> None:
    strange = [
        fact
        for name, fact in facts.items()
        if name not in FACTS and name not in LIMITS and not name.startswith("learning_rate.")
    ]
    if strange:
        raise Missing(f"{strange[0].source}: there is no such fact; there are {', '.join(FACTS)}")
    for name, (least, most) in LIMITS.items():
        fact = facts.get(name)
        if fact is None:
            continue
        number = isinstance(fact.value, (int, float)) and not isinstance(fact.value, bool)
        if not number or not least <= fact.value <= most:
            must = f"must be a number from {least:.4g} to {most:.4g}, not {fact.value!r}"
            raise Missing(f"{fact.source}: {name} {must}")
    clock = facts.get("bank_clock")
    if clock is not None and clock.value not in ("step", "forward"):
        raise Missing(f"{clock.source}: bank_clock must be step or forward, not {clock.value!r}")
    kind = facts.get("loss_kind")
    if kind is not None and kind.value == "sigmoid":
        raise Missing("the loss is a sigmoid loss, which has another chance level")


def _need(run: Run, *, known: bool) -> int:
    """The width of the embedding; names everything that the forecast can't do without, at once."""
    wanting = []
    if not {"micro_batch", "candidates"} & run.facts.keys():
        wanting.append("micro_batch")
    try:
        _ = known or _scale(run, "region")
    except Missing:
        wanting.append("scale")
    dimension = 0
    try:
        dimension = dimension_of(run)
    except Missing:
        wanting.append("dimension")
    if wanting:
        meant = ", ".join(f"{name} ({FACTS[name]})" for name in wanting)
        raise Missing(f"not known: {meant}; state each with --fact NAME=VALUE")
    return dimension


def _scale(run: Run, name: str) -> float:
    """exp(logit_scale) of a term as stated, logged or saved; else where the configuration starts it."""
    try:
        return scale_of(run, name)[0]
    except Missing:
        return exp(run.number("logit_scale_init"))


def _has_bank(run: Run) -> bool:
    enabled = run.facts.get("bank_enabled")
    return "bank_size" in run.facts and (enabled is None or enabled.value is not False)


def _phase(name: str, anchors: float, candidates: float, scale: float, dimension: int, accumulation: float) -> Phase:
    null, capped = (
        null_of(anchors=anchors, candidates=candidates, scale=one, dimension=dimension) for one in (scale, SCALE_CAP)
    )
    return Phase(
        name=name,
        candidates=candidates,
        chance=theory.chance_level(candidates),
        null=null.level,
        noise_forward=null.noise,
        noise_step=null.noise / sqrt(accumulation),
        null_at_cap=capped.level,
        noise_forward_at_cap=capped.noise,
        most_bits=log2(candidates),
    )


def _bank(run: Run, region: TermForecast, size: int, plan: Mapping[str, float]) -> BankForecast:
    off, full = region.phases
    rows = plan.get("micro_batch", 0.0) * plan["regions_per_sample"] * plan["world_size"] or region.anchors
    forwards_per_step = plan["accumulation"]
    filling, warmup = ceil(size / rows), plan.get("bank_warmup", 0.0)
    clocks = ["step", "forward"]
    if "bank_clock" in run.facts:
        clocks = [str(run.facts["bank_clock"].value)]
    elif forwards_per_step == 1 or not warmup:
        clocks = ["step"]
    switches = []
    for clock in clocks:
        on = warmup * forwards_per_step if clock == "step" else warmup
        switches.append(
            Switch(
                clock=clock,
                on_step=on / forwards_per_step,
                on_forward=on,
                full_step=(on + filling) / forwards_per_step,
                full_forward=on + filling,
            )
        )
    return BankForecast(
        size=size,
        rows_per_forward=rows,
        switches=tuple(switches),
        null_shift=full.null - off.null,
        candidates_shift=log(full.candidates / off.candidates),
        bits_of_old_null=theory.learnt_bits(off.null, null_level=full.null, candidates=full.candidates),
    )


def _notes(
    run: Run, terms: Sequence[TermForecast], bank: BankForecast | None, plan: Mapping[str, float], *, ours: bool
) -> Iterator[str]:
    """What of the plan contradicts itself, or is easily misread. `ours` if it is known how its losses gather."""
    steps, warmup = plan.get("max_steps"), plan.get("warmup_steps")
    if "scale" in run.facts and plan["scale"] < LOG_SPACE:
        yield (
            f"a scale of {plan['scale']:g} looks like a logit_scale, which is its logarithm: "
            f"exp({plan['scale']:g}) = {exp(plan['scale']):.4g}"
        )
    if any(term.scale > SCALE_CAP * 1.01 for term in terms):
        yield f"a scale of {max(term.scale for term in terms):.4g} is above CLIP's cap of {SCALE_CAP:g}"
    if bank is not None and len(bank.switches) > 1:
        yield (
            "nothing says which clock the bank's warmup is counted in; --fact bank_clock=step or "
            "--fact bank_clock=forward does"
        )
    for one in bank.switches if bank is not None and steps else ():
        counted = f" if its warmup is counted in {one.clock}s" if bank and len(bank.switches) > 1 else ""
        if one.on_step >= (steps or 0):
            yield f"the bank never switches on{counted}: its warmup outlasts the run of {steps:g} steps"
        elif one.full_step > (steps or 0):
            yield f"the bank is never full{counted}: the run ends after {steps:g} steps, before step {one.full_step:g}"
    if "bank_size" in run.facts and bank is None:
        yield "the memory bank is off, so its rows are no candidates"
    if steps and warmup is not None and warmup >= steps:
        yield (
            f"the learning rate's warmup of {warmup:g} steps is as long as the run of {steps:g}, or longer: "
            "the peak is never reached"
        )
    if plan.get("dataset_size", plan.get("micro_batch", 0.0)) < plan.get("micro_batch", 0.0):
        yield f"a micro-batch of {plan['micro_batch']:g} is larger than the {plan['dataset_size']:g} samples there are"
    if plan["accumulation"] > 1:
        yield (
            f"accumulation averages {plan['accumulation']:g} forwards, so a step's noise is "
            f"{sqrt(plan['accumulation']):.1f} times less; it adds no candidates"
        )
    if not ours and plan["world_size"] > 1 and not any(name.startswith("candidates") for name in run.facts):
        yield (
            f"candidates of all {plan['world_size']:g} ranks are counted; where a loss doesn't gather them, "
            "--fact candidates.region=N states how many it has"
        )
    if any(phase.candidates < 2 for term in terms for phase in term.phases):
        yield "a forward with a single candidate has no loss to learn from"


def render(forecast: Forecast) -> str:
    """Plain text, the same on a terminal and in a pipe."""
    lines = [f"forecast: {inert(forecast.subject)}", _line("known", forecast.facts)]
    if forecast.assumed:
        lines.append(_line("assumed", forecast.assumed))
    lines += ["", *_table(forecast)]
    lines.append(
        "chance: all candidates alike, ln N. null: features that know nothing of each other, with one standard "
        "deviation of noise."
    )
    if forecast.bank is not None:
        lines += ["", *_bank_lines(forecast.bank, forecast.terms[1])]
    lines += [f"note: {inert(note)}" for note in forecast.notes]
    return "\n".join(lines) + "\n"


def render_json(forecast: Forecast) -> str:
    return json.dumps({"schema_version": 1, **asdict(forecast)}, indent=2) + "\n"


def _line(title: str, values: Mapping[str, Any]) -> str:
    said = (f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in values.items())
    return f"{title}: {inert(', '.join(said))}"


def _table(forecast: Forecast) -> Iterator[str]:
    heads = ("loss", "anchors", "candidates", "chance", "scale", "null +- a forward", "+- a step", "most bits")
    rows = [(*heads, f"null at scale {SCALE_CAP:g}")]
    for term in forecast.terms:
        for phase in term.phases:
            rows.append(
                (
                    f"{term.name}, {phase.name}" if phase.name else term.name,
                    f"{term.anchors:g}",
                    f"{phase.candidates:g}",
                    f"{phase.chance:.2f}",
                    f"{term.scale:.2f}",
                    f"{phase.null:.2f} +- {phase.noise_forward:.2f}",
                    f"+- {phase.noise_step:.2f}",
                    f"{phase.most_bits:.2f}",
                    f"{phase.null_at_cap:.2f} +- {phase.noise_forward_at_cap:.2f}",
                )
            )
    yield from aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines in columns: the first one to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *cells])


def _bank_lines(bank: BankForecast, region: TermForecast) -> Iterator[str]:
    off, full = region.phases
    yield f"bank: {bank.size} rows, {bank.rows_per_forward:g} of them new in a forward"
    for one in bank.switches:
        yield (
            f"  warmup in {one.clock}s: on after step {one.on_step:g} (forward {one.on_forward:g}), "
            f"full after step {one.full_step:g} (forward {one.full_forward:g})"
        )
    yield (
        f"  the null level then moves by {bank.null_shift:+.2f}, about "
        f"ln({full.candidates:g}/{off.candidates:g}) = {bank.candidates_shift:.2f}: such a jump is no regression"
    )
    yield (
        f"  with the bank full, a loss of {off.null:.2f} would mean {bank.bits_of_old_null:.1f} learnt bits of at most "
        f"{full.most_bits:.1f}; before, it is chance"
    )
