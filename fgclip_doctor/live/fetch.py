"""Values from the device, once they are there: nothing waits for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

MAX_PENDING = 64  # bundles under way; a device that lags further behind loses the oldest


def together(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """The same on one device, as a model in parts has them on several: an accelerator's, for which the host needn't
    wait."""
    if len({one.device for one in tensors}) < 2:
        return tensors
    device = next(one.device for one in tensors if one.device.type != "cpu")
    return [one.to(device, non_blocking=True) for one in tensors]


class Fetcher:
    """Takes tensors on a device and hands them out when their copy has arrived.

    On the CPU that is at once. On a GPU the copy goes to pinned memory behind the kernels that compute the values, and
    an event tells when it is there; asking the event doesn't synchronise.
    """

    def __init__(self) -> None:
        self.pending: deque[tuple[list[Tensor], torch.cuda.Event, Callable[[list[Tensor]], None]]] = deque()
        self.lost = 0

    def take(self, scalars: Tensor | Sequence[Tensor], arrived: Callable[[list[float]], None]) -> None:
        """`scalars`: a vector, or 0-d tensors. `arrived` gets their values, now or in a later `poll`."""
        if not len(scalars):
            return
        exact = torch.float32 if scalars[0].device.type == "mps" else torch.float64
        if not isinstance(scalars, Tensor):
            scalars = together(scalars)
            alike = len({scalar.dtype for scalar in scalars}) == 1  # else each is converted by a kernel of its own
            with torch.no_grad():
                scalars = torch.stack([*scalars] if alike else [one.to(exact) for one in scalars])  # (values,)
        self.copy([scalars.to(exact)], lambda copies: arrived(copies[0].tolist()))

    def copy(self, values: Sequence[Tensor], arrived: Callable[[list[Tensor]], None]) -> None:
        """`arrived` is called with copies of `values`, which are on one device, on the host."""
        device = values[0].device.type
        if device != "cuda":
            arrived([one if device == "cpu" else one.cpu() for one in values])  # used up before it returns
            return
        hosts = [torch.empty(one.shape, dtype=one.dtype, pin_memory=True) for one in values]
        for host, one in zip(hosts, values, strict=True):
            host.copy_(one, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(values[0].device))  # of a model in parts, not the current device's
        self.pending.append((hosts, event, arrived))
        if len(self.pending) > MAX_PENDING:
            self.pending.popleft()
            self.lost += 1

    def poll(self, *, wait: bool = False) -> None:
        """Hand out what has arrived, in order; `wait` is for the end of a run alone."""
        while self.pending:
            hosts, event, arrived = self.pending[0]
            if not event.query():  # type: ignore[no-untyped-call]
                if not wait:
                    return
                event.synchronize()
            self.pending.popleft()
            arrived(hosts)
