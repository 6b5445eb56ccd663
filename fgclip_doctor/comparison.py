"""A run beside one that is known to be good: what differs beyond chance, and which finding accounts for it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from math import hypot, isfinite, log2, sqrt
from statistics import median

from fgclip_doctor import events, progress
from fgclip_doctor.diagnosis import Comparison, Difference, Report
from fgclip_doctor.findings import Finding, Value
from fgclip_doctor.recorded import JOINED
from fgclip_doctor.run import Missing, Run
from fgclip_doctor.terms import Term, terms

PASSING = {"global_step", "max_steps", "num_epochs"}  # how far a run got is no fault of it
SEEDS = 0.15  # bits by which runs that differ in their seed alone may differ, besides the noise within each
FACTOR = 3.0  # by which a module's gradients may differ from what the others' do
ROUNDING = 1e-3  # of the middle gradient: what is smaller in both is rounding, as is that of a key's bias, truly zero
COARSE = {"bfloat16": 2**-7}  # the same of gradients in a type whose numbers are further apart than that
MANY = 5  # tensors that differ in the same way are told in one line
ACCOUNTS = (  # what a difference is of, in its words, and the codes that can account for it
    (r"bits .* candidates", "FGD"),
    (r"bits|loss", "FGD1 FGD3 FGD404 FGD405 FGD406 FGD410 FGD505 FGD506 FGD507 FGD602 FGD603 FGD604 FGD605 FGD7 FGD8"),
    (r"bank|queue", "FGD2 FGD401"),
    (r"event candidates", "FGD2 FGD401 FGD408 FGD411 FGD509 FGD601 FGD804"),
    (r"dtype", "FGD106 FGD303"),
    (r"scale|temperature", "FGD3"),
    (r"clip|grad_norm", "FGD109 FGD111"),
    (r"learning.rate", "FGD106 FGD107 FGD405 FGD412"),
    (r"warmup|schedule", "FGD405 FGD406"),
    (r"accumulation|forwards", "FGD402 FGD403 FGD404 FGD408"),
    (r"gradient", "FGD1 FGD7"),
    (r"tensor", "FGD1 FGD7 FGD203"),
    (r"candidates|batch|regions|dataset", "FGD408 FGD409 FGD411 FGD509 FGD6 FGD804"),
)


def compare(run: Run, report: Report, good: Run, good_report: Report) -> Comparison:
    """`run` against `good`. Runs of other lengths are compared over the steps that both have."""
    theirs = {_key(finding) for finding in good_report.findings}
    ours = {_key(finding) for finding in report.findings}
    new = tuple(finding for finding in report.findings if _key(finding) not in theirs)
    found: list[Difference] = []
    for look in (_facts, _clocks, _trajectories, _gradients, _tensors):
        try:
            found.extend(look(run, good))
        except Missing:
            continue  # one of the two doesn't show it
    fixed = tuple(finding for finding in good_report.findings if _key(finding) not in ours)
    return Comparison(
        good.subject,
        tuple(_accounted(one, new or fixed) for one in found),  # the better of the two may be either
        new,
        fixed,
        unchanged=tuple(finding for finding in report.findings if _key(finding) in theirs),
    )


def _key(finding: Finding) -> tuple[str, str]:
    """The same fault in two runs: where it is, without the directory of the run."""
    return finding.code, finding.where.rpartition("/")[2]


def _accounted(one: Difference, changed: Collection[Finding]) -> Difference:
    """With the findings that account for it: of the codes that can, and, where it names a thing, about that thing.

    A symptom is named where none of them is a cause.
    """
    codes = next((codes.split() for pattern, codes in ACCOUNTS if re.search(pattern, one.what)), [])
    names = [word for word in re.split(r"[ ,]+", one.what) if "." in word or "_" in word or word in ("region", "hard")]
    found = []
    for finding in changed:
        text = " ".join((finding.where, finding.message, *(f"{e.name} {e.source}" for e in finding.evidence)))
        about = not names or any(name in text for name in names)
        if finding.code.startswith(tuple(codes)) and (about or one.kind in ("fact", "trajectory")):
            found.append(finding)
    known = {finding.code for finding in changed}
    causes = [finding for finding in found if not known.intersection(finding.explained_by)]
    return replace(one, explained_by=tuple(dict.fromkeys(finding.code for finding in causes or found)))


def _facts(run: Run, good: Run) -> Iterator[Difference]:
    for name in sorted({*run.facts, *good.facts} - PASSING):
        here, there = (facts[name].value if name in facts else None for facts in (run.facts, good.facts))
        if here != there and None not in (here, there):
            yield Difference("fact", name, _value(here), _value(there), "configured otherwise")


def _clocks(run: Run, good: Run) -> Iterator[Difference]:
    for name, of in (("forwards per optimizer step", _forwards_per_step), ("peak learning rate logged", _peak_rate)):
        one, other = of(run), of(good)
        if one is not None and other is not None and abs(one - other) > 0.02 * max(abs(one), abs(other)):
            yield Difference("clock", name, round(one, 6), round(other, 6), "over 2 % apart")
    ours, theirs = ({event.kind: event.step for event in events.events(one)} for one in (run, good))
    for kind in sorted(ours.keys() ^ theirs.keys()):
        here: Value = ours.get(kind) or "never"
        there: Value = theirs.get(kind) or "never"
        yield Difference("clock", f"event {kind}", here, there, "happened in one of the runs alone")


def _forwards_per_step(run: Run) -> float | None:
    if run.recording is not None:
        clocks = run.recording.first.clocks
        return clocks["forwards"] / clocks["steps"] if clocks.get("steps") and "forwards" in clocks else None
    try:
        return run.role("clock.forwards").item() / run.step if run.step else None
    except Missing:
        return None


def _peak_rate(run: Run) -> float | None:
    rates = events.learning_rate(run)
    return float(rates.values.max()) if rates is not None else None


def _trajectories(run: Run, good: Run) -> Iterator[Difference]:
    """Bits learnt over the last quarter of the steps that both have, per term, beyond both their errors and seeds."""
    theirs = {term.name: term for term in terms(good) if isinstance(term, Term)}
    for term in terms(run):
        if not isinstance(term, Term) or term.name not in theirs:
            continue
        end = min(int(term.series.steps.max()), int(theirs[term.name].series.steps.max()))
        (here, error), (there, other) = (_bits(one, t, end) for one, t in ((run, term), (good, theirs[term.name])))
        if abs(here - there) > SEEDS + 2 * hypot(error, other):
            why = f"+- {2 * error:.2f} and {2 * other:.2f} around step {end}, and {SEEDS} for seeds"
            counts = [one.candidates for one in (term, theirs[term.name])]
            what = f"bits learnt by the {term.name} loss"
            if max(counts) > JOINED * min(counts):
                what += f" of {counts[0]:.4g} candidates, {counts[1]:.4g} there"
            yield Difference("trajectory", what, round(here, 3), round(there, 3), why)


def _bits(run: Run, term: Term, end: int) -> tuple[float, float]:
    learnt = progress.learnt(run, term)
    late = (learnt.steps <= end) & (learnt.steps >= 0.75 * end)
    chosen = late if late.any() else learnt.steps == learnt.steps.min()
    bits, width = learnt.bits[chosen], (learnt.high - learnt.low)[chosen]
    return float(bits.mean()), float(width.mean()) / 4 / sqrt(len(bits))


def _gradients(run: Run, good: Run) -> Iterator[Difference]:
    """Modules whose gradients are larger or smaller than in the good run by more than all of them are."""
    here, there = _moments(run), _moments(good)
    shared = [name for name in here if name in there]
    for name in shared:
        if bool(here[name]) != bool(there[name]):
            why = "a gradient reaches it in one of the runs alone"
            yield Difference("gradient", f"gradient of {name}", here[name], there[name], why)
    noise, other = (
        _rounding(one) * median(norms.values()) if norms else 0.0 for one, norms in ((run, here), (good, there))
    )
    ratios = {
        name: log2(here[name] / there[name])
        for name in shared
        if here[name] and there[name] and (here[name] > noise or there[name] > other)
    }
    middle = median(ratios.values()) if ratios else 0.0
    for name, ratio in ratios.items():
        if abs(ratio - middle) > log2(FACTOR):
            why = f"{2**ratio:.3g} times, where the middle of {len(ratios)} parameters is {2**middle:.3g}"
            yield Difference("gradient", f"gradient of {name}", here[name], there[name], why)


def _rounding(run: Run) -> float:
    """The share of a gradient that is lost in the coarsest type that Adam's state is in."""
    kinds = {state.exp_avg_sq.dtype for state in run.optimizer.states.values() if state.exp_avg_sq is not None}
    return max((COARSE.get(kind, ROUNDING) for kind in kinds), default=ROUNDING)


def _moments(run: Run) -> Mapping[str, float]:
    """The root mean square of each parameter's gradient, from Adam's second moments."""
    optimizer = run.optimizer
    scales: dict[str, float] = {}
    for index, names in optimizer.names.items():
        state = optimizer.states.get(index)
        if len(names) == 1:
            known = state is not None and state.exp_avg_sq is not None
            mean = state.exp_avg_sq.statistics.mean if known and state and state.exp_avg_sq else 0.0
            if isfinite(mean):
                scales[names[0]] = sqrt(max(mean, 0.0))
    return scales


def _tensors(run: Run, good: Run) -> Iterator[Difference]:
    here, there = run.tensors, good.tensors
    changed: dict[tuple[str, str, str], list[str]] = {}
    for name in sorted(here.keys() ^ there.keys()):
        in_here = name in here
        yield Difference("tensor", f"tensor {name}", _there(in_here), _there(not in_here), "in one of the runs alone")
    for name in sorted(here.keys() & there.keys()):
        for kind in ("shape", "dtype"):
            ours, theirs = str(getattr(here[name], kind)), str(getattr(there[name], kind))
            if ours != theirs:
                changed.setdefault((kind, ours, theirs), []).append(name)
    for (kind, ours, theirs), names in changed.items():
        if len(names) < MANY:
            yield from (Difference("tensor", f"{kind} of tensor {one}", ours, theirs, "not the same") for one in names)
        else:
            why = f"not the same: {names[0]} to {names[-1]}"
            yield Difference("tensor", f"{kind} of {len(names)} tensors", ours, theirs, why)


def _there(present: bool) -> str:
    return "there" if present else "missing"


def _value(value: object) -> Value:
    return value if isinstance(value, (str, int, float, bool)) else str(value)
