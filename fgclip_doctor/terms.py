"""A loss term of a run with what is needed to read it: its candidates, its scale and its width."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import ceil, exp, floor, log, sqrt
from typing import TYPE_CHECKING

from fgclip_doctor import theory
from fgclip_doctor.bank import Bank, memory_bank
from fgclip_doctor.run import Missing, Run, Series

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HARD_CANDIDATES = 11  # FG-CLIP, arXiv 2505.05071: one caption and ten hard negatives of it
SCALE_ROLE = {"global": "scale.global", "total": "scale.global", "region": "scale.region", "hard": "scale.hard"}
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
    scale: float
    scale_source: str
    dimension: int
    accumulation: int  # forwards averaged in one logged value, at most

    @cached_property
    def null(self) -> theory.Null:
        """Level and noise of one forward for unit features that know nothing and are spread over all directions."""
        return self.null_at()

    def null_at(self, *, candidates: float | None = None, scale: float | None = None) -> theory.Null:
        """The null at other candidates or another scale; between two whole numbers of candidates, the mean of both."""
        return null_of(
            anchors=self.anchors,
            candidates=self.candidates if candidates is None else candidates,
            scale=self.scale if scale is None else scale,
            dimension=self.dimension,
        )

    def null_with_level(self, level: float) -> theory.Null | None:
        """The null of features in a narrow cone, whose cosines differ less (or, in few directions, more) than evenly
        spread ones' do: that of the scale, up to twice the term's, at which the level is `level`.
        """
        low, high = 0.0, 2 * self.scale
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
    """Every logged loss term that can be read, and for each that can't the reason."""
    kind = run.facts.get("loss_kind")
    if kind is not None and kind.value == "sigmoid":
        raise Missing("the loss is a sigmoid loss, which has another chance level")
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


def counts(run: Run, name: str) -> tuple[float, float, str]:
    """Anchors and candidates of a term, without the rows of a bank, and how they are known."""
    if name == "total" and any(role in run.roles for role in BRANCHES):
        raise Missing("only the total of several loss terms was logged; log each term, with its candidates")
    batch = run.number("micro_batch", 0.0) * (run.number("regions_per_sample", 1.0) if name == "region" else 1.0)
    for fact in (f"candidates.{name}", "candidates"):
        if fact in run.facts and (fact != "candidates" or name != "hard"):
            stated = run.number(fact)
            bank = bank_rows(run, name)
            inside = stated - bank if stated > bank else stated  # what is stated counts the bank's rows too
            return (min(batch, inside) if batch else inside), inside, str(run.facts[fact].source)
    if name == "total" and not run.checkpoints:
        raise Missing("it isn't known which terms the loss has; --fact candidates=N states its candidates")
    if name == "hard":
        anchors = run.number("micro_batch") * run.number("regions_per_sample", 1.0)
        return anchors, HARD_CANDIDATES, "one caption and ten hard negatives, as FG-CLIP has them"
    anchors = run.number("micro_batch")
    if name == "region":
        anchors *= run.number("regions_per_sample")
    ranks = run.number("world_size")
    how = "micro_batch" + (" x regions_per_sample" if name == "region" else "") + (" x world_size" if ranks > 1 else "")
    return anchors, anchors * ranks, how


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
    series = run.loss(name)
    before, since = None, 0
    log = _candidates_log(run, name)
    if log is not None:
        before, candidates, since = _last_stretch(log)
        anchors = min(candidates, run.number("micro_batch", candidates) * run.number("regions_per_sample", 1.0))
        how = f"{candidates:g} as logged ({log.source})"
    else:
        anchors, candidates, how = counts(run, name)
        rows = bank_rows(run, name)
        if rows:
            before, candidates, how = (
                candidates,
                candidates + rows,
                f"{how}: {candidates:g}, and {rows} rows of the bank",
            )
    if anchors < 1 or candidates < 2:
        raise Missing(f"the {name} loss has fewer than two candidates")
    scale, source = scale_of(run, name)
    dimension = dimension_of(run)
    if dimension < 2:
        raise Missing(f"an embedding of width {dimension} has no null level")
    every = min((b - a for a, b in pairwise(sorted(set(series.steps.tolist())))), default=1)
    return Term(
        name=name,
        series=series,
        anchors=anchors,
        candidates=candidates,
        before=before,
        since=since,
        counted=how,
        scale=scale,
        scale_source=source,
        dimension=dimension,
        accumulation=int(every * run.number("accumulation", 1.0) * run.number("world_size", 1.0)),
    )


def _candidates_log(run: Run, name: str) -> Series | None:
    """The log of a term's candidates, where the training wrote one beside its loss."""
    named = [key for key in run.series if "candidates" in key.lower() and run.series[key].values.size]
    return next((run.series[key].standing for key in named if name in key.lower()), None)


def logged_beside(run: Run, term: Term, kind: str) -> Series | None:
    """Another log of the term: "margin" or "acc" (top-1), by name."""
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
    named = re.compile(r"logit_?scale", re.IGNORECASE)
    logged = next((one for key, one in run.series.items() if tensor is not None and tensor.name in key), None)
    if logged is None and name in ("global", "total"):
        logged = next((one for key, one in run.series.items() if named.fullmatch(key.rpartition("/")[2])), None)
    if logged is not None and logged.values.size:
        value, source = float(logged.values[-1]), str(logged.source)
    elif tensor is not None:
        value, source = tensor.item(), str(tensor.source)
    else:
        raise Missing(f"the scale of the {name} loss isn't known; --fact scale=exp(logit_scale) states it")
    if not -3.0 <= value <= 1000.0:
        raise Missing(f"{source} is no logit scale: {value:g}")
    return (exp(value) if value <= log(1000.0) else value), source


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


def settled(run: Run, series: Series, early: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Steps and finite values of what was logged after `early` steps, the warmup and 5 % of the run."""
    import numpy as np

    start = max(early, run.number("warmup_steps", 0.0), 0.05 * run.number("max_steps", 0.0))
    chosen = np.isfinite(series.values) & (series.steps > start)
    return series.steps[chosen], series.values[chosen]


def falling(values: NDArray[np.float64]) -> bool:
    """Whether the second half of a series lies significantly (3 errors) under its first half."""
    half = len(values) // 2
    first, first_error = theory.mean_with_error(values[:half])
    last, last_error = theory.mean_with_error(values[half:])
    return first - last > 3 * sqrt(first_error**2 + last_error**2)
