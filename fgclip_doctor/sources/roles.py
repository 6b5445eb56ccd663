"""The parts of the model and of the log by role, found by the patterns of their names and by their shapes.

Real forks rename everything, so nothing here knows one model's names: `queue`, `image_queue`, `memory_bank.img_feats`
and `xbm.keys` are all banks. Shapes decide between what the names leave open, and what stays open has no role.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from fgclip_doctor.run import Series, Tensor

BANK = re.compile(r"queue|bank|xbm|memory|(?:^|[._])(?:mem|moco|fifo)(?:[._\d]|$)")
STORE = re.compile(r"(?:^|[._])(?:cached?|store[ds]?|neg(?:ative)?s?|dict(?:ionary)?|keys|feats?)(?:[._\d]|$)")  # pairs
IMAGE = r"(image|img|visual|vision|vis|region|roi|box|v)"
TEXT = r"(text|txt|caption|cap|lang|language|t)"
POINTER = r"(ptr|pointer|cursor|idx|index|head|pos|position|offset)"
FULL = r"(full|filled|wrapped|is_?full|is_?filled|has_?wrapped)"
ENABLED = r"(enabled?|active|activated|is_?on|use_\w+)"
COUNTED = r"(num|n)?(steps?|forwards?|fwds?|iters?|iterations?|calls?|batch(es)?)(count(er)?)?"
COUNTING = r"n|nb|num|total|training|train|model|micro|count(er)?|seen|done"  # the other words in the name of a counter
MAX_NAME = 200  # characters; a longer name is nobody's, and would be slow to search
MAX_STORES = 64
EVALUATION = {"eval", "evaluation", "val", "valid", "validation", "test", "testing", "dev", "sanity"}
TOTAL = {"loss", "losses", "total", "overall", "train", "training", "step", "epoch", "iter", "batch"}  # no term's name
_EDGE, _END = r"(?:^|[._])", r"(?:[._]|\d|$)"


def find(
    tensors: Mapping[str, Tensor], series: Mapping[str, Series], given: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Role -> name of the tensor or series that plays it. `given` wins over everything found."""
    tensors = {name: tensor for name, tensor in tensors.items() if len(name) <= MAX_NAME}
    roles = {**_bank(tensors), **_clock(tensors), **_scales(tensors), **_heads(tensors), **_losses(series)}
    return {**roles, **(given or {})}


def _words(pattern: str, name: str) -> bool:
    """True if `pattern` stands in `name` as whole words, as `_`, `.` and digits part them."""
    return re.search(f"{_EDGE}{pattern}{_END}", name.lower()) is not None


def _integer(tensor: Tensor) -> bool:
    return tensor.dtype.startswith(("int", "uint", "bool"))


def _bank(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The memory bank: keys of equal shape per modality, and the scalars that steer them."""
    stores = [
        name
        for name, tensor in tensors.items()
        if len(tensor.shape) == 2 and not _integer(tensor) and not name.endswith((".weight", ".bias"))
    ]
    named = [name for name in stores if BANK.search(name.lower())]
    roles = _pair(named, tensors) or _pair([name for name in stores if STORE.search(name.lower())], tensors)
    if not roles and len(named) == 2 and tensors[named[0]].shape == tensors[named[1]].shape:
        roles = dict(zip(("bank.image_keys", "bank.text_keys"), named, strict=True))  # sides that no word tells
    if not roles and len(named) == 1:
        roles = {"bank.text_keys" if _text_side(named[0]) else "bank.image_keys": named[0]}
    if not roles:
        return {}
    anchor = next(iter(roles.values()))
    for role, pattern in (("bank.pointer", POINTER), ("bank.full", FULL), ("bank.enabled", ENABLED)):
        fitting = [
            name
            for name, tensor in tensors.items()
            if tensor.size == 1
            and (_integer(tensor) or role != "bank.pointer")
            and _words(pattern, name)
            and (BANK.search(name.lower()) or _related(name, anchor))
        ]
        if fitting:
            roles[role] = max(fitting, key=lambda name: _affinity(name, anchor))
    return roles


def _pair(names: Iterable[str], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The image and text keys of equal shape whose names are nearest to each other."""
    names = list(names)[:MAX_STORES]
    text = [name for name in names if _text_side(name)]
    image = [name for name in names if name not in text]
    pairs = [(one, other) for one in image for other in text if tensors[one].shape == tensors[other].shape]
    if not pairs:
        return {}
    one, other = max(pairs, key=lambda pair: _affinity(*pair))
    return {"bank.image_keys": one, "bank.text_keys": other}


def _clock(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The counter of forward passes that the model advances itself."""
    counters = [
        name for name, tensor in tensors.items() if tensor.size == 1 and _integer(tensor) and _counts_forwards(name)
    ]
    return {"clock.forwards": min(counters, key=lambda name: (name.count("."), len(name)))} if counters else {}


def _text_side(name: str) -> bool:
    """The last word that names a modality decides: `region_text_queue` holds texts."""
    words = [word for word in re.split(r"[._]", name.lower()) if word]
    sides = [bool(re.fullmatch(TEXT, word)) for word in words if re.fullmatch(f"{TEXT}s?|{IMAGE}s?", word)]
    plural = [word for word in words if re.fullmatch(f"{TEXT}s", word)]
    return bool(plural) or (bool(sides) and sides[-1])


def _counts_forwards(name: str) -> bool:
    """A counter that the model itself advances. Not a batch norm's `num_batches_tracked`, nor a `global_step`, which
    a trainer sets: other words than `COUNTING` say that it is something else."""
    words = [word for word in name.rpartition(".")[2].lower().split("_") if word]
    return any(re.fullmatch(COUNTED, word) for word in words) and all(
        re.fullmatch(f"{COUNTED}|{COUNTING}", word) for word in words
    )


def _affinity(one: str, other: str) -> int:
    """How many leading characters two names share, then trailing ones: the best partner is the nearest name."""
    leading = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    pairs = zip(reversed(one), reversed(other), strict=False)
    return leading + next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _related(one: str, other: str) -> bool:
    """Of one module below the model itself, or with the same first word: `neg_img`, `neg_ptr`."""
    parent, _, leaf = one.rpartition(".")
    other_parent, _, other_leaf = other.rpartition(".")
    return parent == other_parent and (bool(parent) or leaf.split("_")[0] == other_leaf.split("_")[0])


def _scales(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    pattern = r"\w*(logit_?scale|temperature|log_?temp|logit_?temp)\w*|(\w+_)?(temp|tau|t_prime|log_?scale)(_\w+)?"
    names = [
        name
        for name, tensor in tensors.items()
        if tensor.size == 1 and "float" in tensor.dtype and re.fullmatch(pattern, name.rpartition(".")[2].lower())
    ]
    return _by_branch("scale", names)


def _by_branch(kind: str, names: Iterable[str]) -> dict[str, str]:
    """Global, region and hard by the words in the name; the plainest name of a branch plays the role."""
    roles: dict[str, str] = {}
    for name in sorted(names, key=len):
        branch = _branch(name)
        roles.setdefault(f"{kind}.{branch}", name)
    return {role: roles[role] for role in (f"{kind}.global", f"{kind}.region", f"{kind}.hard") if role in roles}


def _branch(name: str) -> str:
    lower = name.lower()
    if re.search(r"hard|(?:^|[._/])hn(?:[._/]|$)|hneg", lower):
        return "hard"
    if re.search(r"region|roi|box|fine_?-?grain|(?:^|[._/])fg(?:[._/]|$)|local|dense", lower):
        return "region"
    return "global"


def _heads(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Projections to the shared embedding: matrices, or the first of a small stack, named after what they project."""
    roles: dict[str, str] = {}
    patterns = {
        "head.region": r"(region|roi|box|regional|local|fg|finegrain\w*|fine_grain\w*)",
        "head.text_long": r"(?=.*(filip|long))(?=.*(text|txt|caption|language|lang|t)(_|\b))",
        "head.text": r"(text|txt|caption|language|lang|transformer|t)",
        "head.image": r"(visual|vision|image|img|v)",
    }
    for name, tensor in tensors.items():
        path = name.removesuffix(".weight").lower()
        if len(tensor.shape) != 2 or "float" not in tensor.dtype or name.count(".") > 4:
            continue
        if re.search(r"(encoder|blocks?|layers?|resblocks?|attn|attention|mlp|embeddings?)([._]|$)", path):
            continue
        if not re.search(r"(^|[._])(proj(ection|ector)?|head|fc|to_latent|latent)([._\d]|$)", path):
            continue
        for role, pattern in patterns.items():
            found = re.search(pattern, path) if role == "head.text_long" else _words(pattern, path)
            if found:
                if role not in roles or len(name) < len(roles[role]):
                    roles[role] = name
                break
    return {role: roles[role] for role in ("head.image", "head.text", "head.text_long", "head.region") if role in roles}


def _losses(series: Mapping[str, Series]) -> dict[str, str]:
    """Training losses only: an evaluation's series has its own candidates."""
    roles: dict[str, str] = {}
    totals: list[str] = []
    terms: list[str] = []
    for name in series:
        lower = name.lower()
        words = set(re.findall("[a-z]+", re.sub("(?<=[a-z])(?=[A-Z])", "_", name).lower()))
        if "loss" not in lower or words & EVALUATION or lower.startswith("loss at "):  # a place in the code
            continue
        if lower == "train_loss" and len(series[name].steps) == 1:
            continue  # transformers.Trainer logs the mean over the whole run under this name, once
        if words <= TOTAL:
            totals.append(name)
        elif not re.search(r"scale|weight|ratio|bits|noise|chance", lower):
            terms.append(name)
    if totals:  # of each step rather than of an epoch, by the plainest name
        roles["loss.total"] = min(totals, key=lambda name: ("epoch" in name.lower(), len(name)))
    for name in sorted(terms, key=len):
        branch = _branch(name)
        known = branch != "global" or re.search(r"global|itc|contrastive|clip|long|infonce|nce", name.lower())
        if known:
            roles.setdefault(f"loss.{branch}", name)
    return roles
