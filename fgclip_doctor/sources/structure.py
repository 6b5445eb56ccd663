"""The heads, the bank and the scales of a model by how it is built, for those that no name tells.

Two towers end in the width that they share, and the matrices that give it are the heads. A bank is a store of rows of
that width that no optimizer holds, with a counter beside it. A temperature is a number outside of the towers, in the
range in which logit scales start and stay. What fits twice is nobody's: a wrong part is worse than none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fgclip_doctor.run import Missing, Optimizer, Tensor

COPY = re.compile(r"(?:^|_)(?:ema|momentum|mom|teacher|shadow|averaged?|swa)(?:_|$)")  # of weights, which isn't trained
TWIN = re.compile(r"(?:^|_)(?:m|k|key|slow|target|tgt)$")  # may be one, or a tower of its own
TABLE = re.compile(r"emb(?!edder|_)|embed|tok|pos|wte|wpe|cls|quer|relative|rope|codebook|bias|mask|buffer|running")
ADAPTER = re.compile(r"lora|adapter|ia3|prompt|prefix|pooler")
NO_SCALE = re.compile(
    r"bias|margin|gate|momentum|decay|eps|weight|lambda|loss|epoch|step|lr|num|count|smooth|thresh|best"
)
SCALES = 1.5, 4.8  # log space: from under SigLIP's ln 10 to just over the cap, ln 100
MOST = 256  # children of a module, or stores, that are looked at: more than any model has
RAW = 5.0, 200.0  # the scale itself
THIN = 3  # matrices that a projection has, at most
SIDES = 4  # heads of one width, at most: images, regions, texts, and the texts of regions
LEAST_ROWS = 8
UNIT = 2e-3  # relative: the squares of rows of length 1 add up to their number, to the rounding of 16 bits


@dataclass(frozen=True)
class Part:
    """One child of the model: a tower, or a projection on top of one."""

    path: str
    matrices: tuple[str, ...]  # every float tensor of two dimensions or more, in the order of the file
    gives: Mapping[int, str]  # by width: the matrices that may give what comes out of it; of an ordered file one
    takes: frozenset[int]  # the widths that may go into it, if it is nothing but layers that take one
    ends: frozenset[int]  # widths that a projection on top of it can take

    @property
    def thin(self) -> bool:
        return len(self.matrices) <= THIN and bool(self.takes)


@dataclass(frozen=True)
class Head:
    """A matrix that gives the shared width, and the paths of the towers that may be below it."""

    name: str
    width: int
    towers: tuple[str, ...]


def heads(tensors: Mapping[str, Tensor], known: Sequence[str] = (), optimizer: Optimizer | None = None) -> list[Head]:
    """The heads of the towers, in the order of the file, or none: two to four of equal width.

    `known` are heads that were found by their names, whose width decides then.
    """
    ordered = list(tensors) != sorted(tensors)
    floats = [name for name, one in tensors.items() if len(one.shape) >= 2 and "float" in one.dtype]
    floats = [name for name in floats if not ADAPTER.search(name.lower())]
    width = next((_out_and_in(name, tensors)[0] for name in known if name in tensors), 0)
    level = _children(floats, "")
    for depth in range(3):
        level = {path: names for path, names in level.items() if not _copied(path, level, optimizer)}
        if len(level) > MOST:
            return []
        gains = _gains(level, tensors)
        parts = [_part(path, names, tensors, gains[path], ordered=ordered) for path, names in level.items()]
        found = _sharing(parts, width, outermost=not depth)
        if found or sum(len(one.matrices) > 1 and not one.thin for one in parts) > 1:
            return found
        level = {
            path: names
            for parent, inner in level.items()
            for path, names in (_children(inner, f"{parent}.") if len(inner) > 1 else {parent: inner}).items()
        }
    return []


def _children(names: Sequence[str], prefix: str) -> dict[str, list[str]]:
    """The names by the child of the module `prefix` in which they are, below what merely wraps them all."""
    while True:
        found: dict[str, list[str]] = {}
        for name in names:
            found.setdefault(prefix + name[len(prefix) :].partition(".")[0], []).append(name)
        only = next(iter(found), "")
        if len(found) != 1 or found[only] == [only] or len(names) < 2:
            return found
        prefix = f"{only}."


def _out_and_in(name: str, tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """Widths out of a matrix and into it: a layer's weight is (out, in), a bare parameter multiplies from the right."""
    first, second = tensors[name].shape[:2]
    return (first, second) if "weight" in name.rpartition(".")[2] else (second, first)


def _part(
    path: str, names: Sequence[str], tensors: Mapping[str, Tensor], gains: Sequence[int], *, ordered: bool
) -> Part:
    flat = [name for name in names if len(tensors[name].shape) == 2 and "in_proj" not in name]
    layers = [name for name in flat if not TABLE.search(name[len(path) :].lower())]
    bare = [name for name in layers if "weight" not in name.rpartition(".")[2]]
    layers = [name for name in layers if name not in bare]
    projecting = [name for name in bare if not gains or tensors[name].shape[0] in gains[-1:]]
    last: list[str] = []
    if len(projecting) == 1 and (not layers or _depth(projecting[0], path) <= 1):
        last = projecting
    elif layers and ordered:
        last = layers[-1:]
    elif layers:  # those whose output nothing else in it takes
        taken = {_out_and_in(name, tensors)[1] for name in layers} | set(gains)
        last = [name for name in layers if _out_and_in(name, tensors)[0] not in taken or len(layers) == 1]
    gives = {_out_and_in(name, tensors)[0]: name for name in last}
    first = flat[:1] if ordered else flat
    stack = len(flat) == len(names) and set(flat) <= {*layers, *bare}
    takes = frozenset(_out_and_in(name, tensors)[1] for name in first) if stack else frozenset[int]()
    ends = {*gives, *gains[-1:], *(_out_and_in(name, tensors)[0] for name in flat[-1:])}
    return Part(path, tuple(names), gives, takes, frozenset(ends))


def _gains(level: Mapping[str, object], tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """The lengths of the norm gains of each part, in the order of the file."""
    found: dict[str, list[int]] = {path: [] for path in level}
    for name, one in tensors.items():
        path = name
        while len(one.shape) == 1 and name.endswith("weight") and path:
            path = path.rpartition(".")[0]
            if path in found:
                found[path].append(one.shape[0])
                break
    return found


def _copied(path: str, level: Mapping[str, Sequence[str]], optimizer: Optimizer | None) -> bool:
    """Whether a part is a copy of another's weights (a momentum encoder, an average) and no tower of its own."""
    leaf = path.rpartition(".")[2].lower()
    if COPY.search(leaf):
        return True
    if not TWIN.search(leaf) or (optimizer and any(optimizer.index_of(name) is not None for name in level[path])):
        return False
    inner = [name[len(path) :] for name in level[path]]
    return any(other != path and [name[len(other) :] for name in level[other]] == inner for other in level)


def _depth(name: str, path: str) -> int:
    """Modules between a part and one of its tensors."""
    return name[len(path) :].count(".")


def _sharing(parts: Sequence[Part], width: int, *, outermost: bool) -> list[Head]:
    """Those of the parts that give one width, each with its tower, if it is clear which do.

    A few layers alone may be a tower among the `outermost` parts, further in they are layers of one.
    """
    able = [one for one in parts if one.gives]
    towers = [one for one in parts if len(one.matrices) > 1]

    def below(part: Part) -> list[Part]:
        """The towers that a projection can stand on."""
        return [
            one
            for one in towers
            if part.thin
            and one is not part
            and part.takes & one.ends
            and not (one.thin and one.gives.keys() == part.gives.keys())
        ]

    on_top = [one for one in able if below(one)]
    for group in (on_top, [one for one in able if outermost or one in on_top or not one.thin]):
        for shared in [width] if width else sorted({each for one in group for each in one.gives if each > 1})[::-1]:
            same = [one for one in group if shared in one.gives]
            if group is not on_top:  # a tower under a projection of the same group is no end
                standing = [one for one in same if one in on_top]
                same = [one for one in same if not any(one in below(top) for top in standing)]
            if 2 <= len(same) <= SIDES:
                return [Head(one.gives[shared], shared, _towers(one, below(one))) for one in same]
    return []


def _towers(part: Part, below: Sequence[Part]) -> tuple[str, ...]:
    own = (part.path,) if len(part.matrices) > 1 else ()
    return tuple(one.path for one in below) or own


def has_pixels(tower: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a tower begins with a convolution over a plane: what it reads is a picture, or a spectrogram."""
    return any(len(one.shape) >= 4 and name.startswith(f"{tower}.") for name, one in tensors.items())


def stores(tensors: Mapping[str, Tensor], held: Callable[[str], bool]) -> tuple[list[str], list[str]]:
    """The one or two stores of a bank and the integers that steer it, or nothing.

    A lone store must have rows of length 1; two of equal shape may have any. Both need an integer beside them.
    """
    able = [
        name
        for name, one in tensors.items()
        if len(one.shape) == 2
        and "float" in one.dtype
        and min(one.shape) >= 2
        and max(one.shape) >= LEAST_ROWS
        and not name.endswith(("weight", "bias"))
        and not TABLE.search(name.rpartition(".")[2].lower())
        and not held(name)
    ]
    counters = [
        name for name, one in tensors.items() if one.size == 1 and one.dtype.startswith(("int", "uint", "bool"))
    ]
    if max(len(able), len(counters)) > MOST:
        return [], []
    found: list[tuple[list[str], list[str]]] = []
    for name in able:
        beside = [other for other in counters if _beside(name, other)]
        pair = [other for other in able if tensors[other].shape == tensors[name].shape and _beside(name, other)]
        numbers = [other for other in beside if not tensors[other].dtype.startswith("bool")]
        if numbers and (len(pair) == 2 or (len(pair) == 1 and _unit(tensors[name]))):
            found.append((pair, beside))
    first = found[0] if found else ([], [])
    return first if all(one == first for one in found) else ([], [])


def _beside(one: str, other: str) -> bool:
    """In one module, or under one name in two modules that stand beside each other."""
    inside, _, leaf = one.rpartition(".")
    other_inside, _, other_leaf = other.rpartition(".")
    aligned = leaf == other_leaf and inside.rpartition(".")[0] == other_inside.rpartition(".")[0]
    return inside == other_inside or (aligned and bool(inside) and bool(other_inside))


def _unit(tensor: Tensor) -> bool:
    """Whether all rows or columns that were written have length 1, by what their squares add up to."""
    try:
        seen = tensor.statistics
    except Missing:
        return False
    if not seen.finite or not seen.count:
        return False
    written = 1 - seen.zeros / seen.count
    return any(abs(seen.norm**2 / (length * written) - 1) <= UNIT for length in tensor.shape if written)


def scales(tensors: Mapping[str, Tensor], towers: Sequence[str], trained: Callable[[str], bool]) -> list[str]:
    """Floats of one element outside of the towers whose value is that of a logit scale in log space.

    Where there is none: the only one that is trained, if its value is that of a scale itself.
    """
    found: list[str] = []
    raw: list[str] = []
    for name, one in tensors.items():
        leaf = name.rpartition(".")[2].lower()
        inside = any(tower and name.startswith(f"{tower}.") for tower in towers)
        if one.size != 1 or "float" not in one.dtype or inside or NO_SCALE.search(leaf):
            continue
        try:
            value = one.item()
        except Missing:
            continue
        if SCALES[0] <= value <= SCALES[1]:
            found.append(name)
        if RAW[0] <= value <= RAW[1] and trained(name):
            raw.append(name)
    return found or (raw if len(raw) == 1 else [])
