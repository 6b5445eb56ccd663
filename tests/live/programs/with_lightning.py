"""A training with Lightning, in which no loss reaches one layer. Usage: with_lightning.py DIRECTORY"""

import sys

import torch
from lightning import pytorch as pl
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from fgclip_doctor import LightningDoctor


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.text, self.unused = nn.Linear(16, 8), nn.Linear(16, 8), nn.Linear(8, 8)

    def training_step(self, batch: Tensor, _: int) -> Tensor:
        logits = 10 * F.normalize(self.image(batch), dim=-1) @ F.normalize(self.text(batch), dim=-1).T
        return F.cross_entropy(logits, torch.arange(len(batch)))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


trainer = pl.Trainer(
    max_steps=25,
    accumulate_grad_batches=2,
    accelerator="cpu",
    callbacks=[LightningDoctor(sys.argv[1])],
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(Module(), DataLoader(torch.randn(512, 16), batch_size=8))  # type: ignore[arg-type]
