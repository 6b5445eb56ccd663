"""What an FG-CLIP model is made of, to and from the flat `config.json` of Hugging Face checkpoints."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

LOGIT_SCALE_FROM_SCRATCH = math.log(1 / 0.07)  # 2.6592: Radford et al. 2021, section 2.5
LOGIT_SCALE_CAP = math.log(100)  # 4.6052: the same section; also where a trained CLIP ends up


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """A pre-norm transformer. The defaults of both towers are those of ViT-B/32, which `config.json` may leave out."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int = 12
    num_attention_heads: int
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5


@dataclass(frozen=True, kw_only=True)
class VisionConfig(TowerConfig):
    """The vision tower. Its images are square, and `patch_size` divides their side."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch_size


@dataclass(frozen=True, kw_only=True)
class TextConfig(TowerConfig):
    """The text tower. Short texts have `max_position_embeddings` positions, long ones `longtext_len`.

    FG-CLIP pads with the end-of-text token, so the two share an id.
    """

    hidden_size: int = 512
    intermediate_size: int = 2048
    num_attention_heads: int = 8
    vocab_size: int = 49408
    max_position_embeddings: int = 77
    longtext_len: int = 248
    keep_len: int = 20  # positions that long texts share with short ones: Zhang et al. 2024 (Long-CLIP), section 3.2
    bos_token_id: int = 49406
    eos_token_id: int = 49407


@dataclass(frozen=True, kw_only=True)
class FgclipConfig:
    """The whole model. Field names are the keys of `config.json`.

    `memory_bank_warmup_steps` is counted in `memory_bank_clock`: optimizer steps, or forward passes in training mode.
    """

    vision_config: VisionConfig = field(default_factory=VisionConfig)
    text_config: TextConfig = field(default_factory=TextConfig)
    projection_dim: int = 512
    logit_scale_init_value: float = LOGIT_SCALE_FROM_SCRATCH
    roi_projection: bool = False  # a projection of the region branch's own; otherwise it shares visual_projection
    use_memory_bank: bool = False
    memory_bank_size: int = 128  # rows per modality
    memory_bank_warmup_steps: int = 0
    memory_bank_clock: Literal["step", "forward"] = "step"
    # The loss weights of Xie et al. 2025 (FG-CLIP), section 3.4, and of the code released with it
    global_weight: float = 1.0
    global_short_weight: float = 1.0
    region_weight: float = 0.1
    hard_weight: float = 0.5

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """One of `PRESETS`, with top-level fields changed."""
        if name not in PRESETS:
            raise ValueError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **changes})

    def with_changes(self, **changes: Any) -> Self:
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        return {"architectures": ["FGCLIPModel"], "model_type": "clip", **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Reads a CLIP or FG-CLIP `config.json`: absent keys are defaults, keys of no meaning here are passed over."""
        text = _known(TextConfig, values.get("text_config") or {})
        if text.get("eos_token_id") == 2:  # what CLIP's first converted checkpoints say, meaning the highest id
            vocab_size = text.get("vocab_size", TextConfig.vocab_size)
            text |= {"eos_token_id": vocab_size - 1, "bos_token_id": vocab_size - 2}
        positions = text.get("max_position_embeddings", TextConfig.max_position_embeddings)
        text.setdefault("longtext_len", 4 * positions - 3 * text.get("keep_len", TextConfig.keep_len))
        vision = _known(VisionConfig, values.get("vision_config") or {})
        towers = {"text_config": TextConfig(**text), "vision_config": VisionConfig(**vision)}
        return cls(**_known(cls, values) | towers)

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))


def _known(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    names = {one.name for one in fields(kind)}
    return {name: value for name, value in values.items() if name in names and value is not None}


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {  # for the synthetic scenes: 0.3 M parameters, a training step of 32 images in 0.1 s on one thread
        "vision_config": VisionConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=48,
            patch_size=8,
        ),
        "text_config": TextConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            vocab_size=64,
            max_position_embeddings=32,
            longtext_len=68,
            bos_token_id=62,
            eos_token_id=63,
        ),
        "projection_dim": 64,
    },
    "b32": {},
    "b16": {"vision_config": VisionConfig(patch_size=16)},
    "l14_336": {
        "vision_config": VisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=336,
            patch_size=14,
        ),
        "text_config": TextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12),
        "projection_dim": 768,
    },
}
