"""The memory bank of a run: its rows the right way round, how many were written, and whether they are only noise.

Rows are (K, D): K keys of width D. Row i of the image bank and row i of the text bank were enqueued together, so they
are a pair, and what the features have learnt can be read from the bank with no data at all.

**The test for noise.** Rows that were drawn instead of encoded are uniform on the sphere once they are normalised and
their mean entry is removed (which makes ``rand`` and ``randn`` alike, and costs one of the d dimensions). Of m such
rows, with pairs that are uncorrelated:

- the mean off-diagonal cosine is 0 with variance ``2 / (m (m-1) d)``; ``d |sum|^2 / m`` is chi-squared with d degrees;
- the mean squared cosine is 1/d, each with variance ``2 (d-1) / (d^2 (d+2))``;
- the mean cosine with *any* partners that know nothing of them is 0 with variance ``1 / (d m)``.

Rows are noise when none of the three is further than `CRITICAL` = 4 standard deviations from that, which noise itself
exceeds once in 2,000 times or less. Encoded rows share a mean direction, or use fewer directions than there are, or
agree with their partners; they pass for noise only where the rows are too few to show it, and there the verdict is
"undecided": less than 1 in 1,000 encoded banks is called noise as long as it uses at most half of the directions
that it has, or its pairs agree by a cosine of 0.1 (with one modality alone: at most 5/6 of the directions).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf, log2, sqrt
from typing import TYPE_CHECKING, Any, Literal

from fgclip_doctor import theory
from fgclip_doctor.findings import Evidence
from fgclip_doctor.run import Checkpoint, Missing, Run, Tensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ROLES = {"image": "bank.image_keys", "text": "bank.text_keys"}
CRITICAL = 4.0  # standard deviations within which a statistic is that of noise
POWER = 3.1  # standard deviations to spare before encoded rows would look like noise: 1 in 1,000
SAMPLE = 8192  # rows that the statistics read, evenly spaced; bounds the time and memory of the large banks
RETRIEVAL = 1024  # rows that are matched against each other
SCALES = tuple(2 ** (power / 2) for power in range(-2, 21))  # at which the pairs are read for the most that they tell

PUNCTUATION = re.compile(r"[._]+")

Verdict = Literal["noise", "encoded", "undecided"]


@dataclass(frozen=True, slots=True)
class Rows:
    """What the rows [start, stop) of one modality look like. The z are standard deviations from random rows."""

    modality: str
    source: str
    start: int
    stop: int
    zeros: int
    count: int  # rows that were measured: finite, not zero, and a sample of a large bank
    mean_cosine: float
    mean_cosine_z: float
    spread: float  # mean squared off-diagonal cosine times d: 1 for random rows, d / (directions in use) for others
    spread_z: float
    alignment: float | None  # mean cosine with the partners in the other bank; None without partners
    alignment_z: float | None
    verdict: Verdict

    @property
    def furthest(self) -> float:
        """Standard deviations from random rows in the respect that tells them apart best."""
        return max(abs(z) for z in (self.mean_cosine_z, self.spread_z, self.alignment_z) if z is not None)

    def evidence(self) -> tuple[Evidence, ...]:
        rows = f"{self.count} of the rows {self.start} to {self.stop}"
        stated = [
            ("mean cosine between rows", self.mean_cosine, "away from 0", self.mean_cosine_z, "0"),
            ("spread of cosines, times d", self.spread, "over 1", self.spread_z, "1"),
            ("mean cosine with partners", self.alignment, "over 0", self.alignment_z, "0"),
        ]
        return tuple(
            Evidence(
                name=f"{self.modality} rows: {name}",
                value=round(value, 5),
                expected=f"{expected} in encoded rows",
                why=f"{z:+.1f} standard deviations from the {null} of random rows ({rows})",
                source=self.source,
            )
            for name, value, expected, z, null in stated
            if value is not None and z is not None
        )


@dataclass(frozen=True, slots=True)
class Retrieval:
    """What paired rows say of the features that wrote them. `rows` were matched against each other."""

    rows: int
    image_to_text: float  # share of images whose own text comes first
    text_to_image: float
    bits: float  # log2 of `rows` less the loss in bits at the scale that suits the pairs best; never under 0

    @property
    def chance(self) -> float:
        return theory.chance_top1(self.rows)


@dataclass(frozen=True, slots=True)
class Drift:
    """How far the older half of a modality's rows lies from the newer half."""

    modality: str
    share: float  # squared distance of the means, less what chance gives, over the mean squared spread within
    ratio: float  # the same distance over what chance gives halves that don't drift


@dataclass(frozen=True)
class Bank:
    """The memory bank of one checkpoint. A count or flag that wasn't saved is None."""

    checkpoint: Checkpoint
    keys: Mapping[str, Tensor]  # "image", "text": one or both
    width_first: Mapping[str, bool]  # stored as (D, K), as MoCo does
    pointer: int | None
    full: bool | None
    enabled: bool | None  # the saved switch, not the configuration's wish
    reached: int = 0  # the highest that the pointer was seen to stand, of a run that was recorded

    @property
    def size(self) -> int:
        """K, rows per modality."""
        return min(tensor.shape[1 if self.width_first[name] else 0] for name, tensor in self.keys.items())

    @property
    def dimension(self) -> int:
        """D, width of a row."""
        name, tensor = next(iter(self.keys.items()))
        return tensor.shape[0 if self.width_first[name] else 1]

    @property
    def sources(self) -> str:
        return ", ".join(str(tensor.source) for tensor in self.keys.values())

    @property
    def names(self) -> str:
        return ", ".join(tensor.name for tensor in self.keys.values())

    @property
    def written(self) -> int | None:
        """Rows [0, written) were certainly enqueued by what the bank itself says; None where it doesn't say.

        With no fill flag, a pointer at 0 may be that of a ring that has just wrapped.
        """
        if self.full:
            return self.size
        if self.pointer is None:
            return None
        if self.full is None:
            return min(max(self.pointer, self.reached), self.size) or None
        return min(self.pointer, self.size)

    def rows(self, modality: str) -> NDArray[np.floating[Any]]:
        """The rows of one modality, (K, D)."""
        return self._values[modality]

    @cached_property
    def _values(self) -> dict[str, NDArray[Any]]:
        return {
            name: tensor.values().T if self.width_first[name] else tensor.values() for name, tensor in self.keys.items()
        }

    @cached_property
    def norms(self) -> dict[str, NDArray[np.float64]]:
        """The length of every row, (K,), by modality."""
        return {name: _norms(rows) for name, rows in self._values.items()}

    @property
    def blank(self) -> bool:
        """True when all rows of each modality are the same row: zeros, as a rule, which nothing was written over."""
        return all(bool((rows == rows[:1]).all()) for rows in self._values.values())

    def look(self, start: int = 0, stop: int | None = None) -> list[Rows]:
        """The statistics of the rows [start, stop), by modality."""
        stop = self.size if stop is None else stop
        return [self._look(modality, start, stop) for modality in self.keys]

    def _look(self, modality: str, start: int, stop: int) -> Rows:
        import numpy as np

        usable = {name: np.isfinite(norms) & (norms > 0) for name, norms in self.norms.items()}
        shape = self.rows(modality).shape
        partner = next(
            (n for n in self.keys if n != modality and self.rows(n).shape == shape and usable[n].any()), modality
        )
        index = start + np.flatnonzero((usable[modality] & usable[partner])[start:stop])
        index = index[:: max(1, -(-len(index) // SAMPLE))]
        rows = _directions(self.rows(modality)[index])
        d, m = shape[1] - 1, len(rows)
        alignment = None
        if partner != modality and m:
            alignment = float(np.einsum("md,md->", rows, _directions(self.rows(partner)[index])) / m)
        mean, mean_z, spread, spread_z = _isotropy(rows, d) if m > 1 and d > 1 else (0.0, 0.0, 1.0, 0.0)
        alignment_z = None if alignment is None else alignment * sqrt(d * m)
        verdict: Verdict = "noise" if has_power(m, d, paired=alignment is not None) else "undecided"
        found = Rows(
            modality=modality,
            source=str(self.keys[modality].source),
            start=start,
            stop=stop,
            zeros=int((self.norms[modality][start:stop] == 0).sum()),
            count=m,
            mean_cosine=mean,
            mean_cosine_z=mean_z,
            spread=spread,
            spread_z=spread_z,
            alignment=alignment,
            alignment_z=alignment_z,
            verdict=verdict,
        )
        return replace(found, verdict="encoded") if found.furthest > CRITICAL else found

    def overwritten(self, least: int = 8) -> int:
        """About how many rows at the start were encoded where all others are as they were made; 0 where that isn't so.

        With the pointer still at 0 they are what every enqueue writes to, as a ring that wrapped has written them all.
        """
        sizes = [least << power for power in range(self.size.bit_length()) if least << power <= self.size // 2]
        told: dict[int, float] = {}
        for size in sizes:
            if all(rows.verdict == "noise" for rows in self.look(size)):
                told[size] = max(rows.furthest for rows in self.look(0, size))
        best = max(told, key=lambda size: told[size], default=0)
        return best if best and told[best] > CRITICAL else 0

    def by_age(self) -> NDArray[np.int64]:
        """The numbers of the written rows, the oldest first."""
        import numpy as np

        if self.written is None or (self.full and self.pointer is None):
            raise Missing("without a pointer the rows of the bank have no age")
        if not self.full:
            return np.arange(self.written)
        return (np.arange(self.size) + (self.pointer or 0) % self.size) % self.size  # whatever number was saved

    def drift(self, least: int = 32) -> list[Drift]:
        """Of each modality. Rows of one enqueue are of one age, so of the means little more than chance is expected."""
        import numpy as np

        order = self.by_age()
        usable = np.all([np.isfinite(norms[order]) & (norms[order] > 0) for norms in self.norms.values()], axis=0)
        order = order[usable]
        order = order[:: max(1, -(-len(order) // SAMPLE))]
        if len(order) < least:
            raise Missing(f"{len(order)} rows are too few to compare the older with the newer half")
        found = []
        for modality in self.keys:
            rows = _unit(self.rows(modality)[order]).astype(np.float64)
            halves = np.array_split(rows, 2)
            spreads = [float(np.square(half - half.mean(axis=0)).sum(axis=1).mean()) for half in halves]
            apart = float(np.square(halves[0].mean(axis=0) - halves[1].mean(axis=0)).sum())
            chance = sum(spread / (len(half) - 1) for spread, half in zip(spreads, halves, strict=True))
            spread = max(sum(spreads) / 2, 1e-12)
            found.append(Drift(modality, (apart - chance) / spread, apart / max(chance, 1e-12)))
        return found

    def retrieval(self) -> Retrieval:
        """How well the written rows find their partners, and the bits that they tell of them; no data is needed for it.

        The bits are those at the scale that suits the pairs best, since the model's own may be wrong. Ties share their
        point. Of a bank with more than `RETRIEVAL` rows, that many are taken, evenly spaced.
        """
        import numpy as np

        if set(self.keys) != set(ROLES) or self.rows("image").shape[1] != self.rows("text").shape[1]:
            raise Missing("the bank doesn't hold pairs of images and texts")
        written = self.size if self.written is None else self.written
        usable = [np.isfinite(norms[:written]) & (norms[:written] > 0) for norms in self.norms.values()]
        index = np.flatnonzero(usable[0] & usable[1])
        index = index[:: max(1, -(-len(index) // RETRIEVAL))]
        if len(index) < 2:
            raise Missing("the bank holds fewer than two pairs")
        images, texts = (_unit(self.rows(name)[index]) for name in ROLES)
        forward, backward = _matching(images, texts), _matching(texts, images)
        losses = [(one + other) / 2 for one, other in zip(forward.losses, backward.losses, strict=True)]
        bits = max(0.0, log2(len(index)) - min(losses) / theory.LN2)
        return Retrieval(len(index), forward.top1, backward.top1, bits)


def memory_bank(run: Run, checkpoint: Checkpoint | None = None) -> Bank:
    """The bank of `checkpoint` (by default of the latest one with its rows). Raises `Missing` when it holds none."""
    if checkpoint is None:
        checkpoint = next((one for one in reversed(run.checkpoints) if _holds_rows(run, one)), run.checkpoint)
    found = {name: run.roles.get(role, "") for name, role in ROLES.items()}
    keys = {name: checkpoint.tensors[key] for name, key in found.items() if key in checkpoint.tensors}
    if not keys:
        raise Missing("no memory bank was found in the weights; [tool.fgclip-doctor.roles] can name it")
    bank = Bank(
        checkpoint,
        keys,
        _width_first(run, keys),
        pointer=_count(run, "bank.pointer", checkpoint),
        full=_flag(run, "bank.full", checkpoint),
        enabled=_flag(run, "bank.enabled", checkpoint),
        reached=_reached(run, checkpoint),
    )
    rows = _count(run, "bank.full", checkpoint)
    return replace(bank, full=rows >= bank.size) if rows is not None and rows > 1 else bank  # some count what is filled


def banks(run: Run) -> list[Bank]:
    """The banks of all checkpoints that hold one, in order of step."""
    return [memory_bank(run, one) for one in run.checkpoints if _holds_rows(run, one)]


def _holds_rows(run: Run, checkpoint: Checkpoint) -> bool:
    """Whether the rows can be read: a recording may know of a bank, at that step, that it is there and nothing else."""
    names = [run.roles.get(role, "") for role in ROLES.values()]
    tensors = [checkpoint.tensors[name] for name in names if name in checkpoint.tensors]
    if not tensors or not checkpoint.partial:
        return bool(tensors)
    try:
        return all(one.statistics.count for one in tensors)
    except Missing:
        return False


def forwards(run: Run, checkpoint: Checkpoint | None = None) -> int | None:
    """The model's own count of its forward passes, where it keeps one."""
    return _count(run, "clock.forwards", run.checkpoint if checkpoint is None else checkpoint)


def switched_off(run: Run) -> bool:
    """True when the configuration says that there is to be no bank."""
    return "bank_enabled" in run.facts and run.facts["bank_enabled"].value is False


def warmup_over(run: Run, *, patience: int = 200, share: float = 0.2, checkpoint: Checkpoint | None = None) -> bool:
    """True when the bank must be on by `checkpoint` (the latest one), whatever clock its warmup is counted in.

    An optimizer step is the slowest of the clocks, so a warmup of unknown unit is over when the steps exceed it, with a
    tenth and two steps of slack for where in a step it is tested. A warmup of unknown length is over after `patience`
    steps and a `share` of the run; one that the configuration switches off never is. Raises `Missing` where neither
    steps nor forwards are known.
    """
    if switched_off(run):
        return False
    count = forwards(run, checkpoint)
    step = steps_done(run, checkpoint)
    if "bank_warmup" in run.facts:
        in_forwards = "bank_clock" in run.facts and run.facts["bank_clock"].value == "forward"
        done = count if in_forwards and count is not None else step
        return done > 1.1 * run.number("bank_warmup") + 2
    return step >= max(patience, share * run.number("max_steps", 0.0))


def among_candidates(run: Run, bank: Bank) -> bool | None:
    """Whether a recorded loss may have had rows of the bank among its candidates; None where no loss could tell.

    Each number of columns is recorded of every call, and a batch has no more than the anchors of all ranks. Losses that
    are written by hand, or compiled, are not seen, nor rows that are used for something else (as positives).
    """
    import numpy as np

    sites = [(rank, site) for rank in run.recording.ranks for site in rank.sites] if run.recording else []
    if not any(site.kind == "softmax" and site.targets in ("diagonal", "shifted") for _, site in sites):
        return None
    for rank, site in sites:
        anchors = np.concatenate([site.anchors, [one.anchors for one in site.changes]])
        columns = np.concatenate([site.candidates, [one.columns for one in site.changes]])
        if ((columns > rank.world_size * anchors) | (columns >= bank.size)).any():
            return True
    return False


def waits_longer(run: Run, bank: Bank) -> Tensor | None:
    """The model's own warmup of the bank, by the name that the stated one has, where it is longer and not over yet."""
    if "bank_warmup" not in run.facts:
        return None
    stated = run.facts["bank_warmup"]
    name = "_" + PUNCTUATION.sub("_", stated.source.key.rpartition(": ")[2])
    for tensor in bank.checkpoint.tensors.values():
        if tensor.size == 1 and f"_{PUNCTUATION.sub('_', tensor.name)}".endswith(name):
            longer = tensor.item() > float(stated.value)
            return tensor if longer and steps_done(run, bank.checkpoint) < tensor.item() else None
    return None


def steps_done(run: Run, checkpoint: Checkpoint | None = None) -> int:
    """Optimizer steps at a checkpoint (the latest by default), or the least that its forwards amount to.

    Where the accumulation isn't known, a step is taken to be no more than 32 forwards. The number in a name that is
    also that of the saved epoch counts no steps: the log does.
    """
    if checkpoint is not None and checkpoint is not run.checkpoint and checkpoint.step is not None:
        return checkpoint.step
    try:
        return max(run.step, _logged_steps(run) if _named_by_epoch(run.checkpoint) else 0)
    except Missing:
        count = forwards(run)
        if count is None:
            raise
        return int(count / run.number("accumulation", 32.0))


def _named_by_epoch(checkpoint: Checkpoint) -> bool:
    epochs = checkpoint.facts.get("epochs_done")
    named = None if checkpoint.trainer_step is not None else checkpoint.step
    return epochs is not None and named is not None and abs(named - int(epochs.value)) <= 1


def _logged_steps(run: Run) -> int:
    """The last step of the losses that were logged."""
    names = {name for role, name in run.roles.items() if role.startswith("loss.")}
    return max((int(one.steps[-1]) for name, one in run.series.items() if name in names and len(one.steps)), default=0)


def observations(run: Run) -> Iterator[Evidence]:
    """What a report shows of the bank: its size, how far it is filled, and what its pairs say of the features."""
    bank = memory_bank(run)
    for name, value, why in (
        ("bank size", bank.size, f"rows of width {bank.dimension} per modality"),
        ("bank pointer", bank.pointer, "the row that is written next"),
        ("bank full", bank.full, "the fill flag"),
        ("bank rows written", bank.written, "by the pointer and the flag"),
    ):
        yield Evidence(name=name, value=value, why=why, source=bank.sources)
    found = bank.retrieval()
    by_luck = f"over {found.chance:.4f}"
    shown: tuple[tuple[str, float, str, str], ...] = (
        ("retrieval inside the bank, image to text", found.image_to_text, by_luck, "chance is one in"),
        ("retrieval inside the bank, text to image", found.text_to_image, by_luck, "chance is one in"),
        ("bits learnt, by the bank's pairs", found.bits, f"up to {log2(found.rows):.2f}", "at most the log2 of"),
    )
    for name, share, expected, why in shown:
        yield Evidence(
            name=name,
            value=round(share, 4),
            expected=expected,
            why=f"{why} {found.rows} rows, which were enqueued as pairs",
            source=bank.sources,
        )


def has_power(rows: int, dimension: int, *, paired: bool) -> bool:
    """Whether so many rows are enough for the verdict "noise" to be safe (see the module's docstring)."""
    ratio = 2.0 if paired else 1.2  # d / (directions in use) of the least telling encoded bank; the spread of that
    shown = (ratio - 1) * rows / 2 - POWER * ratio >= CRITICAL  # estimate is `ratio` times the null's
    return shown and (not paired or 0.1 * sqrt(rows * dimension) >= CRITICAL + POWER)


def _isotropy(rows: NDArray[Any], d: int) -> tuple[float, float, float, float]:
    """Mean off-diagonal cosine of unit `rows` (m, .) and mean squared one times d, each with its z on a d-sphere."""
    import numpy as np

    m = len(rows)
    total = float(np.sum(np.square(rows.sum(axis=0, dtype=np.float64))))
    gram = rows.T @ rows if m > rows.shape[1] else rows @ rows.T
    squares = float(np.sum(np.square(gram), dtype=np.float64))
    mean = (total - m) / (m * (m - 1))
    # Wilson and Hilferty 1931: the cube root of a chi-squared variable is very nearly normal
    mean_z = ((total / m) ** (1 / 3) - (1 - 2 / (9 * d))) / sqrt(2 / (9 * d))
    spread = d * (squares - m) / (m * (m - 1))
    return mean, mean_z, spread, (spread - 1) / (2 * sqrt((d - 1) / (d + 2) / (m * (m - 1))))


def _directions(rows: NDArray[Any]) -> NDArray[Any]:
    """Unit rows in the subspace where the entries of a row sum to 0."""
    return _unit(rows - rows.mean(axis=1, keepdims=True))


def _unit(rows: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1)


def _norms(rows: NDArray[Any], block: int = 4096) -> NDArray[np.float64]:
    import numpy as np

    if rows.flags.f_contiguous:  # stored as (D, K): sum over the slow axis, a block of it at a time
        squares = sum(np.square(rows.T[i : i + 64], dtype=np.float64).sum(axis=0) for i in range(0, rows.shape[1], 64))
        return np.asarray(np.sqrt(squares))
    blocks = [np.linalg.norm(rows[i : i + block].astype(np.float64), axis=1) for i in range(0, len(rows), block)]
    return np.concatenate(blocks)


@dataclass(frozen=True, slots=True)
class _Matching:
    """One direction of the matching of pairs."""

    top1: float
    losses: tuple[float, ...]  # InfoNCE at each of `SCALES`


def _matching(anchors: NDArray[Any], candidates: NDArray[Any], block: int = 512) -> _Matching:
    """Matches `anchors` (K, D) with `candidates` (K, D), row i of one belonging to row i of the other."""
    import numpy as np

    hits = 0.0
    losses = np.zeros(len(SCALES))
    for start in range(0, len(anchors), block):
        cosines = anchors[start : start + block] @ candidates.T  # (block, K)
        positives = np.arange(start, start + len(cosines))
        positive = np.take_along_axis(cosines, positives[:, None], axis=1)
        better = (cosines > positive + 1e-6).any(axis=1)
        hits += float(np.sum(~better / (np.abs(cosines - positive) <= 1e-6).sum(axis=1)))
        top = cosines.max(axis=1, keepdims=True)
        for i, scale in enumerate(SCALES):
            log_sum = np.log(np.exp(scale * (cosines - top)).sum(axis=1, dtype=np.float64))
            losses[i] += float((log_sum + scale * (top - positive)[:, 0]).sum())
    count = len(anchors)
    return _Matching(hits / count, tuple(losses / count))


def _width_first(run: Run, keys: Mapping[str, Tensor]) -> dict[str, bool]:
    """Which banks are stored as (D, K): by the widths of the heads, the bank's known size, unit norms, those of
    any layer, or each other.

    Raises `Missing` where none of them tells.
    """
    told = {name: _told(run, tensor) for name, tensor in keys.items()}
    for name, one in told.items():
        other = next((told[n] for n in keys if keys[n].shape == keys[name].shape and told[n] is not None), None)
        told[name] = one if one is not None else other
    if None in told.values():
        shapes = ", ".join(f"{tensor.name} {tensor.shape}" for tensor in keys.values())
        raise Missing(f"it can't be told which axis of the bank is its width ({shapes}); --fact dimension=N states it")
    return {name: bool(one) for name, one in told.items()}


def _told(run: Run, tensor: Tensor) -> bool | None:
    import numpy as np

    if len(tensor.shape) != 2 or 0 in tensor.shape or not tensor.dtype.startswith(("float", "bfloat")):
        raise Missing(f"{tensor.name} is no bank: {tensor.dtype} of shape {tensor.shape}")
    heads = [set(head.shape[-2:]) for _, head in run.heads() if len(head.shape) == 2]
    widths = set.intersection(*heads) if heads else set()
    if "dimension" in run.facts:
        widths = {int(run.number("dimension"))}
    size = int(run.number("bank_size", 0.0))
    for lengths, first in ((widths, True), ({size}, False)):
        matches = [length in lengths for length in tensor.shape]
        if matches.count(True) == 1:
            return matches[0] is first
    values = tensor.values()
    with np.errstate(invalid="ignore"):
        across, along = (
            float(np.median(np.abs(norms[norms > 0] - 1))) if (norms > 0).any() else np.inf
            for norms in map(_norms, (values.T, values))
        )
    # unit rows are unit to rounding; the other axis of a square bank of noise comes within a few percent of it
    if min(across, along) < 0.02 and min(across, along) < max(across, along) / 5:
        return across < along
    made = {one.shape[0] for name, one in run.tensors.items() if len(one.shape) == 2 and name.endswith(".weight")}
    matches = [length in made for length in tensor.shape]  # what some layer gives out
    return matches[0] if matches.count(True) == 1 else None


def _count(run: Run, role: str, checkpoint: Checkpoint) -> int | None:
    tensor = checkpoint.tensors.get(run.roles.get(role, ""))
    value = tensor.item() if tensor is not None and tensor.size == 1 else -1.0
    return int(value) if value >= 0 and value == value // 1 else None


def _reached(run: Run, checkpoint: Checkpoint) -> int:
    """The highest that a recording has seen the pointer by then: a ring that has wrapped was filled at least so far."""
    series = run.series.get(run.roles.get("bank.pointer", "")) if run.recording is not None else None
    if series is None or checkpoint.step is None:
        return 0
    seen = series.values[series.steps <= checkpoint.step]
    highest = float(seen.max()) if len(seen) else 0.0
    return int(highest) if 0 < highest < inf else 0


def _flag(run: Run, role: str, checkpoint: Checkpoint) -> bool | None:
    tensor = checkpoint.tensors.get(run.roles.get(role, ""))
    return tensor.item() != 0 if tensor is not None and tensor.size == 1 else None
