"""A step of the small CLIP, for tools that take a whole script: what it costs alone, and as they run it.

export PYTHONPATH=benchmarks
python benchmarks/watch_peers.py
traincheck-collect --pyscript benchmarks/watch_peers.py --models-to-track model --output-dir traces
"""

import time

import torch
from watch_overhead import Clip

STEPS = 3

torch.set_num_threads(1)
torch.manual_seed(0)
model = Clip(tiny=True)
images, texts = torch.randn(4, 3, 32, 32), torch.randint(1, 49407, (4, 77))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)


def step() -> None:
    optimizer.zero_grad()
    model(images, texts).backward()
    optimizer.step()


step()
began = time.process_time()
for _ in range(STEPS):
    step()
print(f"{1000 * (time.process_time() - began) / STEPS:.0f} ms of the processor a step")
