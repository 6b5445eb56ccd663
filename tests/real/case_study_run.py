"""Makes a checkpoint in the layout of the case study: an FG-CLIP in bf16 whose memory bank nothing ever enables.

A plain torch loop over transformers' CLIPModel with the parts that FG-CLIP adds, under the names of real checkpoints.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import CLIPConfig, CLIPModel

from tests.real.trainer_run import GRID, Scenes, contrastive

STEPS, MICRO_BATCH, ACCUMULATION, BANK, BANK_WARMUP = 24, 4, 8, 128, 10
LEARNING_RATE = 5e-6
SCRATCH_SCALE = 2.6592  # ln(1 / 0.07), CLIP's start from scratch; the base rests at ln 100


class FgClip(CLIPModel):
    """CLIP with a region head, a head for long texts, three scales and the buffers of a bank that stays off."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__(config)
        width = config.projection_dim
        self.roi_projection = nn.Linear(config.vision_config.hidden_size, width, bias=False)
        self.text_filip_projection = nn.Linear(config.text_config.hidden_size, width, bias=False)
        self.logit_scale_finegraind = nn.Parameter(torch.zeros(()))
        self.logit_scale_hardneg = nn.Parameter(torch.zeros(()))
        self.register_buffer("region_image_queue", F.normalize(torch.randn(width, BANK), dim=0))
        self.register_buffer("region_text_queue", F.normalize(torch.randn(width, BANK), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))
        self.register_buffer("queue_is_full", torch.zeros(1, dtype=torch.bool))
        self.register_buffer("training_steps", torch.zeros(1, dtype=torch.long))

    def start_from(self, base: Path) -> None:
        self.load_state_dict(CLIPModel.from_pretrained(base).state_dict(), strict=False)
        self.roi_projection.load_state_dict(self.visual_projection.state_dict())
        self.text_filip_projection.load_state_dict(self.text_projection.state_dict())
        for scale in (self.logit_scale, self.logit_scale_finegraind, self.logit_scale_hardneg):
            scale.data.fill_(SCRATCH_SCALE)

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        self.training_steps += 1
        side = batch["region_side"]
        seen = self.vision_model(pixel_values=batch["pixel_values"].bfloat16())
        halves = seen.last_hidden_state[:, 1:].unflatten(1, (GRID, 2, GRID // 2)).mean(dim=(1, 3))  # (B, 2, width)
        pooled = self.vision_model.post_layernorm(halves[torch.arange(len(side)), side])
        image = F.normalize(self.visual_projection(seen.pooler_output), dim=-1)
        region = F.normalize(self.roi_projection(pooled), dim=-1)
        long = self.text_filip_projection(self.text_model(input_ids=batch["input_ids"]).pooler_output)
        short = self.text_projection(self.text_model(input_ids=batch["region_ids"]).pooler_output)
        long, short = F.normalize(long, dim=-1), F.normalize(short, dim=-1)
        return {
            "loss_global": contrastive(image, long, self.logit_scale),
            "loss_region": contrastive(region, short, self.logit_scale_finegraind),
            "loss_hard": contrastive(short, region, self.logit_scale_hardneg),
        }


def make_checkpoint(path: Path, base: Path) -> None:
    torch.manual_seed(0)
    model = FgClip(CLIPConfig.from_pretrained(base))
    model.start_from(base)
    model.to(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    batches = iter(DataLoader(Scenes(STEPS * ACCUMULATION * MICRO_BATCH, seed=5), batch_size=MICRO_BATCH))
    history = []
    for step in range(1, STEPS + 1):
        means: dict[str, float] = {}
        for _ in range(ACCUMULATION):
            terms = model.losses(next(batches))
            (torch.stack(list(terms.values())).sum() / ACCUMULATION).backward()
            for name, term in terms.items():
                means[name] = means.get(name, 0.0) + term.item() / ACCUMULATION
        optimizer.step()
        optimizer.zero_grad()
        history.append({**means, "loss": sum(means.values()), "learning_rate": LEARNING_RATE, "step": step})
    model.config.update({"memory_bank_size": BANK, "memory_bank_warmup_steps": BANK_WARMUP})
    model.config.save_pretrained(path)
    torch.save(model.state_dict(), path / "pytorch_model.bin")
    torch.save(optimizer.state_dict(), path / "optimizer.pt")
    state = {"global_step": STEPS, "max_steps": STEPS, "train_batch_size": MICRO_BATCH, "log_history": history}
    (path / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
