"""Which parameter has which index in a saved optimizer: the alignment with the fewest exceptions.

An optimizer state knows parameters by number. The numbers follow the order in which modules were defined, group by
group, less what was frozen or left out. So the weights are walked as a tree of modules, and every tensor either takes
the next index of a group whose state has its shape, or is skipped. Skipping a whole module costs one, and so does
changing the group. All the cheapest walks are kept: an index that has the same name in each of them is certain.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import eq

from fgclip_doctor.run import OptimizerGroup, Tensor

Shape = tuple[int, ...]
Names = dict[int, tuple[str, ...]]

MAX_STEPS = 100_000  # of all searches for one optimizer, half a second; beyond it the order is too open to say anything
MAX_PARAMETERS = 20_000
MAX_DEPTH = 40  # of module names
BUDGETS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # exceptions that a search may make, in turn
FEW = 4  # exceptions at which an alignment is believed without a look at less usual ones
HAND_WRITTEN = 12  # groups up to this size may have been listed by hand, in any order

# Siblings whose order of definition is known. Needed only where shapes can't tell, in files that sort their names, as
# safetensors does: torch's own, those in the order of the data flow, and those of transformers' CLIP family.
TORCH = (("weight", "bias"), ("in_proj_weight", "in_proj_bias"))
FLOW = (
    ("embeddings", "pre_layrnorm", "encoder", "final_layer_norm"),
    ("embeddings", "pre_layrnorm", "encoder", "post_layernorm", "head"),
    ("conv1", "ln_pre", "transformer", "ln_post"),
    ("patch_embed", "norm_pre", "blocks", "norm"),
    ("c_fc", "c_proj"),
    ("qkv", "proj"),
    ("q_proj", "out_proj"),
    ("k_proj", "out_proj"),
    ("v_proj", "out_proj"),
)
TRANSFORMERS = (
    ("visual_projection", "text_projection"),
    ("self_attn", "layer_norm1", "mlp", "layer_norm2"),
    ("k_proj", "v_proj", "q_proj", "out_proj"),
)

BUFFER = re.compile(
    r"(^|[._])(queues?|xbm|mem|ptr|pointer|position_ids|running_(mean|var)|num_batches_tracked|inv_freq|attn_mask|"
    r"is_full|full|filled|training_steps|cursor)([._\d]|$)|(^|[._])(memory_?)?bank([._]|$)"
)
NO_DECAY = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")  # of transformers.Trainer


class TooOpen(Exception):  # noqa: N818 - not an error: the search has no answer worth giving
    """So many orders fit that nothing is certain."""


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights by name, and what is known of the order in which they were defined."""

    tensors: Mapping[str, Tensor]
    defined_order: bool  # the names stand in it
    transformers: bool = False  # a model that transformers saved, from its CLIP family
    buffers: frozenset[str] = frozenset()  # known not to be parameters

    def parameters(self, *, buffers: bool) -> dict[str, Shape]:
        """Names and shapes of what may be a parameter; with `buffers`, also of what is named like a buffer."""
        return {
            name: tensor.shape
            for name, tensor in self.tensors.items()
            if "float" in tensor.dtype and name not in self.buffers and (buffers or not BUFFER.search(name))
        }


def align(
    groups: Sequence[OptimizerGroup],
    shapes: Mapping[int, Shape],
    stateless: Collection[int],
    weights: Weights,
    moved: Collection[str] = (),
    barred: Collection[tuple[int, str]] = (),
) -> Names:
    """The names that each index may have; empty where the optimizer doesn't fit the weights.

    `shapes` holds the shape of the state of each index that has one, `stateless` the indices that never had a step.
    `moved` are parameters that changed during the run: the optimizer holds them, and they have a state. `barred` are
    pairs of index and name known not to belong together.

    Raises `TooOpen` where too many orders fit.
    """
    members = [tuple(group.parameters) for group in groups if group.parameters]
    by_hand = len(groups) == 1 or len({group.initial_lr for group in groups if group.parameters}) > 1
    for buffers in (False, True):
        parameters = weights.parameters(buffers=buffers)
        if len(parameters) > MAX_PARAMETERS:
            raise TooOpen("the model has too many tensors")
        need = Counter(shapes[index] for group in members for index in group if index in shapes)
        if need - Counter(parameters.values()) or sum(map(len, members)) > len(parameters):
            continue  # a shape that the weights don't have often enough
        problem = _Problem(
            members, shapes, frozenset(stateless), parameters, frozenset(moved), frozenset(barred), by_hand
        )
        solutions = list(_solutions(problem, weights))
        if solutions:
            cheapest = min(cost for cost, _ in solutions)
            return _union(names for cost, names in solutions if cost == cheapest)
    return {}


def _solutions(problem: _Problem, weights: Weights) -> Iterator[tuple[int, Names]]:
    """The cheapest alignments under one hypothesis about groups and order after the other, the usual ones first.

    An alignment with few exceptions ends it: that modules are in an unusual order is an exception too.
    """
    likely = TORCH + FLOW + (TRANSFORMERS if weights.transformers else ())
    chains = [None] if weights.defined_order else [likely, TORCH]
    limit = BUDGETS[-1]
    for by_module in (False, True) if len(problem.members) > 1 else (False,):
        for siblings in chains:
            root = _tree(problem.parameters, siblings)
            for rule in _rules(problem.parameters, len(problem.members), by_module=by_module):
                found = _cheapest(problem, root, rule, limit, by_module=by_module)
                if found is not None:
                    yield found
                    limit = found[0]
            if limit <= FEW:
                return


def _rules(parameters: Mapping[str, Shape], groups: int, *, by_module: bool) -> Iterator[Callable[[str], int]]:
    """Which parameters go together whatever their module: decayed ones and others, by the usual definitions."""
    batch_norms = {name.rpartition(".")[0] for name in parameters if name.endswith(".running_mean")}

    def trainer(name: str) -> int:
        module, _, leaf = name.rpartition(".")
        layer_norm = leaf == "weight" and len(parameters[name]) == 1 and module not in batch_norms
        return int(layer_norm or bool(NO_DECAY.search(name.lower())))

    def dimensions(name: str) -> int:
        return int(len(parameters[name]) < 2)

    if groups == 1 or by_module:
        yield lambda name: 0
    if groups > 1:
        yield trainer
        yield dimensions


def _union(solutions: Iterator[Names]) -> Names:
    merged: dict[int, dict[str, None]] = {}
    for names in solutions:
        for index, candidates in names.items():
            merged.setdefault(index, {}).update(dict.fromkeys(candidates))
    return {index: tuple(merged[index]) for index in sorted(merged)}


# --- the tree of modules -------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Part:
    """A module or, without children, a tensor. `after[i]` is the bit mask of the children that come before child i."""

    name: str
    children: list[_Part] = field(default_factory=list)
    after: list[int] = field(default_factory=list)
    shapes: Counter[Shape] = field(default_factory=Counter)
    names: frozenset[str] = frozenset()


def _tree(parameters: Mapping[str, Shape], siblings: Sequence[tuple[str, ...]] | None) -> _Part:
    """`siblings` orders the children where it can; None takes the order of `parameters` as that of definition."""

    def build(name: str, members: Sequence[tuple[Sequence[str], str]], depth: int) -> _Part:
        part = _Part(name, names=frozenset(full for _, full in members))
        part.shapes.update(parameters[full] for _, full in members)
        if depth > MAX_DEPTH:
            raise TooOpen("module names are nested too deeply")
        if len(members) == 1 and not members[0][0][depth:]:
            return part
        children: dict[str, list[tuple[Sequence[str], str]]] = {}
        for path, full in members:
            children.setdefault(path[depth] if depth < len(path) else "", []).append((path, full))
        keys = list(children)
        leaf = [any(len(path) <= depth + 1 for path, _ in children[key]) for key in keys]
        part.children = [build(key, children[key], depth + 1) for key in keys]
        for i, key in enumerate(keys):
            before = [
                j
                for j, other in enumerate(keys)
                if (j < i if siblings is None else _precedes(other, key, leaf[j], leaf[i], siblings))
            ]
            part.after.append(sum(1 << j for j in before))
        return part

    return build("", [(name.split("."), name) for name in parameters], 0)


def _parts(root: _Part) -> Iterator[_Part]:
    yield root
    for child in root.children:
        yield from _parts(child)


def _precedes(one: str, other: str, one_leaf: bool, other_leaf: bool, siblings: Sequence[tuple[str, ...]]) -> bool:
    if one_leaf != other_leaf:
        return one_leaf  # a module's own parameters come before those of its children
    for chain in siblings:
        if one in chain and other in chain:
            return chain.index(one) < chain.index(other)
    stem, number = _numbered(one)
    other_stem, other_number = _numbered(other)
    return stem == other_stem and 0 <= number < other_number


def _numbered(name: str) -> tuple[str, int]:
    match = re.fullmatch(r"(.*?)(\d{1,9})", name)
    return (match[1], int(match[2])) if match else (name, -1)


# --- the search ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Problem:
    members: list[tuple[int, ...]]
    shapes: Mapping[int, Shape]
    stateless: frozenset[int]
    parameters: Mapping[str, Shape]
    moved: frozenset[str]
    barred: frozenset[tuple[int, str]]
    by_hand: bool  # the groups are somebody's choice, not only those that a trainer makes of decayed and others
    steps: int = 0  # of the searches so far

    def equal(self, index: int) -> tuple[Shape | None, bool, int | None]:
        """What is the same for indices that are interchangeable."""
        singled_out = any(index == one for one, _ in self.barred)
        return self.shapes.get(index), index in self.stateless, index if singled_out else None


# How far a walk is: per group, the number of indices left of each kind that is taken in order; the group last used by
# each class of parameters; how many tensors of each shape may still go without a state; how many may still be skipped.
_State = tuple[tuple[tuple[int, ...], ...], tuple[int, int], tuple[int, ...], int]
_Label = tuple[tuple[int, ...], str]


def _cheapest(
    problem: _Problem, root: _Part, rule: Callable[[str], int], limit: int, *, by_module: bool
) -> tuple[int, Names] | None:
    """The cheapest alignment of at most `limit` exceptions."""
    for budget in (*(one for one in BUDGETS if one < limit), limit):
        found = _Search(problem, rule, budget, by_module=by_module).run(root)
        if found is not None:
            return found
    return None


class _Search:
    """All walks of at most `budget` exceptions, as a graph whose edges are in topological order."""

    def __init__(self, problem: _Problem, rule: Callable[[str], int], budget: int, *, by_module: bool) -> None:
        self.problem = problem
        self.classes = {name: rule(name) for name in problem.parameters}
        self.budget = budget
        self.by_module = by_module
        self.by_hand = [self._by_hand(group) for group in range(len(problem.members))]
        self.runs = [self._runs(group) for group in range(len(problem.members))]
        self.full = tuple(tuple(map(len, runs)) for runs in self.runs)
        self.idle_classes = 2 - len(set(self.classes.values()))
        need = Counter(problem.shapes[i] for members in problem.members for i in members if i in problem.shapes)
        spare = Counter(problem.parameters.values())
        spare.subtract(need)
        self.spare_of = {shape: place for place, shape in enumerate(s for s, count in spare.items() if count)}
        self.spare = tuple(spare[shape] for shape in self.spare_of)
        self.largest = 1  # tensors that one skip can take
        self.cost: list[int] = []
        self.edges: list[tuple[int, int, int, _Label | None]] = []

    def _by_hand(self, group: int) -> bool:
        chosen = self.by_module or self.problem.by_hand
        return chosen and len(self.problem.members[group]) <= HAND_WRITTEN

    def _runs(self, group: int) -> list[tuple[int, ...]]:
        """The indices of a group that are taken in order: all of them, or in a group listed by hand those of a kind."""
        members = self.problem.members[group]
        if not self.by_hand[group]:
            return [members]
        kinds: dict[object, list[int]] = {}
        for index in members:
            kinds.setdefault(self.problem.equal(index), []).append(index)
        return [tuple(run) for run in kinds.values()]

    def run(self, root: _Part) -> tuple[int, Names] | None:
        problem = self.problem
        drops = len(problem.parameters) - sum(map(len, problem.members))
        start: _State = (self.full, (-1, -1), self.spare, drops)
        self.largest = max((len(part.names) for part in _parts(root) if self._fits(part)), default=1)
        self.cost.append(0)
        arrived: dict[_State, int] = {}
        self._visit(root, {start: 0}, arrived)
        ends = [node for state, node in arrived.items() if not any(map(any, state[0]))]
        if not ends:
            return None
        best = min(self.cost[node] for node in ends)
        return best, self._read(ends, best)

    def _read(self, ends: Sequence[int], best: int) -> Names:
        """The labels on every edge of a cheapest walk."""
        rest = dict.fromkeys(ends, 0)
        names: dict[int, dict[str, None]] = {}
        for one, other, cost, label in reversed(self.edges):
            if other not in rest:
                continue
            rest[one] = min(rest.get(one, best + 1), cost + rest[other])
            if label and self.cost[one] + cost + rest[other] == best:
                for index in label[0]:
                    names.setdefault(index, {})[label[1]] = None
        return {index: tuple(reversed(candidates)) for index, candidates in names.items()}

    def _visit(self, part: _Part, entry: Mapping[_State, int], into: dict[_State, int]) -> None:
        if not part.children:
            for state, node in entry.items():
                self._take(part, state, node, into)
            return
        done = (1 << len(part.children)) - 1
        level: dict[int, dict[_State, int]] = {0: dict(entry)}
        while level:  # the sets of children already visited, by size
            following: dict[int, dict[_State, int]] = {}
            for mask, states in level.items():
                for place, child in enumerate(part.children):
                    if mask >> place & 1 or part.after[place] & ~mask:
                        continue
                    reached = mask | 1 << place
                    target = into if reached == done else following.setdefault(reached, {})
                    self._skip(child, states, target)
                    self._visit(child, states, target)
            level = {mask: states for mask, states in following.items() if states}

    def _fits(self, part: _Part) -> bool:
        """True if a whole part may be skipped, as far as the number of tensors of each shape goes."""
        spare = self.spare
        places = self.spare_of
        return not part.names & self.problem.moved and all(
            shape in places and spare[places[shape]] >= count for shape, count in part.shapes.items()
        )

    def _skip(self, part: _Part, entry: Mapping[_State, int], into: dict[_State, int]) -> None:
        if not self._fits(part):
            return
        for (left, last, spare, drops), node in entry.items():
            remaining = list(spare)
            for shape, count in part.shapes.items():
                remaining[self.spare_of[shape]] -= count
            if drops >= len(part.names) and min(remaining) >= 0:
                self._link(node, (left, last, tuple(remaining), drops - len(part.names)), 1, None, into)

    def _take(self, part: _Part, state: _State, node: int, into: dict[_State, int]) -> None:
        (name,) = part.names
        shape, group_class = self.problem.parameters[name], self.classes[name]
        left, last, spare, drops = state
        for group, runs in enumerate(self.runs):
            switch = last[group_class] not in (-1, group)
            if switch and not self.by_module:
                continue
            counts = left[group]
            for run, members in enumerate(runs):
                if not counts[run] or not self._may_be(index := members[-counts[run]], name):
                    continue
                remaining = spare
                if index not in self.problem.shapes:
                    place = self.spare_of.get(shape)
                    if place is None or not spare[place]:
                        continue
                    remaining = (*spare[:place], spare[place] - 1, *spare[place + 1 :])
                taken = (*counts[:run], counts[run] - 1, *counts[run + 1 :])
                after = (*left[:group], taken, *left[group + 1 :])
                used = (group, last[1]) if group_class == 0 else (last[0], group)
                indices = members if self.by_hand[group] else (index,)
                self._link(node, (after, used, remaining, drops), int(switch), (indices, name), into)

    def _may_be(self, index: int, name: str) -> bool:
        problem = self.problem
        if problem.shapes.get(index, problem.parameters[name]) != problem.parameters[name]:
            return False
        return (index, name) not in problem.barred and not (index in problem.stateless and name in problem.moved)

    def _least(self, state: _State) -> int:
        """What the rest of a walk costs at least: to skip what must be skipped, and to come to groups not yet used."""
        left, last, _, drops = state
        unused = int(sum(map(eq, left, self.full)))
        free = last.count(-1) - self.idle_classes
        return -(-drops // self.largest) + max(0, unused - free)

    def _link(self, node: int, state: _State, cost: int, label: _Label | None, into: dict[_State, int]) -> None:
        total = self.cost[node] + cost
        if total > self.budget or total + self._least(state) > self.budget:
            return
        self.problem.steps += 1
        if self.problem.steps > MAX_STEPS:
            raise TooOpen("too many orders of the parameters fit")
        other = into.get(state)
        if other is None:
            other = into[state] = len(self.cost)
            self.cost.append(total)
        self.cost[other] = min(self.cost[other], total)
        self.edges.append((node, other, cost, label))
