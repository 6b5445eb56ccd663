from __future__ import annotations

import numpy as np
import pytest

from fgclip_doctor.run import Tensor
from fgclip_doctor.sources.roles import find
from tests.runs import series, tensor

Shapes = dict[str, tuple[int, ...]]


def tensors(floats: Shapes, integers: Shapes | None = None) -> dict[str, Tensor]:
    return {name: tensor(name, np.zeros(shape)) for name, shape in floats.items()} | {
        name: tensor(name, np.zeros(shape), "int64") for name, shape in (integers or {}).items()
    }


BANKS: dict[str, tuple[Shapes, Shapes, dict[str, str]]] = {
    "the case study": (
        {"region_image_queue": (512, 128), "region_text_queue": (512, 128)},
        {"queue_ptr": (1,), "queue_is_full": (1,), "training_steps": (1,)},
        {
            "bank.image_keys": "region_image_queue",
            "bank.text_keys": "region_text_queue",
            "bank.pointer": "queue_ptr",
            "bank.full": "queue_is_full",
            "clock.forwards": "training_steps",
        },
    ),
    "MoCo": ({"queue": (128, 4096)}, {"queue_ptr": (1,)}, {"bank.image_keys": "queue", "bank.pointer": "queue_ptr"}),
    "ALBEF": (
        {"image_queue": (256, 1024), "text_queue": (256, 1024)},
        {"queue_ptr": (1,), "idx_queue": (1, 1024)},
        {"bank.image_keys": "image_queue", "bank.text_keys": "text_queue", "bank.pointer": "queue_ptr"},
    ),
    "a module": (
        {"memory_bank.image_feats": (1024, 64), "memory_bank.text_feats": (1024, 64)},
        {"memory_bank.cursor": (), "memory_bank.filled": (), "memory_bank.enabled": (), "bn.num_batches_tracked": ()},
        {
            "bank.image_keys": "memory_bank.image_feats",
            "bank.text_keys": "memory_bank.text_feats",
            "bank.pointer": "memory_bank.cursor",
            "bank.full": "memory_bank.filled",
            "bank.enabled": "memory_bank.enabled",
        },
    ),
    "short names": (
        {"bank.img_keys": (64, 32), "bank.txt_keys": (64, 32), "bank.txt_norms": (64, 1)},
        {"bank.ptr": (1,), "num_forwards": ()},
        {
            "bank.image_keys": "bank.img_keys",
            "bank.text_keys": "bank.txt_keys",
            "bank.pointer": "bank.ptr",
            "clock.forwards": "num_forwards",
        },
    ),
    "paired stores": (
        {"neg_img": (64, 32), "neg_txt": (64, 32)},
        {"neg_ptr": ()},
        {"bank.image_keys": "neg_img", "bank.text_keys": "neg_txt", "bank.pointer": "neg_ptr"},
    ),
    "XBM": ({"xbm.feats": (64, 32)}, {"xbm.ptr": ()}, {"bank.image_keys": "xbm.feats", "bank.pointer": "xbm.ptr"}),
    "no bank": (
        {
            "positional_embedding": (77, 512),
            "text_projection": (512, 512),
            "visual.proj": (512, 512),
            "rope_cache": (9, 9),
        },
        {"position_ids": (1,), "bn.num_batches_tracked": ()},
        {},
    ),
}


@pytest.mark.parametrize("name", BANKS)
def test_bank(name: str) -> None:
    floats, integers, expected = BANKS[name]
    found = find(tensors(floats, integers), {})
    assert {role: one for role, one in found.items() if role.startswith(("bank", "clock"))} == expected


@pytest.mark.parametrize(
    ("name", "counts"),
    [(name, True) for name in ("training_steps", "n_forward", "iters", "forward_calls", "step_count", "fwd_counter")]
    + [(name, True) for name in ("clip.total_forwards", "_iter", "micro_batches_seen", "model_steps")]
    + [(name, False) for name in ("global_step", "bn.num_batches_tracked", "epoch", "n_averaged", "ema_steps")],
)
def test_the_counter_of_forwards(name: str, *, counts: bool) -> None:
    assert find(tensors({}, {name: ()}), {}) == ({"clock.forwards": name} if counts else {})


@pytest.mark.parametrize(
    ("floats", "expected"),
    [
        (
            {"logit_scale": (), "logit_scale_finegraind": (), "logit_scale_hardneg": (), "logit_bias": ()},
            {
                "scale.global": "logit_scale",
                "scale.region": "logit_scale_finegraind",
                "scale.hard": "logit_scale_hardneg",
            },
        ),
        ({"module.t_prime": (1,)}, {"scale.global": "module.t_prime"}),
        (
            {"temperature": (), "roi_temperature": ()},
            {"scale.global": "temperature", "scale.region": "roi_temperature"},
        ),
        ({"clip.log_temp": (), "layer_scale": (64,)}, {"scale.global": "clip.log_temp"}),
        (
            {
                "visual_projection.weight": (512, 768),
                "text_projection.weight": (512, 512),
                "roi_projection.weight": (512, 768),
                "text_filip_projection.weight": (512, 512),
                "text_model.encoder.layers.0.mlp.fc1.weight": (2048, 512),
                "text_model.embeddings.position_embedding.weight": (77, 512),
            },
            {
                "head.image": "visual_projection.weight",
                "head.text": "text_projection.weight",
                "head.text_long": "text_filip_projection.weight",
                "head.region": "roi_projection.weight",
            },
        ),
        (
            {"visual.proj": (768, 512), "text_projection": (512, 512), "box_head.weight": (512, 768)},
            {"head.image": "visual.proj", "head.text": "text_projection", "head.region": "box_head.weight"},
        ),
        (
            {"vision_proj.weight": (256, 768), "text_proj.weight": (256, 768), "region_projection.weight": (256, 768)},
            {
                "head.image": "vision_proj.weight",
                "head.text": "text_proj.weight",
                "head.region": "region_projection.weight",
            },
        ),
    ],
)
def test_scales_and_heads(floats: Shapes, expected: dict[str, str]) -> None:
    assert find(tensors(floats), {}) == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            ["loss", "loss_global", "loss_region", "loss_hard", "grad_norm", "eval_loss", "train_loss"],
            {
                "loss.total": "loss",
                "loss.global": "loss_global",
                "loss.region": "loss_region",
                "loss.hard": "loss_hard",
            },
        ),
        (
            ["train/total_loss", "train/itc_loss", "train/bbox_loss", "train/hn_loss", "val/bbox_loss"],
            {
                "loss.total": "train/total_loss",
                "loss.global": "train/itc_loss",
                "loss.region": "train/bbox_loss",
                "loss.hard": "train/hn_loss",
            },
        ),
        (["fine_grain_loss", "loss_scale"], {"loss.region": "fine_grain_loss"}),
        (["learning_rate", "caption_loss"], {}),
    ],
)
def test_losses(names: list[str], expected: dict[str, str]) -> None:
    assert find({}, {name: series(name, [1.0, 2.0]) for name in names}) == expected


@pytest.mark.parametrize(
    "name",
    [
        "loss",
        "Loss",
        "train_loss",
        "train/loss",
        "train_loss_step",
        "train/loss_epoch",
        "loss_train",
        "training_loss",
        "Loss/train",
        "loss/total",
        "train/total_loss",
        "trainLoss",
        "batch_loss",
    ],
)
def test_the_loss_of_the_training_by_any_name(name: str) -> None:
    assert find({}, {name: series(name, [1.0, 2.0])}) == {"loss.total": name}


@pytest.mark.parametrize(
    "name",
    [
        "eval_loss",
        "val/loss",
        "val_loss_epoch",
        "loss_val",
        "Loss/test",
        "validation_loss",
        "valLoss",
        "dev_loss",
        "test/loss_step",
        "mean/loss",
        "loss_scale",
        "loss_weight",
    ],
)
def test_no_loss_of_the_training(name: str) -> None:
    assert find({}, {name: series(name, [1.0, 2.0])}) == {}


def test_the_loss_of_each_step_rather_than_of_an_epoch() -> None:
    names = ["train_loss_epoch", "train_loss_step", "val_loss"]
    assert find({}, {name: series(name, [1.0, 2.0]) for name in names}) == {"loss.total": "train_loss_step"}


def test_given_roles_win() -> None:
    found = find(tensors({"queue": (64, 32), "mine": (64, 32)}), {}, {"bank.image_keys": "mine"})
    assert found["bank.image_keys"] == "mine"
