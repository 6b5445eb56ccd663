"""An ordinary fine-tuning with transformers' Trainer, as `tests/real/trainer_run.py` has it, started from a shell.

python with_trainer.py DIRECTORY [FAULT]
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.real.trainer_run import Recipe, train

torch.set_num_threads(1)
fault = sys.argv[2] if len(sys.argv) > 2 else ""
train(
    Path(sys.argv[1]),
    None,
    Recipe(fault=fault, steps=50, save_steps=50, micro_batch=8, accumulation=2, bank_size=64, bank_warmup=20),
)
