"""Contrastive losses, seen where they are computed, in whatever code.

`cross_entropy`, `nll_loss`, `binary_cross_entropy_with_logits` and `logsigmoid` end in a few functions of torch's own
extension, which are looked up at each call however a training imported them. They are replaced by functions that call
the original and then look at what it was given: its result is untouched, and no random number is drawn. Inside a
region that `torch.compile` traces they step aside, so nothing is seen of a loss in there, and no graph breaks.
"""

from __future__ import annotations

import math
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

from fgclip_doctor.live.measured import Call

MAX_SITES = 64
MAX_CANDIDATES = 1 << 20  # columns; a wider matrix of logits is no contrastive one
MAX_STEPS = 16  # from the product of features back to where they were gathered
MAX_NODES = 256  # of an autograd graph, that are looked at behind one matrix of logits
PRODUCTS = ("MmBackward", "AddmmBackward", "BmmBackward", "BaddbmmBackward")
TRANSPOSES = ("TBackward", "TransposeBackward", "PermuteBackward", "NumpyTBackward", "MTBackward")
LIBRARIES = (str(Path(torch.__file__).parent), str(Path(__file__).parent))


Observe = Callable[[Call], None]
Known = Callable[[object], bool]  # whether a call on these logits tells nothing new


def watch(observe: Observe, known: Known) -> Callable[[], None]:
    """Report each call of a loss on a matrix of logits to `observe`, unless it is `known`. Returns what ends it."""
    extension: Any = torch._C._nn
    entropy, nll, binary = extension.cross_entropy_loss, extension.nll_loss_nd, torch.binary_cross_entropy_with_logits
    log_sigmoid, is_traced = F.logsigmoid, torch.compiler.is_dynamo_compiling

    def see(kind: str, logits: object, targets: object, ignored: object = -100) -> None:
        if not isinstance(logits, Tensor) or logits.dim() != 2:
            return
        if isinstance(logits, FakeTensor) or torch._C._get_tracing_state() is not None or logits.device.type == "meta":
            return
        if not 2 <= logits.shape[1] <= MAX_CANDIDATES or not logits.shape[0]:
            return
        targets = targets if isinstance(targets, Tensor) else None
        observe(Call(_place(), kind, logits, targets, ignored if isinstance(ignored, int) else -100))

    # In each of these `is_traced` is asked first of all, so that a compiler sees nothing of ours.

    def cross_entropy_loss(input: Any, target: Any, *rest: Any, **named: Any) -> Any:
        result = entropy(input, target, *rest, **named)
        if not is_traced() and not known(input):
            see("softmax", input, target, rest[2] if len(rest) > 2 else named.get("ignore_index", -100))
        return result

    def nll_loss_nd(input: Any, target: Any, *rest: Any, **named: Any) -> Any:
        result = nll(input, target, *rest, **named)
        if not is_traced() and not known(input):
            see("softmax", input, target)
        return result

    def binary_cross_entropy_with_logits(input: Any, target: Any, *rest: Any, **named: Any) -> Any:
        result = binary(input, target, *rest, **named)
        if not is_traced() and not known(input):
            see("sigmoid", input, target)
        return result

    def logsigmoid(input: Any) -> Any:
        result = log_sigmoid(input)
        if not is_traced() and not known(input):
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


@dataclass(frozen=True, slots=True)
class Reach:
    """Which sides of a matrix of logits carry a gradient to more than a scale."""

    anchors: bool
    columns: int
    reached: int  # columns whose candidates carry one


def reach(logits: Tensor) -> Reach | None:
    """Read off the autograd graph, which no device waits for; None where it shows no product of features."""
    pieces = _products(logits.grad_fn, len(logits), logits.shape[1], False, set())
    if not pieces:
        return None
    anchors = any(rows > 0 for rows, _, _ in pieces)
    return Reach(anchors, logits.shape[1], round(sum(share * width for _, share, width in pieces)))


def _products(node: Any, rows: int, width: int, turned: bool, seen: set[Any]) -> list[tuple[float, float, int]]:
    """Of each product of features behind `node`, (rows, width) or `turned`: the shares of its anchors and of its
    candidates that carry a gradient, and its columns."""
    if node is None or node in seen or len(seen) >= MAX_NODES:
        return []
    seen.add(node)
    inputs = [one for one, _ in node.next_functions]
    if node.name().startswith(PRODUCTS) and _numbers(node) == rows * width:
        anchors, candidates = (_carried(side) for side in (inputs[:-3:-1] if turned else inputs[-2:]))
        return [(anchors, candidates, width)]
    wide: list[tuple[Any, tuple[int, ...]]] = [(one, shape) for one in inputs if len(shape := _shape(one)) >= 2]
    if node.name().startswith("CatBackward"):
        return [
            piece for one, shape in wide for piece in _products(one, rows, shape[-2 if turned else -1], turned, seen)
        ]
    turned ^= node.name().startswith(TRANSPOSES) and len(_shape(node)) == 2
    return next((found for one, _ in wide if (found := _products(one, rows, width, turned, seen))), [])


def _carried(node: Any) -> float:
    """The share of a matrix of features behind which there is a parameter other than a scale."""
    size, start = _numbers(node), node
    for _ in range(MAX_STEPS):
        if node is None:
            return 0.0
        inputs = [one for one, _ in node.next_functions]
        if node.name().startswith("CatBackward") and len(_shape(node)) == 2:
            return sum(map(_learns, inputs)) / len(inputs)
        if "CopySlices" in node.name() and not _learns(inputs[0]):  # rows written into a matrix of constants
            return _numbers(inputs[-1]) / size * _learns(inputs[-1])
        node = next((one for one in inputs if one is not None and _numbers(one) == size), None)
        if node is None:
            break
    return float(_learns(start))


def _learns(node: Any) -> bool:
    """Whether a parameter of more than one number is behind a node."""
    seen: set[Any] = set()
    waiting = [node]
    while waiting and len(seen) < MAX_NODES:
        one = waiting.pop()
        if one is None or one in seen:
            continue
        seen.add(one)
        if one.name().endswith("AccumulateGrad") and one.variable.numel() > 1:
            return True
        waiting += [further for further, _ in one.next_functions]
    return bool(waiting)  # more than was looked at: a tower


def _shape(node: Any) -> tuple[int, ...]:
    """Of what a node computed."""
    known: list[Any] = list(getattr(node, "_input_metadata", ()))
    return tuple(int(length) for length in known[0].shape) if known else ()


def _numbers(node: Any) -> int:
    return math.prod(_shape(node)) if node is not None else 0


_KNOWN: dict[tuple[CodeType, int, CodeType | None, int], str] = {}


def _place() -> str:
    """The file and line that computed the loss, and the line that called for it: ``losses.py:12 < train.py:88``."""
    inner = outside(sys._getframe(2))
    outer = outside(inner.f_back) if inner else None
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


def outside(frame: FrameType | None) -> FrameType | None:
    """The first frame from `frame` outwards that is neither torch's nor ours."""
    while frame is not None and frame.f_code.co_filename.startswith(LIBRARIES):
        frame = frame.f_back
    return frame
