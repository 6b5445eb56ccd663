"""A training in plain PyTorch that records itself: three lines more than without."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fgclip_doctor


class TwoTowers(nn.Module):
    """The smallest model with a contrastive loss."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.visual_projection = nn.Linear(64, width, bias=False)
        self.text_projection = nn.Linear(64, width, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))  # ln(1 / 0.07)

    def forward(self, images: Tensor, texts: Tensor) -> Tensor:
        image_features = F.normalize(self.visual_projection(images), dim=-1)  # (B, width)
        text_features = F.normalize(self.text_projection(texts), dim=-1)  # (B, width)
        logits = self.logit_scale.exp() * image_features @ text_features.T  # (B, B)
        labels = torch.arange(len(images), device=images.device)
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def main(directory: str = "runs/example", steps: int = 200) -> None:
    torch.manual_seed(0)
    model = TwoTowers()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with fgclip_doctor.watching(model, optimizer, directory):
        for _ in range(steps):
            images = torch.randn(32, 64)
            loss = model(images, images + 0.5 * torch.randn(32, 64))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    print(f"now: fgclip-doctor audit {directory}")


if __name__ == "__main__":
    main()
