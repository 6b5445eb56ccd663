"""One step of FG-CLIP's second stage: ours beside a plain one, with the same weights and data.

    python benchmarks/train_step.py [--device cuda] [--preset b16] [--batch 64] [--compile] [--checkpointing] [--alone]

Forward, backward and AdamW; 4 regions and 44 texts for hard negatives an image, captions of realistic lengths. The
plain step does as the code released with FG-CLIP does: transformers' towers, texts padded to 248 and 77 tokens, every
text of every region encoded, patches projected and then sampled for the regions. In bf16 on a GPU, in fp32 on a CPU;
the two take turns, and medians count. Peak memory is that of a process of its own: allocated on a GPU, resident on a
CPU.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import resource
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fgclip_doctor.core.config import PRESETS, FgclipConfig, TextConfig, VisionConfig
from fgclip_doctor.core.losses import total
from fgclip_doctor.core.model import Batch, FgclipModel
from fgclip_doctor.training.data import Region, Sample, collate, pixels

SMALL = FgclipConfig(  # B/16 with a quarter of the width and a third of the depth: the same balance of the two towers
    vision_config=VisionConfig(
        hidden_size=192, intermediate_size=768, num_hidden_layers=4, num_attention_heads=3, patch_size=16
    ),
    text_config=TextConfig(hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=2),
    projection_dim=128,
)
REGIONS = 4
LONG, SHORT, REGION = (60, 150), (10, 20), (5, 12)  # tokens of a caption, with the two that begin and end it
ARTICLE = 320  # "a", in CLIP's vocabulary
Losses = dict[str, Tensor]


# --- data ----------------------------------------------------------------------------------------------------------


class Numbers:
    """A tokenizer for texts that are written as token ids."""

    def __init__(self, config: TextConfig) -> None:
        self.bos_token_id, self.eos_token_id = config.bos_token_id, config.eos_token_id

    def encode(self, text: str, *, long: bool = False) -> list[int]:
        return [self.bos_token_id, *map(int, text.split()), self.eos_token_id]


def samples(count: int, config: FgclipConfig) -> list[Sample]:
    """Random images and words. Of a caption, each hard negative changes a word or two, wherever they stand."""
    rng = random.Random(0)

    def word() -> int:
        return rng.randrange(ARTICLE + 1, config.text_config.bos_token_id)

    def caption(lengths: tuple[int, int]) -> list[int]:
        first = ARTICLE if rng.random() < 0.5 else word()
        return [first, *(word() for _ in range(rng.randint(*lengths) - 3))]

    def negative(tokens: list[int]) -> list[int]:
        changed = list(tokens)
        for at in rng.sample(range(len(tokens)), rng.choice((1, 2))):
            changed[at] = word()
        return changed

    def text(tokens: list[int]) -> str:
        return " ".join(map(str, tokens))

    def region() -> Region:
        left, right = sorted((rng.random(), rng.random()))
        top, bottom = sorted((rng.random(), rng.random()))
        tokens = caption(REGION)
        negatives = tuple(text(negative(tokens)) for _ in range(10))
        return Region(box=(left, top, right, bottom), caption=text(tokens), negatives=negatives)

    side = config.vision_config.image_size
    generator = torch.Generator().manual_seed(0)
    return [
        Sample(
            image=torch.randint(0, 256, (3, side, side), generator=generator, dtype=torch.uint8),
            long_caption=text(caption(LONG)),
            short_caption=text(caption(SHORT)),
            regions=tuple(region() for _ in range(REGIONS)),
        )
        for _ in range(count)
    ]


# --- the plain step ------------------------------------------------------------------------------------------------


class Plain(nn.Module):
    """FG-CLIP by the book, with the weights of ours."""

    def __init__(self, ours: FgclipModel, attention: str) -> None:
        from transformers import CLIPConfig, CLIPModel

        super().__init__()
        self.config = ours.config
        towers = self.config.to_dict()
        self.clip = CLIPModel(
            CLIPConfig(
                text_config={**towers["text_config"], "pad_token_id": self.config.text_config.eos_token_id},
                vision_config=towers["vision_config"],
                projection_dim=self.config.projection_dim,
                attn_implementation=attention,
            )
        )
        weights = ours.state_dict()
        self.clip.load_state_dict({name: weights[name] for name in self.clip.state_dict()})
        self.kept = nn.Parameter(weights["text_model.embeddings.position_embedding_ori.weight"].clone())
        self.stretched = nn.Parameter(weights["text_model.embeddings.position_embedding_res.weight"].clone())
        self.text_filip_projection = nn.Parameter(weights["text_filip_projection.weight"].clone())
        self.region_scale = nn.Parameter(weights["logit_scale_finegraind"].clone())
        self.hard_scale = nn.Parameter(weights["logit_scale_hardneg"].clone())

    def forward(
        self, images: Tensor, long_ids: Tensor, short_ids: Tensor, region_ids: Tensor, hard_ids: Tensor, boxes: Tensor
    ) -> Losses:
        seen = self.clip.vision_model(images, output_hidden_states=True)
        image_features = unit(self.clip.visual_projection(seen.pooler_output))  # (B, D)
        region_features = unit(self.regions(seen.hidden_states[-2], boxes))  # (R, D)
        long_features = unit(F.linear(self.long_text(long_ids), self.text_filip_projection))  # (B, D)
        short_features, caption_features, hard_features = (
            unit(self.clip.text_projection(self.clip.text_model(input_ids=ids).pooler_output))
            for ids in (short_ids, region_ids, hard_ids)
        )  # (B, D), (R, D), (11 R, D)
        with torch.autocast(images.device.type, enabled=False):
            scale = self.clip.logit_scale.exp()
            hard_features = hard_features.view(len(region_features), -1, region_features.shape[1])  # (R, 11, D)
            hard = self.hard_scale.exp() * (hard_features @ region_features[:, :, None])[:, :, 0]  # (R, 11)
            return {
                "global": symmetric(scale * image_features @ long_features.T),
                "global_short": symmetric(scale * image_features @ short_features.T),
                "region": symmetric(self.region_scale.exp() * region_features @ caption_features.T),
                "hard": F.cross_entropy(hard, torch.zeros(len(hard), dtype=torch.long, device=hard.device)),
            }

    def long_text(self, ids: Tensor) -> Tensor:
        """The pooled states of long texts, (B, 248) -> (B, C)."""
        text, keep = self.clip.text_model, self.config.text_config.keep_len
        x = text.embeddings.token_embedding(ids) + torch.cat([self.kept[:keep], self.stretched[keep:]])  # (B, T, C)
        mask = torch.full((ids.shape[1], ids.shape[1]), -torch.inf, device=ids.device).triu(1)  # (T, T)
        x = text.encoder(inputs_embeds=x, attention_mask=mask[None, None]).last_hidden_state  # (B, T, C)
        ends = (ids == self.config.text_config.eos_token_id).int().argmax(dim=1)  # (B,)
        return text.final_layer_norm(x)[torch.arange(len(ids), device=ids.device), ends]  # (B, C)

    def regions(self, tokens: Tensor, boxes: Tensor) -> Tensor:
        """RoIAlign to 1 x 1 of the projected patches, (B, 1 + grid * grid, C) and (B, n, 4) -> (B n, D)."""
        last = self.clip.vision_model.encoder.layers[-1]
        x = tokens[:, 1:]
        x = x + last.self_attn.out_proj(last.self_attn.v_proj(last.layer_norm1(x)))
        x = x + last.mlp(last.layer_norm2(x))
        dense = self.clip.visual_projection(self.clip.vision_model.post_layernorm(x))  # (B, grid * grid, D)
        grid = self.config.vision_config.grid
        maps = dense.transpose(1, 2).unflatten(2, (grid, grid)).float()  # (B, D, grid, grid)
        start, size = boxes[..., :2], boxes[..., 2:] - boxes[..., :2]  # (B, n, 2): x and y
        count = (size * grid).ceil().clamp(min=1)  # (B, n, 2): samples along each side, one to a cell
        order = torch.arange(grid + 1, device=boxes.device)  # (S,)
        at = start[..., None] + (order + 0.5) * (size / count)[..., None]  # (B, n, 2, S)
        used = order < count[..., None]  # (B, n, 2, S)
        mask = (used[:, :, 1, :, None] & used[:, :, 0, None, :]).flatten(2)  # (B, n, S * S)
        y, x = at[:, :, 1, :, None].expand(-1, -1, -1, len(order)), at[:, :, 0, None, :].expand(-1, -1, len(order), -1)
        where = torch.stack([x, y], dim=-1).flatten(2, 3) * 2 - 1  # (B, n, S * S, 2)
        sampled = F.grid_sample(maps, where, padding_mode="border", align_corners=False)  # (B, D, n, S * S)
        mean = (sampled * mask[:, None]).sum(-1) / mask.sum(-1)[:, None]  # (B, D, n)
        return mean.transpose(1, 2).flatten(0, 1)  # (B n, D)


def symmetric(logits: Tensor) -> Tensor:
    targets = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def unit(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=-1)


def padded(texts: Sequence[str], tokenizer: Numbers, length: int) -> Tensor:
    rows = [tokenizer.encode(text) for text in texts]
    return torch.tensor([row + [tokenizer.eos_token_id] * (length - len(row)) for row in rows])


def plain_inputs(chosen: list[Sample], config: TextConfig) -> tuple[Tensor, ...]:
    tokenizer = Numbers(config)
    regions = [region for sample in chosen for region in sample.regions]
    hard = [text for region in regions for text in (region.caption, *region.negatives)]
    short = config.max_position_embeddings
    return (
        pixels([sample.image for sample in chosen]),
        padded([sample.long_caption for sample in chosen], tokenizer, config.longtext_len),
        padded([sample.short_caption for sample in chosen], tokenizer, short),
        padded([region.caption for region in regions], tokenizer, short),
        padded(hard, tokenizer, short),
        torch.tensor([[region.box for region in sample.regions] for sample in chosen]),
    )


# --- measuring -----------------------------------------------------------------------------------------------------

Step = Callable[[], Losses]


def build(name: str, arguments: argparse.Namespace) -> Step:
    """A training step of the plain or of our model, which returns its losses."""
    device, config = torch.device(arguments.device), config_of(arguments.preset)
    torch.manual_seed(0)
    ours = FgclipModel(config)
    chosen = samples(arguments.batch, config)
    model: nn.Module
    if name == "plain":
        model = Plain(ours, arguments.attention).to(device).train()
        inputs = [one.to(device) for one in plain_inputs(chosen, config.text_config)]
    else:
        model = ours.to(device).train()
        batch = collate(chosen, Numbers(config.text_config)).to(device)
        if arguments.checkpointing:
            ours.checkpoint_layers()
        if arguments.compile:
            ours.compile_layers()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.98), eps=1e-6, fused=True)
    weights = {
        "global": config.global_weight,
        "global_short": config.global_short_weight,
        "region": config.region_weight,
        "hard": config.hard_weight,
    }

    def step() -> Losses:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            if name == "plain":
                losses = model(*inputs)
                loss = torch.stack([weights[term] * value for term, value in losses.items()]).sum()
            else:
                terms = model(batch, step=0)
                losses = {term: value.loss for term, value in terms.items()}
                loss = total(terms)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        return {term: value.detach() for term, value in losses.items()}

    return step


def config_of(preset: str) -> FgclipConfig:
    return SMALL if preset == "small" else FgclipConfig.preset(preset)


def seconds(step: Step, device: str) -> float:
    if device == "cpu":
        start = time.perf_counter()
        step()
        return time.perf_counter() - start
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    events[0].record()
    step()
    events[1].record()
    events[1].synchronize()
    return events[0].elapsed_time(events[1]) / 1000


def peak_megabytes(name: str, arguments: argparse.Namespace) -> float:
    """The most memory that a process of its own takes for two steps of one model."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(own_peak_megabytes, name, arguments).result()


def own_peak_megabytes(name: str, arguments: argparse.Namespace) -> float:
    torch.set_num_threads(arguments.threads)
    step = build(name, arguments)
    for _ in range(2):
        step()
    if arguments.device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return torch.cuda.max_memory_allocated() / 2**20


def synchronisations(step: Step) -> int:
    """How often the host waits for the GPU in a step."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        step()
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(one.message) for one in caught)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--preset", choices=["small", *(name for name in PRESETS if name != "tiny")], default="small")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument("--attention", choices=["eager", "sdpa"], default="eager", help="of the plain step")
    parser.add_argument("--compile", action="store_true", help="our layers")
    parser.add_argument("--checkpointing", action="store_true", help="of our layers")
    parser.add_argument("--alone", action="store_true", help="without the plain step")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    report(arguments)


def report(arguments: argparse.Namespace) -> None:
    names = ["ours"] if arguments.alone else ["plain", "ours"]
    peaks = {name: peak_megabytes(name, arguments) for name in names}
    steps = {name: build(name, arguments) for name in names}
    losses = {name: step() for name, step in steps.items()}  # before any update; it also warms up
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(arguments.steps):
        for name, step in steps.items():
            times[name].append(seconds(step, arguments.device))

    medians = {name: statistics.median(found) for name, found in times.items()}
    print(f"{'':8}{'images/s':>10}{'ratio':>8}{'ms a step':>12}{'peak MB':>10}{'tokens of text':>16}")
    tokens = tokens_computed(arguments)
    for name in names:
        rate, ratio = arguments.batch / medians[name], medians[names[0]] / medians[name]
        took = f"{rate:10.1f}{ratio:8.2f}{medians[name] * 1000:12.0f}"
        print(f"{name:8}{took}{peaks[name]:10.0f}{tokens[name]:16,}")
    print(f"\n{'loss':14}" + "".join(f"{name:>12}" for name in names))
    for term in losses["ours"]:
        print(f"{term:14}" + "".join(f"{losses[name][term].item():12.6f}" for name in names))
    if arguments.device == "cuda":
        print(f"\nhost synchronisations in a step of ours: {synchronisations(steps['ours'])}")


def tokens_computed(arguments: argparse.Namespace) -> dict[str, int]:
    """Tokens that pass through the text tower in one step."""
    config = config_of(arguments.preset)
    chosen = samples(arguments.batch, config)
    batch: Batch = collate(chosen, Numbers(config.text_config))
    return {
        "plain": sum(ids.numel() for ids in plain_inputs(chosen, config.text_config)[1:5]),
        "ours": len(batch.texts.tokens) + len(batch.long_texts.tokens),
    }


if __name__ == "__main__":
    main()
