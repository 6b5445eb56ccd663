"""A training whose parameters are sharded over the ranks of torchrun, as FSDP does it: each rank holds a part of each.

python sharded.py [--fault detached]
"""

from __future__ import annotations

import argparse
import time

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F


class Towers(nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.scale = nn.Parameter(torch.tensor([2.3]))  # all of it is on the first rank
        self.image, self.text, self.region = nn.Linear(16, 8), nn.Linear(16, 8), nn.Linear(16, 8)

    def forward(self, images: Tensor, texts: Tensor) -> Tensor:
        regions = self.region(images).detach() if self.fault == "detached" else self.region(images)
        texts = F.normalize(self.text(texts), dim=-1)
        labels = torch.arange(len(images))
        return sum(
            (
                F.cross_entropy(self.scale.exp() * F.normalize(one, dim=-1) @ texts.T, labels)
                for one in (self.image(images), regions)
            ),
            torch.zeros(()),
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fault", default="")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = Towers(parser.parse_args().fault)
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    torch.manual_seed(1 + dist.get_rank())
    for _ in range(24):
        optimizer.zero_grad()
        images = torch.randn(8, 16)
        model(images, images + 0.1).backward()
        optimizer.step()
    dist.barrier()
    time.sleep(0.1)  # as in plain.py
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
