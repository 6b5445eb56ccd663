"""What was measured, whether or not it is a fault: the answers to the questions that people bring.

Is the bank on, and is it used? Is every head trained? In which clock is the run counted? How much was learnt?
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from math import log2

from fgclip_doctor import bank, moments, theory
from fgclip_doctor.findings import Evidence, Value
from fgclip_doctor.parts import recorded
from fgclip_doctor.run import Missing, Plan, Run, Tensor
from fgclip_doctor.terms import terms

RECENT = 0.25  # share of a log, at its end, that "now" is the mean of


def observe(run: Run) -> tuple[list[Evidence], list[str]]:
    """The observations that the evidence allows, in reading order, and a line for each that crashed."""
    seen: list[Evidence] = []
    crashes: list[str] = []
    for look in LOOKS:
        try:
            for one in look(run):
                seen.append(one)  # one by one: what came before something that is missing stays
        except Missing:
            continue  # nothing to observe: the checks that need it say what is missing
        except Exception as error:  # noqa: BLE001 - an observation must not take the findings with it
            crashes.append(f"observing {look.__name__.strip('_')}: {type(error).__name__}: {error}")
    return seen, crashes


def _bank_in_use(run: Run) -> Iterator[Evidence]:
    """When does the bank switch on, and is it used at all?"""
    found = bank.memory_bank(run)
    written = found.written
    looks = found.look(0, written) if written else []
    if found.enabled is False or written == 0:
        state = "never switched on" if bank.warmup_over(run) else "not switched on yet"
    elif any(one.verdict == "noise" for one in looks):
        state = "holds noise"
    elif written is None:
        state = "unknown"
    elif written == found.size and bank.warmup_over(run) and bank.among_candidates(run, found) is False:
        state = "full, and among the candidates of no recorded loss"
    else:
        state = "in use, full" if written == found.size else f"in use, {written} of {found.size} rows filled"
    clock = run.facts["bank_clock"].value if "bank_clock" in run.facts else "clock not stated"
    warmup = f"warmup {run.number('bank_warmup'):g} ({clock})" if "bank_warmup" in run.facts else "warmup not known"
    yield Evidence(name="memory bank", value=state, why=warmup, source=found.sources)


def _trained(run: Run) -> Iterator[Evidence]:
    """Are the global and the region projection both trained? Adam's second moment tells what a gradient has reached."""
    optimizer = run.optimizer
    parts = [*run.heads(), *((scale.role, scale.tensor) for scale in run.scales())]
    for role, tensor in parts:
        index = optimizer.index_of(tensor.name)
        if index is None:
            state = "can't be told" if optimizer.may_hold(tensor.name) else "no: not in the optimizer"
            yield _part(role, tensor, state, optimizer.naming)
            continue
        group = optimizer.group_of(index)
        moment = optimizer.states[index].exp_avg_sq if index in optimizer.states else None
        had_gradient = moment is not None and moment.statistics.maximum > 0
        seen = recorded(run, tensor.name)
        state = SEEN[seen.gradient] if seen else "yes" if had_gradient else "never"
        rms = f"gradient RMS {_rms(moment):.2g}, " if had_gradient and moment is not None else ""
        rate = "learning rate not known" if group.initial_lr is None else f"learning rate {group.initial_lr:g}"
        yield _part(role, tensor, state, f"{rms}{rate}")


SEEN = {"some": "yes", "zero": "zeros alone", "none": "never", "unknown": "can't be told"}  # by a recording


def _part(role: str, tensor: Tensor, state: str, why: str) -> Evidence:
    return Evidence(name=f"gradient reaches {role}", value=state, why=why, source=str(tensor.source))


def _rms(moment: Tensor) -> float:
    return float(max(moment.statistics.mean, 0.0) ** 0.5)


def _clock(run: Run) -> Iterator[Evidence]:
    """Forwards per optimizer step: anything counted in one and meant in the other is off by this."""
    count = bank.forwards(run)
    if count is None or not run.step:
        return
    accumulation = run.facts.get("accumulation")
    steps = accumulation is not None and accumulation.value > 1 and abs(count - run.step) <= 1 + 0.02 * run.step
    yield Evidence(
        name="model's counter per optimizer step" if steps else "forwards per optimizer step",
        value=round(count / run.step, 3),
        expected=accumulation.value if accumulation and not steps else None,
        why=f"it is {count:,} after {run.step:,}: it counts steps"
        if steps
        else f"{count:,} forwards in {run.step:,} steps",
        source=str(run.role("clock.forwards").source),
    )


def _losses(run: Run) -> Iterator[Evidence]:
    """How much was learnt? ``ln N - loss`` bounds it from below (van den Oord et al. 2018), whatever the scale."""
    for term in terms(run):
        if isinstance(term, Missing) or term.sigmoid:
            continue
        values = term.series.values[-max(1, int(RECENT * len(term.series.values))) :]
        mean, chance = float(values.mean()), theory.chance_level(term.candidates)
        bits = theory.learnt_bits(mean, null_level=chance, candidates=term.candidates)
        unaligned = (
            "" if term.scale is None else f"; unaligned features at scale {term.scale:.4g} give {term.null.level:.3f}"
        )
        yield Evidence(
            name=f"bits learnt, by the {term.name} loss",
            value=f"{max(bits, 0.0):.2f} of {log2(term.candidates):.2f}",
            why=f"loss {mean:.3f} with {term.candidates:.4g} candidates, ln N = {chance:.3f}{unaligned}",
            source=str(term.series.source),
            step=int(term.series.steps[-1]),
        )


def _data(run: Run) -> Iterator[Evidence]:
    """What the annotations hold, and so how many candidates an anchor has."""
    data = run.annotations

    def seen(name: str, value: Value, why: str = "") -> Evidence:
        return Evidence(name=f"data: {name}", value=value, why=why, source=data.path)

    yield seen("images", data.records - data.malformed, f"{data.malformed:,} records are none")
    if data.regions:
        yield seen(
            "regions per image", round(data.regions_per_sample, 3), f"of {data.regions:,}, 4 of an image at most"
        )
    if data.boxes.count:
        yield seen("boxes", data.boxes.layout or "x1, y1, x2, y2, normalised", f"{data.boxes.count:,} boxes")
    if data.groups.count:
        counted = ", ".join(f"{count:,} of {size}" for size, count in sorted(data.groups.sizes.items())[:4])
        yield seen("hard negatives", data.groups.count, f"groups: {counted}")
    for name, texts in data.texts.items():
        repeats = texts.repeats
        once = int(repeats.distinct[repeats.times == 1].sum())
        yield seen(f"{name} that occurs once", f"{once / max(repeats.total, 1):.1%}", f"of {repeats.total:,} counted")


def _planned(run: Run) -> Iterator[Evidence]:
    """What the user declared to be intended: no check takes it for a fault."""
    for item in fields(run.plan):
        value = getattr(run.plan, item.name)
        if item.name != "source" and value != getattr(Plan(), item.name):
            name = item.name.replace("_", " ")
            yield Evidence(
                name=f"planned: {name}", value=str(value), why="declared, not measured", source=run.plan.source
            )


LOOKS: tuple[Callable[[Run], Iterable[Evidence]], ...] = (
    _bank_in_use,
    bank.observations,
    _trained,
    moments.observations,
    _clock,
    _losses,
    _data,
    _planned,
)
