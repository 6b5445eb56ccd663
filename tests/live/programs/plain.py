"""A training in plain PyTorch that has never heard of the doctor: two towers, a branch for crops, a queue of negatives.

    python plain.py [--fault queue_off|detached|warmup_clock|eval_mode] [--out FILE]

`--out` takes every loss and the final weights. Under torchrun, each rank trains on its own pairs; with the fault
`own_queues` each fills its queue with what it alone has seen, with `same_pairs` all train on the pairs of the first.
"""

from __future__ import annotations

import argparse
import math
import os
import time

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

KINDS, SIZE, WIDTH, EMBED, BATCH, ROWS = 64, 24, 48, 32, 8, 64


def tower() -> nn.Module:
    return nn.Sequential(nn.Linear(SIZE, WIDTH), nn.GELU(), nn.Dropout(0.05), nn.Linear(WIDTH, WIDTH), nn.GELU())


class Negatives(nn.Module):
    """The features of the last ROWS crops and of their phrases."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("crops", F.normalize(torch.randn(ROWS, EMBED), dim=-1))
        self.register_buffer("phrases", F.normalize(torch.randn(ROWS, EMBED), dim=-1))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.long))
        self.register_buffer("wrapped", torch.zeros((), dtype=torch.bool))

    def push(self, crops: Tensor, phrases: Tensor) -> None:
        start = int(self.cursor)
        places = (start + torch.arange(len(crops))) % ROWS
        self.crops[places], self.phrases[places] = crops, phrases
        self.wrapped |= start + len(crops) >= ROWS
        self.cursor.fill_((start + len(crops)) % ROWS)

    def known(self) -> int:
        return ROWS if self.wrapped else int(self.cursor)


class Matcher(nn.Module):
    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__()
        self.options = options
        self.look, self.read = tower(), tower()
        self.look_out, self.crop_out, self.read_out = (nn.Linear(WIDTH, EMBED, bias=False) for _ in range(3))
        self.sharpness = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.crop_sharpness = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.queue = Negatives()
        self.calls = 0
        self.updates = 0

    def matching(self, one: Tensor, other: Tensor, sharpness: Tensor) -> Tensor:
        return F.cross_entropy(sharpness.exp() * one @ other.T, torch.arange(len(one)))

    def forward(self, pictures: Tensor, sentences: Tensor, crops: Tensor, phrases: Tensor) -> Tensor:
        fault = self.options.fault
        a, b = (
            F.normalize(out(body(x)), dim=-1)  # (B, EMBED)
            for out, body, x in ((self.look_out, self.look, pictures), (self.read_out, self.read, sentences))
        )
        loss = (self.matching(a, b, self.sharpness) + self.matching(b, a, self.sharpness)) / 2
        weight = self.crop_out.weight.detach() if fault == "detached" else self.crop_out.weight
        c = F.normalize(F.linear(self.look(crops), weight), dim=-1)
        d = F.normalize(self.read_out(self.read(phrases)), dim=-1)
        self.calls += 1
        clock = self.calls if fault == "warmup_clock" else self.updates
        queued_c, queued_d = c, d
        if fault != "queue_off" and clock > self.options.queue_warmup_steps:
            known = self.queue.known()
            queued_c = torch.cat([c, self.queue.crops[:known].clone()])
            queued_d = torch.cat([d, self.queue.phrases[:known].clone()])
            self.remember(c.detach(), d.detach())
        crop_loss = self.matching(c, queued_d, self.crop_sharpness) + self.matching(d, queued_c, self.crop_sharpness)
        return loss + crop_loss / 2

    @torch.no_grad()
    def remember(self, crops: Tensor, phrases: Tensor) -> None:
        if dist.is_initialized() and self.options.fault != "own_queues":
            for name, mine in (("crops", crops), ("phrases", phrases)):
                everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
                dist.all_gather(everyone, mine)
                crops, phrases = (torch.cat(everyone), phrases) if name == "crops" else (crops, torch.cat(everyone))
        self.queue.push(crops, phrases)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fault", default="")
    parser.add_argument("--updates", type=int, default=50)
    parser.add_argument("--accumulation-steps", type=int, default=4)
    parser.add_argument("--queue-warmup-steps", type=int, default=20)
    parser.add_argument("--save-every", type=int, default=0)
    parser.add_argument("--out", default="")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1:
        dist.init_process_group("gloo")
    rank = dist.get_rank() if ranks > 1 else 0
    torch.manual_seed(0)
    model = Matcher(options)
    mixing = torch.randn(2, SIZE, SIZE)
    torch.manual_seed(1 + (rank if options.fault != "same_pairs" else 0))
    model.train(options.fault != "eval_mode")
    called = DistributedDataParallel(model, forward_sync_buffers=False) if ranks > 1 else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 5))
    losses = []
    for update in range(options.updates):
        model.updates = update
        optimizer.zero_grad()
        for _ in range(options.accumulation_steps):
            meaning = torch.randn(2, BATCH, SIZE)
            pictures, crops = meaning @ mixing[0]
            sentences, phrases = meaning @ mixing[1]
            loss = called(pictures, sentences, crops, phrases) / options.accumulation_steps
            loss.backward()
            losses.append(loss.detach())
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        model.sharpness.data.clamp_(max=math.log(100))
        model.crop_sharpness.data.clamp_(max=math.log(100))
        if options.save_every and (update + 1) % options.save_every == 0:
            torch.save(model.state_dict(), "saved.pt")
    if options.out:
        torch.save({"losses": torch.stack(losses), "model": model.state_dict()}, f"{options.out}.{rank}")
    if ranks > 1:
        dist.barrier()
        time.sleep(0.1)  # destroying a group of gloo right after a backward pass can hang or abort, watched or not
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
