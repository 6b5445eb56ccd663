"""Contrastive losses, seen where they are computed, in whatever code.

`cross_entropy`, `nll_loss`, `binary_cross_entropy_with_logits` and `logsigmoid` end in a few functions of torch's own
extension, which are looked up at each call however a training imported them. They are replaced by functions that call
the original and then look at what it was given: its result is untouched, and no random number is drawn. Inside a
region that `torch.compile` traces they step aside, so nothing is seen of a loss in there, and no graph breaks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

MAX_SITES = 64
MAX_CANDIDATES = 1 << 20  # columns; a wider matrix of logits is no contrastive one
MEASURED = ("anchors", "candidates", "loss", "null", "top1", "first", "last", "lowest", "highest")
LIBRARIES = (str(Path(torch.__file__).parent), str(Path(__file__).parent))


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a loss: where, of which kind, and what it was given."""

    site: str
    kind: str  # "softmax" or "sigmoid"
    logits: Tensor  # (anchors, candidates)
    targets: Tensor | None  # (anchors,), or for a sigmoid loss (anchors, candidates) or None
    ignored: int


Observe = Callable[[Call], None]


def watch(observe: Observe) -> Callable[[], None]:
    """Report every call of a loss on a matrix of logits to `observe`. Returns what ends it."""
    extension: Any = torch._C._nn
    entropy, nll, binary = extension.cross_entropy_loss, extension.nll_loss_nd, torch.binary_cross_entropy_with_logits
    log_sigmoid = F.logsigmoid

    def see(kind: str, logits: object, targets: object, ignored: int = -100) -> None:
        if not isinstance(logits, Tensor) or logits.dim() != 2 or torch.compiler.is_compiling():
            return
        if isinstance(logits, FakeTensor) or torch._C._get_tracing_state() is not None or logits.device.type == "meta":
            return
        if not 2 <= logits.shape[1] <= MAX_CANDIDATES or not logits.shape[0]:
            return
        observe(Call(_place(), kind, logits, targets if isinstance(targets, Tensor) else None, ignored))

    def cross_entropy_loss(input: Any, target: Any, *rest: Any, **named: Any) -> Any:
        result = entropy(input, target, *rest, **named)
        ignored = rest[2] if len(rest) > 2 else named.get("ignore_index", -100)
        see("softmax", input, target, ignored if isinstance(ignored, int) else -100)
        return result

    def nll_loss_nd(input: Any, target: Any, *rest: Any, **named: Any) -> Any:
        result = nll(input, target, *rest, **named)
        see("softmax", input, target)
        return result

    def binary_cross_entropy_with_logits(input: Any, target: Any, *rest: Any, **named: Any) -> Any:
        result = binary(input, target, *rest, **named)
        see("sigmoid", input, target)
        return result

    def logsigmoid(input: Any) -> Any:
        result = log_sigmoid(input)
        see("sigmoid", input, None)
        return result

    originals = [
        (extension, "cross_entropy_loss", entropy, cross_entropy_loss),
        (extension, "nll_loss_nd", nll, nll_loss_nd),
        (torch, "binary_cross_entropy_with_logits", binary, binary_cross_entropy_with_logits),
        (F, "logsigmoid", log_sigmoid, logsigmoid),
    ]
    for owner, name, _, ours in originals:
        setattr(owner, name, ours)

    def end() -> None:
        for owner, name, original, ours in originals:
            if getattr(owner, name) is ours:  # somebody may have replaced it after us, and then keeps ours alive
                setattr(owner, name, original)

    return end


def measure(call: Call) -> list[Tensor] | None:
    """0-d tensors in the order of `MEASURED`; None where the targets are no indices, as soft ones aren't."""
    with torch.no_grad():
        if call.kind == "sigmoid":
            return _sigmoid(call)
        targets = call.targets
        if targets is None or targets.dim() != 1 or targets.is_floating_point():
            return None
        logits = call.logits.detach().float()  # (anchors, candidates)
        kept = targets != call.ignored
        allowed = logits > torch.finfo(torch.float32).min / 2  # masked out where -inf or as good as that
        columns = targets.clamp(0, logits.shape[1] - 1)
        row = torch.logsumexp(logits, dim=1)
        counts = allowed.sum(dim=1).clamp(min=1)
        level = logits.where(allowed, logits.new_zeros(())).sum(dim=1) / counts
        positive = logits.gather(1, columns[:, None]).squeeze(1)
        place = columns - torch.arange(len(columns), device=columns.device)
        share = kept.float() / kept.sum().clamp(min=1)
        return [
            kept.sum(),
            (counts * share).sum(),
            ((row - positive) * share).sum(),
            ((row - level) * share).sum(),
            ((logits.argmax(dim=1) == columns) * share).sum(),
            place.min(),
            place.max(),
            columns.min(),
            columns.max(),
        ]


def _sigmoid(call: Call) -> list[Tensor] | None:
    """Of ``label * logit``, or of logits with a matrix of targets. The positives are taken to be the diagonal."""
    given = call.logits.detach().float()  # (anchors, candidates)
    if given.shape[0] > given.shape[1]:
        return None
    positives = torch.eye(*given.shape, device=given.device, dtype=torch.bool)
    diagonal = given.new_zeros(())
    if call.targets is None:
        logits = torch.where(positives, given, -given)
    else:
        if call.targets.shape != given.shape:
            return None
        logits = given
        diagonal = ((call.targets > 0.5) != positives).any().to(given.dtype)  # 0: the diagonal it is
    signed = torch.where(positives, logits, -logits)
    others = (logits * ~positives).sum(dim=1) / (given.shape[1] - 1)  # the mean negative of each row
    mean_instead = torch.where(positives, others[:, None], -logits)
    anchors, candidates = (given.new_tensor(float(length)) for length in given.shape)
    return [
        anchors,
        candidates,
        F.softplus(-signed).sum() / anchors,
        F.softplus(-mean_instead).sum() / anchors,
        (logits.argmax(dim=1) == torch.arange(len(given), device=given.device)).float().mean(),
        diagonal,
        diagonal,
        given.new_zeros(()),
        anchors - 1,
    ]


_KNOWN: dict[tuple[CodeType, int, CodeType | None, int], str] = {}


def _place() -> str:
    """The file and line that computed the loss, and the line that called for it: ``losses.py:12 < train.py:88``."""
    inner = _outside(sys._getframe(2))
    outer = _outside(inner.f_back) if inner else None
    if inner is None:
        return "?"
    key = (inner.f_code, inner.f_lineno, outer.f_code if outer else None, outer.f_lineno if outer else 0)
    if key not in _KNOWN:
        if len(_KNOWN) > MAX_SITES:
            return "?"
        _KNOWN[key] = " < ".join(
            f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}" for frame in (inner, outer) if frame is not None
        )
    return _KNOWN[key]


def _outside(frame: FrameType | None) -> FrameType | None:
    """The first frame from `frame` outwards that is neither torch's nor ours."""
    while frame is not None and frame.f_code.co_filename.startswith(LIBRARIES):
        frame = frame.f_back
    return frame
