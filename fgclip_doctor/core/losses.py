"""The contrastive losses. Each comes with the number of candidates, without which its value means nothing.

Anchors and candidates are those of every rank. A rank computes the rows of its own anchors, and weighs them so that the
mean over ranks, which is what `DistributedDataParallel` takes of the gradients, is the mean over all anchors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from fgclip_doctor.core.ranks import gathered, rank, row_counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One named term of the loss. Its tensors are scalars, and `loss` is not yet weighted."""

    loss: Tensor
    anchors: int  # rows of the logits, on all ranks
    candidates: Tensor  # per anchor, the positive included; on average, where a mask makes them differ
    accuracy: Tensor  # share of the anchors whose positive has the largest logit
    margin: Tensor  # of the positive logit over the mean of its row, in nats
    weight: float


def total(terms: Mapping[str, Term]) -> Tensor:
    """The weighted sum that is minimised."""
    return torch.stack([term.weight * term.loss for term in terms.values()]).sum()


def info_nce(logits: Tensor, targets: Tensor, weight: float) -> Term:
    """Cross-entropy over the rows of `logits` (anchors, candidates), where `-inf` is no candidate.

    Without anchors the loss is a zero that still has a gradient, so that no rank waits for another.
    """
    if not len(logits):
        nothing = torch.zeros((), device=logits.device)
        return Term(loss=logits.sum(), anchors=0, candidates=nothing, accuracy=nothing, margin=nothing, weight=weight)
    loss = F.cross_entropy(logits, targets)
    with torch.no_grad():
        usable = logits > -torch.inf  # (anchors, candidates)
        candidates = usable.sum(1)  # (anchors,)
        positive = logits.gather(1, targets[:, None])[:, 0]  # (anchors,)
        row_mean = logits.masked_fill(~usable, 0).sum(1) / candidates  # (anchors,)
        accuracy = (logits.argmax(1) == targets).float().mean()
        margin = (positive - row_mean).mean()
    return Term(
        loss=loss,
        anchors=len(logits),
        candidates=candidates.float().mean(),
        accuracy=accuracy,
        margin=margin,
        weight=weight,
    )


def mean_of(first: Term, second: Term) -> Term:
    """The mean of the two directions of a symmetric loss."""
    return Term(
        loss=(first.loss + second.loss) / 2,
        anchors=first.anchors,
        candidates=(first.candidates + second.candidates) / 2,
        accuracy=(first.accuracy + second.accuracy) / 2,
        margin=(first.margin + second.margin) / 2,
        weight=first.weight,
    )


def joined(term: Term, counts: list[int]) -> Term:
    """The term of all ranks, of whose anchors each has `counts`: the mean over ranks of every value is exactly that."""
    if len(counts) == 1:
        return term
    share = len(counts) * term.anchors / max(sum(counts), 1)
    return replace(
        term,
        loss=term.loss * share,
        anchors=sum(counts),
        candidates=term.candidates * share,
        accuracy=term.accuracy * share,
        margin=term.margin * share,
    )


def global_loss(image_features: Tensor, text_features: Tensor, scale: Tensor, weight: float) -> Term:
    """Images against texts (B, D), both ways, over the samples of every rank."""
    counts = row_counts(len(image_features))
    all_images, all_texts = gathered(image_features, counts), gathered(text_features, counts)  # (N, D) each
    image_to_text = scale * image_features @ all_texts.T  # (B, N)
    text_to_image = scale * text_features @ all_images.T  # (B, N)
    targets = own_columns(image_to_text, counts)
    return joined(mean_of(info_nce(image_to_text, targets, weight), info_nce(text_to_image, targets, weight)), counts)


def region_loss(
    region_features: Tensor,
    text_features: Tensor,
    scale: Tensor,
    weight: float,
    bank: tuple[Tensor, Tensor, Tensor] | None,
) -> Term:
    """Regions against their captions (R, D), both ways, over the regions of every rank and, where given, the bank."""
    counts = row_counts(len(region_features))
    all_regions, all_texts = gathered(region_features, counts), gathered(text_features, counts)  # (N, D) each
    region_to_text = scale * region_features @ all_texts.T  # (R, N)
    text_to_region = scale * text_features @ all_regions.T  # (R, N)
    if bank is not None:
        image_keys, text_keys, usable = bank  # (D, K), (D, K), (R, K)
        old_texts = (scale * region_features @ text_keys).masked_fill(~usable, -torch.inf)  # (R, K)
        old_regions = (scale * text_features @ image_keys).masked_fill(~usable, -torch.inf)  # (R, K)
        region_to_text = torch.cat([region_to_text, old_texts], dim=1)  # (R, N + K)
        text_to_region = torch.cat([text_to_region, old_regions], dim=1)  # (R, N + K)
    targets = own_columns(region_to_text, counts)
    return joined(mean_of(info_nce(region_to_text, targets, weight), info_nce(text_to_region, targets, weight)), counts)


def own_columns(logits: Tensor, counts: list[int]) -> Tensor:
    """Where the positives of this rank's anchors stand among the candidates of all ranks, (R,)."""
    return sum(counts[: rank()]) + torch.arange(len(logits), device=logits.device)


def hard_loss(region_features: Tensor, text_features: Tensor, scale: Tensor, weight: float) -> Term:
    """Regions (H, D) against their own caption, which comes first, and its ten hard negatives, (H, 11, D)."""
    logits = scale * torch.einsum("hd,hcd->hc", region_features, text_features)  # (H, 11)
    targets = torch.zeros(len(logits), dtype=torch.long, device=logits.device)  # (H,)
    return joined(info_nce(logits, targets, weight), row_counts(len(logits)))
