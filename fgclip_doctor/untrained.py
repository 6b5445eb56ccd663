"""What of an otherwise trained model is still at its random start: matrices by kind and block, and norm gains."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fgclip_doctor.events import learning_rate
from fgclip_doctor.parts import ADAPTER, ELDER, FLOATS, side
from fgclip_doctor.provenance import Randomness, drift, from_one, gains, randomness_of
from fgclip_doctor.run import Missing, Run, Source, Tensor

NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")  # of a block
BLOCK = re.compile(r"^(.*\.\d+)\.")
CORE = re.compile(r"att|qkv|in_proj|out_proj|[qkv]_proj|mlp|fc|dense|ffn", re.IGNORECASE)
TABLE = re.compile(r"emb", re.IGNORECASE)
FINAL = re.compile(r"(?:^|[._])(?:ln_final|ln_post|ln_pre|(?:final|post|pre)_?(?:layer_?)?norm|pre_layrnorm)")
TOWER = re.compile(
    r"(?:layers|blocks|resblocks)\.|(?:visual|text)_projection|(?:patch|class|token|position\w*)_embedding"
)
NEW = re.compile(r"_(?:res|ori|long|filip|short)\b|roi|region|dense|box|adapter|lora|position_ids|classifier")
NORMAL = 0.02  # standard deviation that transformers gives new weights (initializer_range)
LARGEST = 1 << 26  # elements of a tensor that is looked at: 256 MiB once they are read
BEYOND = 1.5  # times Adam's bound
ALONE = 16_384  # values of a matrix with no others of its kind that are enough to judge it


@dataclass(frozen=True, slots=True)
class Anew:
    """The weights of the towers that were made anew at the start, where they can't be taught; none where they can."""

    names: tuple[str, ...]
    steps: float
    peak: float  # of the learning rate
    source: Source

    @property
    def reach(self) -> float:
        """How far Adam can move a weight."""
        return self.peak * self.steps


def made_anew(run: Run) -> Anew:
    """What transformers' list of newly initialized weights, in a log, says of the towers and their projections."""
    import numpy as np

    said = run.said("new-weights")
    rates = learning_rate(run)
    if said is None:
        raise Missing("no checkpoint, and no log that lists newly initialized weights")
    peak = float(np.nanmax(rates.values)) if rates is not None else run.number("learning_rate")
    steps = run.number("max_steps", float(rates.steps[-1]) if rates is not None else None)
    lost = tuple(name for name in said.names if TOWER.search(name) and not NEW.search(name))
    return Anew(lost if peak * steps < NORMAL / 2 else (), steps, peak, said.source)


def look(run: Run, moved: float) -> dict[str, Randomness]:
    """How the matrices that can be tested compare with random ones; `Missing` where there are none.

    `moved` is what training may have added to each value.
    """
    looked = ((tensor.name, randomness_of(tensor, moved)) for tensor in _matrices(run))
    looks = {name: one for name, one in looked if one and not (one.independent and _feeds_zero(run, name))}
    if not looks:
        raise Missing("no matrix is large enough, or has moved so little, that its start can be told")
    return looks


def left(
    run: Run, looks: Mapping[str, Randomness], *, structured: float, between: float
) -> dict[tuple[str, str], list[str]]:
    """The random matrices among those that are trained, by their kind and why they are none of them.

    `Missing` where fewer than the share `structured` is clearly trained, or more than `between` is neither.
    """
    found = dict.fromkeys(_by_base(run, looks), "unlike the weights that the run started from")
    count = len(looks)
    shaped = sum(look.structured for look in looks.values()) / count
    unclear = sum(not (look.structured or look.independent) for look in looks.values()) / count
    if shaped >= structured and unclear <= between:
        unseen = {name: look for name, look in looks.items() if run.base is None or name not in run.base.tensors}
        found |= dict.fromkeys(_by_kind(run, unseen), f"where {shaped:.0%} of {count} matrices clearly are not")
    elif run.base is None:
        raise Missing(f"only {shaped:.0%} of {count} matrices are clearly trained: what random ones mean can't be told")
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, why in found.items():
        groups[NUMBER.sub("*", name), why].append(name)
    return groups


def _matrices(run: Run) -> Iterator[Tensor]:
    """What can be tested: no banks, no adapters, no wide lookup tables."""
    played = {name for role, name in run.roles.items() if not role.startswith("head.")}
    for name, tensor in run.tensors.items():
        if len(tensor.shape) < 2 or tensor.dtype not in FLOATS or tensor.size > LARGEST:
            continue
        if name in played or ADAPTER.search(name):
            continue
        if not (TABLE.search(name) and tensor.statistics.std > 0.1):  # wide tables keep their start for ever
            yield tensor


def _feeds_zero(run: Run, name: str) -> bool:
    """Whether a matrix beside this one is all zero: the two are an adapter that starts as nothing."""
    module = name.rpartition(".")[0].rpartition(".")[0]
    beside = [one for other, one in run.tensors.items() if module and other.startswith(f"{module}.")]
    return any(len(one.shape) > 1 and one.dtype in FLOATS and one.statistics.norm == 0 for one in beside)


def _by_base(run: Run, looks: Mapping[str, Randomness]) -> Iterator[str]:
    """Random, unlike the base, and further from it than the run can have come; or a branch head unlike its donor."""
    if run.base is None:
        return
    alike = {name: _likeness(run.tensors[name], other) for name in looks if (other := run.base.tensors.get(name))}
    if sum(one > 0.5 for one in alike.values()) < len(alike) / 2:
        return  # another model, or one that was trained for long
    for name, look in looks.items():
        unrelated = 6 / run.tensors[name].size ** 0.5 + 0.02
        if name in alike and look.independent and abs(alike[name]) < unrelated:
            yield name
    for role, head in run.heads():
        elder = run.tensors.get(run.roles.get(ELDER.get(role, ""), ""))
        if head.name in alike or head.name not in looks or elder is None or elder.shape != head.shape:
            continue
        look, unrelated = looks[head.name], 6 / head.size**0.5 + 0.02
        if look.independent and abs(_likeness(head, elder)) < unrelated and _head_left(run, role, head.name, look.std):
            yield head.name


def overwritten(run: Run) -> list[tuple[Tensor, float, float]]:
    """Matrices further from the base than Adam can have moved them, with that distance (RMS) and the bound.

    Where others are too far as well, the base is another one, or the learning rates aren't those of the whole run.
    `Missing` where base, optimizer or rates aren't known.
    """
    import numpy as np

    optimizer = run.checkpoint.optimizer
    if run.base is None or optimizer is None or not optimizer.names:
        raise Missing("no base, or the optimizer's parameters have no names")
    found: list[tuple[Tensor, float, float]] = []
    ratios: list[float] = []
    for tensor in _matrices(run):
        other = run.base.tensors.get(tensor.name)
        if other is None or other.shape != tensor.shape or optimizer.index_of(tensor.name) is None:
            continue
        difference = tensor.values().astype(np.float64) - other.values()
        apart = float(np.sqrt(np.mean(difference**2)))
        reach = drift(run, tensor.name).reach(other.statistics.norm / other.size**0.5)
        ratios.append(apart / reach if reach > 0 else 0.0)
        if ratios[-1] > BEYOND:
            found.append((tensor, apart, reach))
    kept = sorted(ratios)[: len(ratios) - len(found)]
    return found if kept and 10 * len(found) <= len(ratios) and kept[-1] < 1 else []


def _likeness(one: Tensor, other: Tensor) -> float:
    """The cosine between two tensors of one shape, of squares also with the transpose (FGD702); 0 for other shapes."""
    import numpy as np

    if one.shape != other.shape:
        return 0.0
    ours, theirs = one.values().astype(np.float64), other.values().astype(np.float64)
    square = ours.ndim == 2 and ours.shape[0] == ours.shape[1]
    products = [float(np.vdot(ours, way)) for way in ((theirs, theirs.T) if square else (theirs,))]
    return max(products, key=abs) / (float(np.linalg.norm(ours) * np.linalg.norm(theirs)) or 1.0)


def _by_kind(run: Run, looks: Mapping[str, Randomness]) -> Iterator[str]:
    """Whole kinds (one name over all blocks) or whole blocks that are random, and large ones of their own kind."""
    heads = {tensor.name: role for role, tensor in run.heads()}
    kinds: dict[str, list[str]] = defaultdict(list)
    blocks: dict[str, list[str]] = defaultdict(list)
    for name in looks:
        kinds[NUMBER.sub("*", name)].append(name)
        if found := BLOCK.match(name):
            blocks[found[1]].append(name)
    several: dict[str, list[str]] = defaultdict(list)
    for names in kinds.values():
        if not all(looks[name].independent for name in names):
            continue
        for name in names:
            if name in heads or not side(run, name):
                if _head_left(run, heads.get(name, ""), name, looks[name].std):
                    yield name
            elif len(names) == 1 and run.tensors[name].size >= ALONE:
                yield name
            elif len(names) > 1 and _belongs(run, name, blocks, looks):
                several[name.partition(".")[0]].append(name)
    yield from (name for names in several.values() if len(names) > 2 for name in names)
    whole = [names for names in blocks.values() if len(names) > 2 and all(looks[name].independent for name in names)]
    rest = [name for names in blocks.values() if names not in whole for name in names]
    if rest and all(looks[name].structured for name in rest):
        yield from (name for names in whole for name in names)


def _belongs(run: Run, name: str, blocks: dict[str, list[str]], looks: Mapping[str, Randomness]) -> bool:
    """Whether a tensor came with its tower: one of a transformer's own parts, in a block that is trained otherwise."""
    found = BLOCK.match(name)
    trained = found is not None and any(looks[other].structured for other in blocks[found[1]])
    return trained and (CORE.search(name) is not None or not _teachable(run, name, looks[name].std, unknown=False))


def _teachable(run: Run, name: str, std: float, *, unknown: bool) -> bool:
    """Whether the planned learning rates can teach a new part; `unknown` where nothing tells."""
    optimizer = run.checkpoint.optimizer
    if optimizer is not None and not optimizer.may_hold(name):
        return False
    try:
        return drift(run, name, planned=True).typical >= std / 2
    except Missing:
        return unknown


def _head_left(run: Run, role: str, name: str, std: float) -> bool:
    """Whether a random head is a fault: it has a donor or came with the towers, or it can't be taught in time."""
    optimizer = run.checkpoint.optimizer
    if not role and optimizer is not None and not optimizer.may_hold(name):
        return False  # a fixed random projection, for all that is known
    elder = run.tensors.get(run.roles.get(ELDER.get(role, ""), ""))
    donor = role not in ELDER or (elder is not None and elder.shape == run.tensors[name].shape)
    return not _teachable(run, name, std, unknown=not role or not donor)


def untouched_norms(run: Run) -> Iterator[Tensor]:
    """Norm gains of a tower at 1, with biases at 0, where four of five others moved."""
    found = [gain for gain in gains(run.checkpoint) if gain.statistics.finite]
    try:
        reach = drift(run).reach(1.0)
    except Missing:
        reach = 0.0
    moved = [gain for gain in found if from_one(gain) > max(10 * reach, 0.02)]
    if len(moved) < 4 or len(moved) < 0.8 * len(found):
        return
    towers = {gain.name.partition(".")[0] for gain in moved if gain.name.count(".") > 1}
    for gain in found:
        bias = run.tensors.get(gain.name.removesuffix("weight") + "bias")
        same = run.base.tensors.get(gain.name) if run.base else None
        low, high = gain.statistics.minimum, gain.statistics.maximum
        at_init = max(high - 1, 1 - low) <= reach and (
            bias is None or max(bias.statistics.maximum, -bias.statistics.minimum) <= reach
        )
        inside = gain.name.partition(".")[0] in towers or FINAL.search(gain.name)
        if at_init and inside and not ADAPTER.search(gain.name) and (same is None or from_one(same) > max(reach, 0.02)):
            yield gain
