"""The parts of the model and of the log by role, found by the patterns of their names and by their shapes.

Real forks rename everything, so nothing here knows one model's names: `queue`, `image_queue`, `memory_bank.img_feats`
and `xbm.keys` are all banks. Shapes decide between what the names leave open, what no name tells is told by how the
model is built (`fgclip_doctor.sources.structure`), and what stays open has no role.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from math import nan

from fgclip_doctor.loss_names import AROUND, is_loss, is_total
from fgclip_doctor.parts import modality
from fgclip_doctor.run import Missing, Optimizer, Series, Tensor
from fgclip_doctor.sources import structure

BANK = re.compile(r"queue|bank|xbm|memory|(?:^|[._])(?:mem|moco|fifo)(?:[._\d]|$)")
STORE = re.compile(  # pairs, or one with a pointer
    r"(?:^|[._])(?:cached?|store[ds]?|neg(?:ative)?s?|dict(?:ionary)?|keys|feats?|pool|stash)(?:[._\d]|$)"
)
IMAGE = r"(image|img|visual|vision|vis|pic|picture|photo|pixel|video|region|roi|box|patch|crop|v)"
TEXT = r"(text|txt|caption|cap|lang|language|phrase|sentence|sent|word|title|token|tok|t)"
POINTER = r"(ptr|pointer|cursor|idx|index|head|pos|position|offset|at)"
FULL = r"(full|filled|wrapped|is_?full|is_?filled|has_?wrapped)"
ENABLED = r"(enabled?|active|activated|live|(?:is_?)?on|use_\w+)"
COUNTED = r"(num|n)?(steps?|forwards?|fwds?|iters?|iterations?|calls?|ticks?|batch(es)?)(count(er)?)?"
COUNTING = r"n|nb|num|total|training|train|model|micro|count(er)?|seen|done"  # the other words in the name of a counter
MAX_NAME = 200  # characters; a longer name is nobody's, and would be slow to search
MAX_STORES = 64
KINDS = ("bank", "clock", "scale", "head", "tower")
CONTRASTIVE = (
    r"global|itc|ita(?![a-z])|contrast|clip|long|nce|ctr|sigmoid|siglip|xent|i2t|t2i|(?:image|img)_(?:te?xt|cap)"
)
WHOLE = r"(image|img|pic|picture|photo|full|whole)"
SIGMOID_BIAS = -2.0  # far below what a layer of one output has
LOSSES = ("loss.total", "loss.global", "loss.region", "loss.hard")
_EDGE, _END = r"(?:^|[._])", r"(?:[._]|\d|$)"


def find(
    tensors: Mapping[str, Tensor],
    series: Mapping[str, Series],
    given: Mapping[str, str] | None = None,
    optimizer: Optimizer | None = None,
) -> dict[str, str]:
    """Role -> name of the tensor or series that plays it. `given` wins over everything found."""
    tensors = {name: tensor for name, tensor in tensors.items() if len(name) <= MAX_NAME}
    roles = {**_named(tensors), **(given or {})}
    roles = {**_built(tensors, roles, optimizer), **roles}
    return {**{role: roles[role] for role in sorted(roles, key=_place)}, **_losses(series), **(given or {})}


def sigmoid(tensors: Mapping[str, Tensor], series: Mapping[str, Series]) -> str:
    """The tensor or the series by which the loss is SigLIP's: its bias, which starts at -10, or its name."""
    for name, tensor in tensors.items():
        leaf = name.rpartition(".")[2].lower()
        if tensor.size != 1 or "float" not in tensor.dtype or not re.search(r"(?:^|_)(?:b|bias)(?:$|_)", leaf):
            continue
        if "logit_bias" in leaf or (name.count(".") < 2 and _value(tensor) <= SIGMOID_BIAS):
            return name
    return next((name for name in series if is_loss(name) and re.search("siglip|sigmoid", name.lower())), "")


def _value(tensor: Tensor) -> float:
    try:
        return tensor.item()
    except Missing:
        return nan


def remark(tensors: Mapping[str, Tensor], roles: Mapping[str, str], given: Mapping[str, str] | None = None) -> str:
    """A line on the roles that no name told; empty where there are none."""
    named = {**_named({name: tensor for name, tensor in tensors.items() if len(name) <= MAX_NAME}), **(given or {})}
    kinds = tuple(f"{kind}." for kind in KINDS)
    told = [f"{role} is {name}" for role, name in roles.items() if role.startswith(kinds) and role not in named]
    return f"by how the model is built, as no name told: {', '.join(told)}" if told else ""


def _named(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    return {**_bank(tensors), **_clock(tensors), **_scales(tensors), **_heads(tensors)}


def _plain(name: str) -> str:
    """In lower case, with the words of `camelCase` parted."""
    return re.sub("(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _words(pattern: str, name: str) -> bool:
    """True if `pattern` stands in `name` as whole words, as `_`, `.`, capitals and digits part them."""
    return re.search(f"{_EDGE}{pattern}{_END}", _plain(name)) is not None


def _integer(tensor: Tensor) -> bool:
    return tensor.dtype.startswith(("int", "uint", "bool"))


def _bank(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The memory bank: keys of equal shape per modality, and the scalars that steer them."""
    stores = [
        name
        for name, tensor in tensors.items()
        if len(tensor.shape) == 2 and not _integer(tensor) and not name.endswith((".weight", ".bias"))
    ]
    named = [name for name in stores if BANK.search(_plain(name))]
    roles = _pair(named, tensors) or _pair([name for name in stores if STORE.search(_plain(name))], tensors)
    if not roles and len(named) == 2 and tensors[named[0]].shape == tensors[named[1]].shape:
        roles = dict(zip(("bank.image_keys", "bank.text_keys"), named, strict=True))  # sides that no word tells
    if not roles and not named:  # a lone store of a plainer name needs a pointer beside it
        named = [name for name in stores if STORE.search(_plain(name)) and _pointers(name, tensors)]
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
            and (BANK.search(_plain(name)) or _related(name, anchor))
        ]
        if fitting:
            roles[role] = max(fitting, key=lambda name: _affinity(name, anchor))
    return roles


def _pointers(store: str, tensors: Mapping[str, Tensor]) -> list[str]:
    """The integers beside a store that are named as what points into it is."""
    return [
        name
        for name, one in tensors.items()
        if one.size == 1 and _integer(one) and _words(POINTER, name) and _related(name, store)
    ]


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
    words = [word for word in re.split(r"[._]", _plain(name)) if word]
    sides = [bool(re.fullmatch(TEXT, word)) for word in words if re.fullmatch(f"{TEXT}s?|{IMAGE}s?", word)]
    plural = [word for word in words if re.fullmatch(f"{TEXT}s", word)]
    return bool(plural) or (bool(sides) and sides[-1])


def _counts_forwards(name: str) -> bool:
    """A counter that the model itself advances. Not a batch norm's `num_batches_tracked`, nor a `global_step`, which
    a trainer sets: other words than `COUNTING` say that it is something else."""
    words = [word for word in _plain(name.rpartition(".")[2]).split("_") if word]
    return any(re.fullmatch(COUNTED, word) for word in words) and all(
        re.fullmatch(f"{COUNTED}|{COUNTING}", word) for word in words
    )


def _affinity(one: str, other: str) -> int:
    """How many leading characters two names share, then trailing ones: the best partner is the nearest name."""
    leading = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    pairs = zip(reversed(one), reversed(other), strict=False)
    return leading + next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _related(one: str, other: str) -> bool:
    """Of one module below the model itself, or with a word in common: `neg_img`, `neg_ptr`."""
    parent, _, leaf = _plain(one).rpartition(".")
    other_parent, _, other_leaf = _plain(other).rpartition(".")
    return parent == other_parent and (bool(parent) or bool(set(leaf.split("_")) & set(other_leaf.split("_"))))


def _scales(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    pattern = (
        r"\w*(logit_?scale|temperature|log_?temp|logit_?temp)\w*|(\w+_)?(temp|tau|t_prime|log_?scale)(_\w+)?"
        r"|log_?(inv_?)?(t|tau)|inv_?(t|tau)|kappa|sharpness|(sim|similarity|cos|cosine)_?scale"
    )
    names = [
        name
        for name, tensor in tensors.items()
        if tensor.size == 1 and "float" in tensor.dtype and re.fullmatch(pattern, _plain(name.rpartition(".")[2]))
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
    lower = _plain(name)
    if re.search(r"hard|(?:^|[._/])hn(?:[._/]|$)|hneg", lower):
        return "hard"
    if re.search(r"region|roi|box|fine_?-?grain|(?:^|[._/])(?:fg|patch|crop)(?:[._/]|$)|local|dense", lower):
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
        path = _plain(name.removesuffix(".weight"))
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


def _place(role: str) -> int:
    """Where a kind of role stands among the kinds."""
    kind = role.partition(".")[0]
    return KINDS.index(kind) if kind in KINDS else len(KINDS)


def _built(tensors: Mapping[str, Tensor], roles: Mapping[str, str], optimizer: Optimizer | None) -> dict[str, str]:
    """What no name tells, by how the model is built: heads with their towers, the bank, the scales."""
    known = [name for role, name in roles.items() if role.startswith("head.")]

    def trained(name: str) -> bool:
        return optimizer is not None and optimizer.index_of(name) is not None

    bank = {role: name for role, name in roles.items() if role.startswith("bank.")}
    stores = {} if bank else _stores(tensors, optimizer)
    inside = {*bank.values(), *stores.values()}
    heads = structure.heads({name: one for name, one in tensors.items() if name not in inside}, known, optimizer)
    found = _sides(heads, tensors, roles)
    widths = {head.width for head in heads}
    if stores and (not widths or widths & set(tensors[next(iter(stores.values()))].shape)):
        found |= stores
    contrastive = heads or known or any(role.startswith("bank.") for role in (*roles, *found))
    if contrastive and not any(role.startswith("scale.") for role in roles):
        names = structure.scales(tensors, [path for head in heads for path in head.towers], trained)
        hard = [name for name in names if re.search(r"(?:^|[._])(?:neg|h$)", _plain(name))]
        region = [name for name in names if re.search("_r$", name) or _branch(name) == "region"]
        rest = [name for name in names if name not in {*hard, *region}]
        if len(rest) == 1 and len(hard) < 2 and len(region) < 2:
            found |= {"scale.global": rest[0]}
            found |= {role: one[0] for role, one in (("scale.region", region), ("scale.hard", hard)) if one}
    return found


def _sides(heads: Sequence[structure.Head], tensors: Mapping[str, Tensor], roles: Mapping[str, str]) -> dict[str, str]:
    """The roles of heads and of their towers: by words, else by what the tower reads, else by their order."""
    towers = list(dict.fromkeys(path for head in heads for path in head.towers))
    below = {head.name: [path for path in head.towers if _shared(path, head.name)] or head.towers for head in heads}
    if len(towers) == len(heads) > 1 and all(len(head.towers) > 1 for head in heads):
        below = {head.name: [path] for head, path in zip(heads, towers, strict=True)}
    reads = {path: _side(path) or ("image" if structure.has_pixels(path, tensors) else "") for path in towers}
    if len(towers) == 2 and len(told := set(reads.values()) - {""}) == 1:
        reads = {path: side or min({"image", "text"} - told) for path, side in reads.items()}
    telling = {
        head.name: (reads[below[head.name][0]] if len(below[head.name]) == 1 else "") or _side(head.name)
        for head in heads
    }
    if len(towers) == 2 and len(heads) == 2 and len(set(telling.values())) == 1:
        telling = dict.fromkeys(telling, "")  # both of one kind, as for pictures and sketches
    named = {name: role for role, name in roles.items() if role.startswith("head.")}
    open_sides = sorted({"image", "text"} - set(telling.values()))
    found: dict[str, str] = {}
    for head in heads:
        side = telling[head.name] or (open_sides.pop(0) if open_sides else "")
        if not side:
            continue
        younger = "head.region" if side == "image" else "head.text_long"
        second = f"head.{side}" in {**roles, **found} or _branch(head.name) == "region"
        role = younger if second else f"head.{side}"
        if head.name not in named and role not in roles:
            found.setdefault(role, head.name)
        others = {*named, *(one.name for one in heads)}
        body = any(modality(name) == side and name.count(".") > 1 for name in tensors if name not in others)
        fitting = [path for path in below[head.name] if reads[path] == side] or list(below[head.name])
        if len(fitting) == 1 and not body:
            found.setdefault(f"tower.{side}", fitting[0])
    return found


def _akin(one: str, other: str) -> bool:
    """Whether the last parts of two names have a word in common."""
    words, others = (set(_plain(name.rpartition(".")[2]).split("_")) for name in (one, other))
    return bool(words & others)


def _shared(path: str, name: str) -> bool:
    """Whether the last word of a path, of three letters or more, is how one of a name's begins: `eye`, `eye2z`."""
    last = re.split(r"[._]", _plain(path))[-1]
    return len(last) > 2 and any(word.startswith(last) for word in re.split(r"[._]", _plain(name)))


def _side(name: str) -> str:
    """The side that the words in a name tell, if it is one."""
    sides = [side for side, pattern in (("image", IMAGE), ("text", TEXT)) if _words(f"{pattern}s?", name)]
    return sides[0] if len(sides) == 1 else ""


def _stores(tensors: Mapping[str, Tensor], optimizer: Optimizer | None) -> dict[str, str]:
    """The bank by its shape and what stands beside it; what steers it is told by words, or by being the only one."""

    def held(name: str) -> bool:
        return optimizer is not None and bool(optimizer.names) and optimizer.may_hold(name)

    names, beside = structure.stores(tensors, held)
    if not names:
        return {}
    found = _pair(names, tensors)
    if not found and len(names) == 2:
        found = dict(zip(("bank.image_keys", "bank.text_keys"), names, strict=True))
    if not found:
        found = {"bank.text_keys" if _text_side(names[0]) else "bank.image_keys": names[0]}
    for role, pattern in (("bank.full", FULL), ("bank.enabled", ENABLED), ("bank.pointer", POINTER)):
        fitting = [name for name in beside if _words(pattern, name.rpartition(".")[2]) and name not in found.values()]
        numbers = [name for name in beside if not tensors[name].dtype.startswith("bool") and not _counts_forwards(name)]
        if role == "bank.pointer" and not fitting:
            free = [name for name in numbers if name not in found.values()]
            fitting = free if len(free) == 1 else [name for name in free if _akin(name, names[0])]
        if len(fitting) == 1:
            found[role] = fitting[0]
    return found


def _losses(series: Mapping[str, Series]) -> dict[str, str]:
    """Training losses only: an evaluation's series has its own candidates."""
    roles: dict[str, str] = {}
    totals: list[str] = []
    terms: list[str] = []
    for name in series:
        if not is_loss(name) or name.lower().startswith("loss at "):  # a place in the code
            continue
        if name.lower() == "train_loss" and len(series[name].steps) == 1:
            continue  # transformers.Trainer logs the mean over the whole run under this name, once
        if is_total(name):
            totals.append(name)
        elif not AROUND.search(name.lower()):
            terms.append(name)
    if totals:  # of each step rather than of an epoch, by the plainest name
        roles["loss.total"] = min(totals, key=lambda name: ("epoch" in name.lower(), len(name)))
    for name in sorted(terms, key=len):
        branch = _branch(name)
        if branch != "global" or re.search(CONTRASTIVE, name.lower()):
            roles.setdefault(f"loss.{branch}", name)
    if "loss.region" in roles and "loss.global" not in roles:  # beside a region's loss, that of whole images
        whole = [name for name in terms if _branch(name) == "global" and _words(WHOLE, name.replace("/", "."))]
        roles |= {"loss.global": whole[0]} if len(whole) == 1 else {}
    return {role: roles[role] for role in LOSSES if role in roles}
