"""FGD701."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check
from fgclip_doctor.events import learning_rate
from fgclip_doctor.parts import ADAPTER, ELDER, FLOATS, side
from fgclip_doctor.provenance import Randomness, drift, from_one, gains, origin, randomness_of
from fgclip_doctor.run import Tensor
from fgclip_doctor_checks.causes import explaining

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
ALONE = 16_384  # values of a matrix with no others of its kind that are enough to judge it


@check("FGD701", "weights-left-at-init", Severity.ERROR)
def weights_left_at_init(run: Run, *, structured: float = 0.4, between: float = 0.05) -> Iterator[Finding]:
    """Parts of an otherwise pretrained model are still at their random initialisation.

    Why: a loader written by hand skips what it doesn't know by name (fused attention weights, a last norm, a head), and
    the model starts with those parts random: its features are no longer aligned.
    Evidence: values that are independent of each other, by the spread of row and column norms, kurtosis and the
    largest singular value, in all tensors of one kind or of one block, where most of the others are far from it; norm
    gains and biases exactly at 1 and 0 where others moved. With --base: random, and unlike the base or the donor. From
    a log alone: transformers' list of newly initialized weights, as far as they are a tower's or its projection's and
    the learning rates can't teach them; start-up code may still copy branch heads and long tables.
    Benign: a model trained from scratch, or too little for its weights to show it; adapters; lookup tables; a new
    head that the planned learning rates can teach (at least half its standard deviation), unless it has a donor.
    Fix: print the missing and unexpected keys of load_state_dict; split fused in_proj weights; copy a branch head from
    the head it starts as.
    Sources: Johnstone 2001 (largest eigenvalue of random matrices); Martin & Mahoney 2021 (trained ones differ).
    """
    if not run.checkpoints:
        yield from _told(run)
        return
    try:
        moved = drift(run).typical
    except Missing:
        moved = 0.0  # weights alone: nothing says that they were trained after loading
    else:
        if run.base is None and not origin(run).pretrained:
            return
    looked = ((tensor.name, randomness_of(tensor, moved)) for tensor in _matrices(run))
    looks = {name: look for name, look in looked if look and not (look.independent and _feeds_zero(run, name))}
    if not looks:
        raise Missing("no matrix is large enough, or has moved so little, that its start can be told")
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
    for (kind, why), names in groups.items():
        tensor, look = run.tensors[names[0]], looks[names[0]]
        what = f"All {len(names)} of {kind} are" if len(names) > 1 else f"{names[0]} is"
        top = Evidence(
            name="top singular value over the edge of random ones",
            value=look.edge,
            expected="well over 1",
            why=f"training lifts it: {look}",
            source=str(tensor.source),
        )
        where = kind if len(names) > 1 else names[0]
        branch = ELDER.keys() & {role for role, head in run.heads() if head.name in names}
        yield Finding(
            message=f"{what} still as initialised, {why}: what they should have learnt before is lost.",
            where=where,
            evidence=(top,),
            explained_by=explaining("FGD701", *("branch",) * bool(branch)),
        )
    for gain in _norms(run):
        spread = Evidence(
            name="spread of the gain",
            value=gain.statistics.std,
            expected="over 0",
            why="it is 1 throughout and its bias 0, where the other norms are not",
            source=str(gain.source),
        )
        yield Finding(
            message=f"{gain.name} is still as initialised: what it should have learnt before is lost.",
            where=gain.name,
            evidence=(spread,),
        )


def _told(run: Run) -> Iterator[Finding]:
    """What transformers says that it had to make anew, of what nothing makes better afterwards."""
    import numpy as np

    said = run.said("new-weights")
    rates = learning_rate(run)
    if said is None:
        raise Missing("no checkpoint, and no log that lists newly initialized weights")
    peak = float(np.nanmax(rates.values)) if rates is not None else run.number("learning_rate")
    steps = run.number("max_steps", float(rates.steps[-1]) if rates is not None else None)
    lost = [name for name in said.names if TOWER.search(name) and not NEW.search(name)]
    if lost and peak * steps < NORMAL / 2:
        yield Finding(
            message=f"{len(lost)} of the towers' weights were not in what the run was loaded from, {lost[0]} the "
            f"first: they are random, and {steps:g} steps at no more than {peak:.2g} can't teach them.",
            where=lost[0],
            evidence=(
                Evidence(
                    name="newly initialized weights of the towers",
                    value=len(lost),
                    expected=0,
                    why=f"{peak * steps:.2g} is all that Adam can move them, and they are about {NORMAL} wide",
                    source=str(said.source),
                ),
            ),
            explained_by=explaining("FGD701"),
        )


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


def _by_base(run: Run, looks: dict[str, Randomness]) -> Iterator[str]:
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


def _likeness(one: Tensor, other: Tensor) -> float:
    """The cosine between two tensors of one shape, of squares also with the transpose (FGD702); 0 for other shapes."""
    import numpy as np

    if one.shape != other.shape:
        return 0.0
    ours, theirs = one.values().astype(np.float64), other.values().astype(np.float64)
    square = ours.ndim == 2 and ours.shape[0] == ours.shape[1]
    products = [float(np.vdot(ours, way)) for way in ((theirs, theirs.T) if square else (theirs,))]
    return max(products, key=abs) / (float(np.linalg.norm(ours) * np.linalg.norm(theirs)) or 1.0)


def _by_kind(run: Run, looks: dict[str, Randomness]) -> Iterator[str]:
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


def _belongs(run: Run, name: str, blocks: dict[str, list[str]], looks: dict[str, Randomness]) -> bool:
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


def _norms(run: Run) -> Iterator[Tensor]:
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
