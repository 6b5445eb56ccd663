"""A loss term of a run with what is needed to read it: its candidates, its scale and its width."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import ceil, exp, floor, log, nan, sqrt
from typing import TYPE_CHECKING, Any

from fgclip_doctor import dynamics, events, theory
from fgclip_doctor.bank import Bank, memory_bank
from fgclip_doctor.recorded import LossSite
from fgclip_doctor.run import Missing, Run, Series, Source
from fgclip_doctor.scale_forms import form_of, logarithms

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HARD_CANDIDATES = 11  # FG-CLIP, arXiv 2505.05071: one caption and ten hard negatives of it
SCALE_ROLE = {"global": "scale.global", "total": "scale.global", "region": "scale.region", "hard": "scale.hard"}
MOST_CANDIDATES = 1e12
MOST_SCALE = 1000.0
STRAIGHT = 256.0  # the scale from which on the null level is linear in it, to half a percent
ASSUMED_DIMENSION = 512  # of CLIP's base models, where nothing says it: the null level depends on it weakly
BRANCH_WORDS = {"region": r"region|roi|box|fine_?-?grain|dense|local", "hard": r"hard|hneg"}  # in the names of scales
DERIVED = (  # series that bear a tensor's name and aren't its value
    *("gradient norm/", "update ratio/"),
    *("first moment/", "second moment/"),
)
BRANCHES = ("loss.global", "loss.region", "loss.hard", "scale.region", "scale.hard", "head.region", "head.text_long")


@dataclass(frozen=True)
class Term:
    """A logged loss with its yardstick. `anchors` and `candidates` are means over forwards, and need not be whole."""

    name: str
    series: Series
    anchors: float
    candidates: float  # in-batch and bank together; where it is open, the most that it may be
    before: float | None  # the candidates before a bank joined them, where one may have
    since: int  # the step from which a log of the candidates gives this many; 0 without one
    counted: str  # how the candidates are known
    scale: float | None  # exp(logit_scale); None where nothing tells it
    scale_source: str  # or why it isn't known
    dimension: int
    accumulation: int  # forwards averaged in one logged value, at most
    every: int = 1  # steps between two values
    assumed: tuple[str, ...] = ()  # what nothing states, and is taken for 1: "world_size", "regions_per_sample"
    sigmoid: bool = False
    smoothing: float = 0.0  # of the targets

    @property
    def chance(self) -> float:
        """The least loss without knowledge."""
        return self.chance_at(self.candidates)

    def chance_at(self, candidates: float) -> float:
        return theory.sigmoid_chance(candidates) if self.sigmoid else theory.chance_level(candidates)

    @property
    def floor(self) -> float:
        """The least loss that there can be: 0, but for label smoothing."""
        return theory.smoothing_floor(self.candidates, self.smoothing) if self.smoothing else 0.0

    @cached_property
    def null(self) -> theory.Null:
        """Level and noise of one forward for unit features that know nothing and are spread over all directions.

        Raises `Missing` where the scale isn't known, and for a sigmoid loss, whose level depends on its bias.
        """
        return self.null_at()

    def null_at(self, *, candidates: float | None = None, scale: float | None = None) -> theory.Null:
        """The null at other candidates or another scale; between two whole numbers of candidates, the mean of both."""
        scale = self.scale if scale is None else scale
        if scale is None or self.sigmoid:
            raise Missing(self.scale_source if scale is None else f"the {self.name} loss is a sigmoid loss")
        return null_of(
            anchors=self.anchors,
            candidates=self.candidates if candidates is None else candidates,
            scale=scale,
            dimension=self.dimension,
        )

    def null_with_level(self, level: float) -> theory.Null | None:
        """The null of features in a narrow cone, whose cosines differ less (or, in few directions, more) than evenly
        spread ones' do: that of the scale, up to twice the term's, at which the level is `level`.
        """
        low, high = 0.0, 2 * (self.scale or 0.0)
        if not self.null_at(scale=low).level <= level <= self.null_at(scale=high).level:
            return None
        for _ in range(20):
            middle = (low + high) / 2
            low, high = (middle, high) if self.null_at(scale=middle).level < level else (low, middle)
        return self.null_at(scale=high)


def null_of(*, anchors: float, candidates: float, scale: float, dimension: int) -> theory.Null:
    """The null of one forward with so many anchors and candidates on average: between two whole numbers, their mean."""
    low, high = (
        theory.null(
            anchors=max(1, min(floor(anchors), floor(candidates))), candidates=whole, scale=scale, dimension=dimension
        )
        for whole in (floor(candidates), ceil(candidates))
    )
    share = candidates - floor(candidates)
    return theory.Null((1 - share) * low.level + share * high.level, (1 - share) * low.noise + share * high.noise)


def terms(run: Run) -> Iterator[Term | Missing]:
    """Every loss term that can be read, and for each that can't the reason: as logged, or as seen where it is computed.

    What was logged goes by the names that its training gave it, and is known at every step; but only a recording tells
    the candidates of a loss and the spread of its logits.
    """
    seen = list(sites(run))
    if seen:
        for site in seen:
            try:
                yield _of_site(run, site)
            except Missing as reason:
                yield reason
        return
    logged = [name for name in ("global", "region", "hard", "total") if run.roles.get(f"loss.{name}") in run.series]
    if not logged:
        raise Missing("no loss was logged")
    if len(logged) > 1:  # a total of several terms has no candidates of its own
        logged = [name for name in logged if name != "total"]
    for name in logged:
        try:
            yield _term(run, name)
        except Missing as reason:
            yield reason


def sites(run: Run) -> Iterator[LossSite]:
    """The contrastive losses that a recording saw being computed, with a gradient, by its first rank."""
    for site in run.recording.first.sites if run.recording else ():
        if site.contrastive and site.gradient and float(site.candidates.max()) >= 2:
            yield site


def by_step(run: Run, site: LossSite, values: NDArray[np.floating[Any]], what: str) -> Series:
    """What was seen of a site, as the mean of its calls in each step."""
    import numpy as np

    steps, which, calls = np.unique(site.steps, return_inverse=True, return_counts=True)
    means = np.bincount(which, weights=values) / calls
    return Series(f"{what} at {site.name}", steps, means, Source(run.watched.first.path, site.name))


def candidates_at(run: Run, site: LossSite) -> Series:
    """The candidates of a site by step, of calls whose logits are numbers: of others, nothing tells what is masked."""
    import numpy as np

    numbers = np.isfinite(site.null)
    if not numbers.any():
        raise Missing(f"the logits at {site.name} are not finite")
    return by_step(run, replace(site, steps=site.steps[numbers]), site.candidates[numbers], "candidates")


def _of_site(run: Run, site: LossSite) -> Term:
    """The scale is that at which the logits of unaligned features spread as these do, so their level is theirs."""
    import numpy as np

    series = by_step(run, site, site.loss, "loss")
    before, candidates, since = _last_stretch(candidates_at(run, site))
    there = (site.steps >= since) & np.isfinite(site.null)
    if candidates < 1.5:  # means of whole numbers, in float32
        raise Missing(f"the loss at {site.name} has a single candidate")
    anchors, level = float(site.anchors[there].mean()), float(site.null[there].mean())
    try:
        dimension = dimension_of(run)
    except Missing:
        dimension = ASSUMED_DIMENSION
    sigmoid = site.kind == "sigmoid"
    scale = None if sigmoid else scale_with_level(round(level, 4), round(anchors, 2), round(candidates, 2), dimension)
    return Term(
        name=site.name,
        series=series,
        anchors=anchors,
        candidates=candidates,
        before=before,
        since=since,
        counted=f"{candidates:.4g} as seen in its logits",
        scale=scale,
        scale_source="by the spread of its logits" if scale else "no scale spreads the logits of unit features so",
        dimension=dimension,
        accumulation=max(1, round(len(site.steps) / len(series.steps))),
        sigmoid=sigmoid,
    )


@lru_cache(maxsize=256)  # every check that reads terms asks again
def scale_with_level(level: float, anchors: float, candidates: float, dimension: int) -> float | None:
    """The scale at which unaligned features have their null level at `level`; None for no scale that a softmax has."""
    low, high, below = 0.0, 16.0, log(candidates)
    if not below - 1e-3 <= level <= MOST_SCALE:
        return None
    while (top := null_of(anchors=anchors, candidates=candidates, scale=high, dimension=dimension).level) < level:
        if high >= STRAIGHT:  # the level of larger ones, whose null takes long to compute, goes up in a straight line
            further = high + (level - top) * (high - low) / (top - below)
            return further if further <= MOST_SCALE else None
        low, high, below = high, 2 * high, top
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        null = null_of(anchors=anchors, candidates=candidates, scale=middle, dimension=dimension)
        low, high = (middle, high) if null.level < level else (low, middle)
    return high


def counts(run: Run, name: str) -> tuple[float, float, str, tuple[str, ...]]:
    """Anchors and candidates of a term without the rows of a bank, how they are known, and what had to be assumed."""
    if name == "total" and any(role in run.roles for role in BRANCHES):
        raise Missing("only the total of several loss terms was logged; log each term, with its candidates")
    batch = run.number("micro_batch", 0.0) * (run.number("regions_per_sample", 1.0) if name == "region" else 1.0)
    for fact in (f"candidates.{name}", "candidates"):
        if fact in run.facts and (fact != "candidates" or name != "hard"):
            stated = run.number(fact)
            bank = bank_rows(run, name)
            inside = stated - bank if stated > bank else stated  # what is stated counts the bank's rows too
            return (min(batch, inside) if batch else inside), inside, str(run.facts[fact].source), ()
    if name == "hard":
        anchors = run.number("micro_batch") * run.number("regions_per_sample", 1.0)
        return anchors, HARD_CANDIDATES, "one caption and ten hard negatives, as FG-CLIP has them", ()
    factors = ["micro_batch", *(["regions_per_sample"] if name == "region" else []), "world_size"]
    assumed = [one for one in factors[1:] if one not in run.facts]
    if name == "total" and not run.checkpoints:
        assumed.append("candidates")  # nothing says which terms the total has
    run.number("micro_batch")
    ranks = run.number("world_size", 1.0)
    how = " x ".join(one for one in factors if one in run.facts and (one != "world_size" or ranks > 1))
    how += f", {' and '.join(assumed)} not being known" if assumed else ""
    return batch, batch * ranks, how, tuple(assumed)


def bank_rows(run: Run, name: str) -> int:
    """Rows of the bank that may be among the candidates of a term: at the latest checkpoint, or for a log as stated."""
    if not run.checkpoints:
        return int(run.number("bank_size", 0.0)) if _sees_bank(run, name) else 0
    bank = _bank_of(run, name)
    if bank is None or bank.enabled is False:
        return 0
    return bank.size if bank.written is None else bank.written


def _sees_bank(run: Run, name: str) -> bool:
    """Whether a bank's rows are candidates of a term: of the region loss where there is one, else of the global one."""
    return name != "hard" and (name != "global" or not {"loss.region", "scale.region"} & run.roles.keys())


def _bank_of(run: Run, name: str) -> Bank | None:
    if not _sees_bank(run, name):
        return None
    try:
        return memory_bank(run)
    except Missing:
        return None


def _term(run: Run, name: str) -> Term:
    import numpy as np

    series = run.loss(name)
    before, since = None, 0
    assumed: tuple[str, ...] = ()
    log = logged_candidates(run, name)
    if log is not None:
        before, candidates, since = _last_stretch(log)
        anchors = min(candidates, run.number("micro_batch", candidates) * run.number("regions_per_sample", 1.0))
        how = f"{candidates:g} as logged ({log.source})"
    else:
        anchors, candidates, how, assumed = counts(run, name)
        rows = bank_rows(run, name)
        if rows:
            before, candidates = candidates, candidates + rows
            how = f"{how}: {before:g}, and {rows} rows of the bank"
    if not (anchors >= 1 and 2 <= candidates <= MOST_CANDIDATES):
        raise Missing(f"the {name} loss has no anchors, or not two candidates or more: {candidates:g}")
    if not np.isfinite(series.values).any():
        raise Missing(f"the {name} loss has no finite value")
    scale, source, dimension = _scale_and_width(run, name)
    if dimension < 2:
        raise Missing(f"an embedding of width {dimension} has no null level")
    apart = np.diff(series.steps)
    every = int(apart[apart > 0].min(initial=2**62)) if (apart > 0).any() else 1
    kind = run.facts.get("loss_kind")
    return Term(
        name=name,
        series=series,
        anchors=anchors,
        candidates=candidates,
        before=before if before is not None and 1 <= before <= MOST_CANDIDATES else None,
        since=since,
        counted=how,
        scale=scale,
        scale_source=source,
        dimension=dimension,
        accumulation=max(1, int(min(every * run.number("accumulation", 1.0) * run.number("world_size", 1.0), 2**53))),
        every=every,
        assumed=assumed,
        sigmoid=kind is not None and kind.value == "sigmoid",
        smoothing=min(max(run.number("label_smoothing", 0.0), 0.0), 1.0),
    )


def _scale_and_width(run: Run, name: str) -> tuple[float | None, str, int]:
    """The scale of a term, where it was read, and the width; without a checkpoint both may be unknown."""
    try:
        scale: float | None
        scale, source = scale_of(run, name)
    except Missing as reason:
        scale, source = None, str(reason)
    try:
        if run.checkpoints or "dimension" in run.facts:
            return scale, source, dimension_of(run)
    except Missing as reason:  # what a checkpoint's scale makes of it isn't known then, and ln N still is
        return None, str(reason), ASSUMED_DIMENSION
    return scale, f"{source}; width {ASSUMED_DIMENSION} assumed", ASSUMED_DIMENSION


def logged_candidates(run: Run, name: str) -> Series | None:
    """The log of a term's candidates, where the training wrote one beside its loss; of a lone term, under any name."""
    site = next((one for one in sites(run) if one.name == name), None)
    if site is not None:
        return candidates_at(run, site)
    named = [key for key in run.series if "candidates" in key.lower() and run.series[key].values.size]
    own = next((run.series[key].standing for key in named if name in key.lower()), None)
    alone = name == "total" or [role for role in run.roles if role in BRANCHES] == [f"loss.{name}"]
    return run.series[named[0]].standing if own is None and alone and len(named) == 1 else own


def logged_beside(run: Run, term: Term, kind: str) -> Series | None:
    """Another log of the term: "margin" or "acc" (top-1), by name; of one that was seen being computed, that."""
    site = next((one for one in sites(run) if one.name == term.name), None)
    if site is not None:
        return by_step(run, site, site.null - site.loss if kind == "margin" else site.top1, kind)
    return next((one for key, one in run.series.items() if kind in key.lower() and term.name in key.lower()), None)


def _last_stretch(log: Series) -> tuple[float | None, float, int]:
    """Mean candidates before their last change by a quarter or more, and since it, and the step of that change."""
    import numpy as np

    values = log.values
    now = float(np.median(values[-max(1, len(values) // 4) :]))
    other = np.flatnonzero(~(np.abs(values / max(now, 1e-9) - 1) <= 0.25))
    if not len(other):
        return None, float(values.mean()), 0
    start = int(other[-1]) + 1
    if start == len(values):
        raise Missing(f"the candidates in {log.source} never settle")
    return float(np.median(values[:start])), float(values[start:].mean()), int(log.steps[start])


def scale_of(run: Run, name: str) -> tuple[float, str]:
    """exp(logit_scale) of a term: stated, as last logged, or as saved."""
    if "scale" in run.facts:
        return run.number("scale"), str(run.facts["scale"].source)
    role = SCALE_ROLE[name]
    tensor = run.role(role) if run.checkpoints and run.has_role(role) else None
    of = "" if tensor is None else tensor.name
    of_it = [one for key, one in run.series.items() if of and of in key and not key.startswith(DERIVED)]
    logged = next(iter(of_it), None)
    if logged is None:
        logged = _logged_scale(run, name)
    if logged is not None and logged.values.size:
        logs = events.log_scale(logged.standing)[1]
        value, source = (float(logs[-1]) if len(logs) else nan), str(logged.source)
    elif tensor is not None:
        held = tensor.item()
        form = form_of(tensor.name.rpartition(".")[2], held, limit=events.RAW)
        value, source = float(logarithms(form, held)), str(tensor.source)
    else:
        raise Missing(f"the scale of the {name} loss isn't known; --fact scale=exp(logit_scale) states it")
    if not -3.0 <= value <= events.RAW:
        raise Missing(f"{source} is no logit scale: {value:g}")
    return exp(value), source


def _logged_scale(run: Run, name: str) -> Series | None:
    """The logged scale of a branch by the words in its name; of a run that logs a single one, that."""
    logged = events.scales(run)
    branch = BRANCH_WORDS.get(name)
    own = [one for one in logged if branch and re.search(branch, one.name, re.IGNORECASE)]
    plain = [one for one in logged if not any(re.search(words, one.name, re.I) for words in BRANCH_WORDS.values())]
    return next(iter(own or plain or (logged if len(logged) == 1 else [])), None)


def dimension_of(run: Run) -> int:
    """The width of the shared embedding: stated, or that of the heads or the bank."""
    if "dimension" in run.facts:
        return int(run.number("dimension"))
    if not run.checkpoints:
        return int(run.number("dimension"))
    heads = [set(head.shape) for _, head in run.heads() if len(head.shape) == 2]
    widths = set.intersection(*heads) if heads else set()
    if len(widths) == 1:
        return widths.pop()
    try:
        return memory_bank(run).dimension
    except Missing:
        if heads:  # (out, in), as torch's Linear has it
            return next(head.shape[0] for _, head in run.heads() if len(head.shape) == 2)
        return int(run.number("dimension"))


def settled(run: Run, series: Series, early: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Steps and finite values of what was logged after `early` steps, the warmup and 5 % of the run."""
    start = max(early, events.warmed_up(run), 0.05 * run.number("max_steps", 0.0))
    steps, values = dynamics.finite(series.steps, series.values)
    return steps[steps > start], values[steps > start]


def falling(values: NDArray[np.float64]) -> bool:
    """Whether a series falls significantly (3 errors): its second half under its first, or of few values the line."""
    import numpy as np

    half = len(values) // 2
    if half < 8:
        if len(values) < 4:
            return False
        places = np.arange(len(values)) - (len(values) - 1) / 2
        slope = float(places @ values / (places @ places))
        rest = values - values.mean() - slope * places
        return slope < -3 * sqrt(float(rest @ rest) / (len(values) - 2) / float(places @ places)) - 1e-12
    first, first_error = theory.mean_with_error(values[:half])
    last, last_error = theory.mean_with_error(values[half:])
    return first - last > 3 * sqrt(first_error**2 + last_error**2)
