"""TorchScript archives, as OpenAI published CLIP: the weights of the module tree. Its code is never looked at."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from fgclip_doctor.run import Source, Tensor
from fgclip_doctor.sources.pickles import Stub

MAX_DEPTH = 40  # of module names


def is_module(content: object) -> bool:
    """True for the root of what `torch.jit.save` wrote: an instance of a class that the archive brings with it."""
    return isinstance(content, Stub) and content.called and content.module.split(".")[0] == "__torch__"


def state_dict(root: Stub) -> dict[str, Tensor]:
    """The tensors by the name that `state_dict()` of the module gives them, in the order in which it was defined."""
    found: dict[str, Tensor] = {}
    waiting: list[tuple[tuple[str, ...], Stub]] = [((), root)]
    seen: set[int] = set()
    while waiting:
        place, module = waiting.pop()
        if id(module) in seen or len(place) > MAX_DEPTH or not isinstance(module.state, Mapping):
            continue
        seen.add(id(module))
        inner = []
        for key, value in module.state.items():
            if isinstance(value, Tensor):
                name = ".".join((*place, str(key)))
                found[name] = copy.copy(value)
                found[name].name, found[name].source = name, Source(value.source.path, name)
            elif isinstance(value, Stub) and is_module(value):
                inner.append(((*place, str(key)), value))
        waiting += reversed(inner)
    return found
