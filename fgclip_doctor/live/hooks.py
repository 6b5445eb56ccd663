"""Functions of torch with ours around them, taken off again at the end."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

Function = Callable[..., Any]
Wrap = Callable[[Function], Function]


class Hooks:
    """Whatever goes wrong in a guarded hook ends the watching with one line, and the training goes on."""

    def __init__(self, failed: Callable[[Exception], None]) -> None:
        """`failed` is told of the error that ends the watching."""
        self.failed = failed
        self.off = False
        self.spent = 0.0  # seconds of our own, in hooks that have returned
        self.since: float | None = None  # when the one under way began
        self.undo: list[Callable[[], object]] = []

    def guard(self, hook: Callable[..., None]) -> Callable[..., None]:
        """`hook`, timed, never inside a compiled region, and the end of watching if it fails."""
        is_compiling = torch.compiler.is_compiling

        @functools.wraps(hook)
        def guarded(*args: Any, **kwargs: Any) -> None:
            if self.off or is_compiling():
                return
            outermost = self.since is None
            began = time.perf_counter()
            self.since = began if outermost else self.since
            try:
                hook(*args, **kwargs)
            except Exception as error:  # noqa: BLE001 - a fault of ours must never become one of the training
                self.fail(error)
            if outermost:
                self.since = None
                self.spent += time.perf_counter() - began

        return guarded

    @property
    def so_far(self) -> float:
        """Seconds of our own, those of the hook under way included."""
        return self.spent + (time.perf_counter() - self.since if self.since is not None else 0.0)

    def patch(self, owner: Any, name: str, wrap: Wrap) -> None:
        """Put a function around one of torch's own, until watching ends."""
        original = owner.__dict__[name] if isinstance(owner, type) else getattr(owner, name)
        ours = functools.wraps(original)(wrap(original))
        setattr(owner, name, ours)

        def undo() -> None:
            if getattr(owner, name) is ours:
                setattr(owner, name, original)

        self.undo.append(undo)

    def patch_inherited(self, owner: type, name: str, wrap: Wrap) -> None:
        """Give a class a static method of its own before the one that it inherits, already bound to it."""
        ours = staticmethod(wrap(getattr(owner, name)))
        setattr(owner, name, ours)
        self.undo.append(lambda: delattr(owner, name) if owner.__dict__.get(name) is ours else None)

    def fail(self, error: Exception) -> None:
        """Say what ended the watching, and take everything off."""
        if self.off:
            return
        self.remove()
        text = f"{type(error).__name__}: {error}".replace("\n", " ")
        print(f"fgclip-doctor: watching stopped, the training goes on ({text})", file=sys.stderr, flush=True)
        with suppress(Exception):  # as on a full disk: the line above has said it
            self.failed(error)

    def remove(self) -> None:
        self.off = True
        for undo in reversed(self.undo):
            undo()
        self.undo.clear()
