"""One run on several devices. Without `torchrun`, all of it is the identity."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from fgclip_doctor.core.ranks import world_size

SETTLING = 0.1  # seconds in which gloo's threads free the last backward pass, lest a process that ends hangs or aborts


@contextmanager
def torchrun() -> Iterator[None]:
    """Joins the ranks that torchrun started, each with the device of its local rank. One inside another does nothing.

    After an error nothing is tidied up, for that could wait for other ranks, and torchrun ends those.
    """
    launched = distributed.is_available() and distributed.is_torchelastic_launched()
    if not launched or distributed.is_initialized():
        yield
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    yield
    time.sleep(SETTLING)
    distributed.destroy_process_group()


def replicated(model: nn.Module, *, find_unused: bool) -> nn.Module:
    """What to call instead of the model, so that every rank gets the mean of the gradients.

    Ranks without regions still have zero gradients for all that regions train, so no parameter goes unused unless it is
    cut off on purpose. Buffers stay as they are: every rank holds the same bank.
    """
    if world_size() == 1:
        return model
    with warnings.catch_warnings(
        action="ignore", category=FutureWarning
    ):  # older torch lacks the new name of the first
        return DistributedDataParallel(model, broadcast_buffers=False, find_unused_parameters=find_unused)


def exchange(model: nn.Module, *, now: bool) -> AbstractContextManager[None]:
    """Around forward and backward pass: whether gradients are exchanged, or stay here until a later pass does it."""
    if isinstance(model, DistributedDataParallel) and not now:
        return model.no_sync()
    return nullcontext()


def averaged(values: Mapping[str, float]) -> dict[str, float]:
    """The mean over ranks of every value; all ranks name the same ones in the same order."""
    if world_size() == 1:
        return dict(values)
    joined = torch.tensor(list(values.values()), dtype=torch.float64)
    distributed.all_reduce(joined)
    return dict(zip(values, (joined / world_size()).tolist(), strict=True))
