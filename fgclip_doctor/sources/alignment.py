"""Weights of one model under the names of another that wraps it, or that it wraps."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from fgclip_doctor.run import Tensor

MAX_NAME = 200  # characters; a longer name is nobody's, and its many parts would be slow to look up


def under_names_of(tensors: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """`tensors` with the prefix added or removed (``clip.``, ``module.model.``) that most of `names` agree on."""
    renamed = aligned(tensors, names)
    return {renamed[name]: tensor for name, tensor in tensors.items()}


def aligned(ours: Iterable[str], theirs: Iterable[str]) -> dict[str, str]:
    """Each of `ours` as it is called among `theirs`: with the prefix added or removed that most of them agree on."""
    ours, theirs = list(ours), set(theirs)
    added, removed = _prefixes(theirs, set(ours)), _prefixes(ours, theirs)
    prefix, matches = max(added.items(), key=lambda pair: pair[1], default=("", 0))
    other, others = max(removed.items(), key=lambda pair: pair[1], default=("", 0))
    if others > matches:
        return {name: name.removeprefix(other) for name in ours}
    return {name: prefix + name for name in ours}


def _prefixes(longer: Iterable[str], shorter: set[str]) -> Counter[str]:
    """How many of the names in `longer` are one of `shorter` behind each prefix; the empty one comes first."""
    counts = Counter({"": 0})
    for name in longer:
        if len(name) <= MAX_NAME:
            cuts = [0, *(match.end() for match in re.finditer(r"\.", name))]
            counts.update(name[:cut] for cut in cuts if name[cut:] in shorter)
    return counts
