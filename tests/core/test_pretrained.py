"""Weights in every layout give the features that they gave where they came from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPModel

from fgclip_doctor.core import pretrained
from fgclip_doctor.core.config import FgclipConfig, TextConfig, VisionConfig
from fgclip_doctor.core.model import FgclipModel
from fgclip_doctor.core.pretrained import Uncovered, load_weights
from fgclip_doctor.core.text import stretched_positions

CONFIG = FgclipConfig(  # heads 64 wide, as all of OpenAI's are
    vision_config=VisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    ),
    text_config=TextConfig(
        hidden_size=192,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=3,
        vocab_size=70,
        max_position_embeddings=30,
        longtext_len=60,
        bos_token_id=68,
        eos_token_id=69,
    ),
    projection_dim=96,
)
ADDED = {
    "text_filip_projection.weight",
    "logit_scale_finegraind",
    "logit_scale_hardneg",
    "text_model.embeddings.position_embedding_res.weight",
    "text_model.embeddings.position_embedding_ori.weight",
}


def trained(config: FgclipConfig = CONFIG, seed: int = 0) -> FgclipModel:
    """A model none of whose tensors is at its initialisation."""
    torch.manual_seed(seed)
    model = FgclipModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def clip(model: FgclipModel) -> dict[str, Tensor]:
    """What of it a plain CLIP of Hugging Face would hold."""
    return {name: tensor for name, tensor in pretrained.weights(model).items() if name not in ADDED}


def openai(model: FgclipModel) -> dict[str, Tensor]:
    """The same weights, packed as OpenAI packs them."""
    state, packed = clip(model), dict[str, Tensor]()
    for tower, prefix in (("vision_model", "visual."), ("text_model", "")):
        for layer in range(len(getattr(model, tower).encoder.layers)):
            theirs, ours = f"{prefix}transformer.resblocks.{layer}", f"{tower}.encoder.layers.{layer}"
            for kind in ("weight", "bias"):
                fused = [state[f"{ours}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
                packed[f"{theirs}.attn.in_proj_{kind}"] = torch.cat(fused)
                packed[f"{theirs}.attn.out_proj.{kind}"] = state[f"{ours}.self_attn.out_proj.{kind}"]
                packed[f"{theirs}.ln_1.{kind}"] = state[f"{ours}.layer_norm1.{kind}"]
                packed[f"{theirs}.ln_2.{kind}"] = state[f"{ours}.layer_norm2.{kind}"]
                packed[f"{theirs}.mlp.c_fc.{kind}"] = state[f"{ours}.mlp.fc1.{kind}"]
                packed[f"{theirs}.mlp.c_proj.{kind}"] = state[f"{ours}.mlp.fc2.{kind}"]
    for kind in ("weight", "bias"):
        packed[f"visual.ln_pre.{kind}"] = state[f"vision_model.pre_layrnorm.{kind}"]
        packed[f"visual.ln_post.{kind}"] = state[f"vision_model.post_layernorm.{kind}"]
        packed[f"ln_final.{kind}"] = state[f"text_model.final_layer_norm.{kind}"]
    return packed | {
        "visual.class_embedding": state["vision_model.embeddings.class_embedding"],
        "visual.conv1.weight": state["vision_model.embeddings.patch_embedding.weight"],
        "visual.positional_embedding": state["vision_model.embeddings.position_embedding.weight"],
        "visual.proj": state["visual_projection.weight"].T,
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
        "text_projection": state["text_projection.weight"].T,
        "logit_scale": state["logit_scale"],
        "input_resolution": torch.tensor(32),
    }


def features(model: FgclipModel) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(0, 68, (3, 25), generator=generator)
    ids[:, -1] = 69
    image = torch.randn(2, 3, 32, 32, generator=generator)
    return [model.encode_image(image), model.encode_text(ids), model.encode_text(ids, long=True)]


@pytest.mark.parametrize("layout", [clip, openai])
def test_clip_weights_give_clips_features(layout: type) -> None:
    source, model = trained(), FgclipModel(replace(CONFIG, roi_projection=True))
    coverage = load_weights(model, layout(source))
    for mine, theirs in zip(features(model)[:2], features(source)[:2], strict=True):
        assert torch.equal(mine, theirs)
    assert coverage.derived.keys() == ADDED | {"roi_projection.weight"}
    assert [coverage.missing, coverage.unexpected, coverage.mismatched] == [[], [], []]
    assert len(coverage.split) == (5 * 3 * 2 if layout is openai else 0)
    assert len(coverage.transposed) == (2 if layout is openai else 0)

    assert model.roi_projection is not None
    assert torch.equal(model.roi_projection.weight, source.visual_projection.weight)
    assert torch.equal(model.text_filip_projection.weight, source.text_projection.weight)
    assert len({scale.item() for scale in (source.logit_scale, *model.logit_scales().values())}) == 1
    longer = stretched_positions(source.text_model.embeddings.position_embedding.weight)
    assert torch.equal(model.text_model.embeddings.position_embedding_res.weight, longer)


def test_the_architecture_is_read_off_openais_tensors() -> None:
    assert pretrained.openai_config(openai(trained())) == CONFIG


def test_trained_heads_are_never_overwritten(tmp_path: Path) -> None:
    source = trained(replace(CONFIG, roi_projection=True))
    pretrained.save(source, tmp_path)
    model = pretrained.from_base(tmp_path, replace(CONFIG, roi_projection=True, use_memory_bank=True))
    for name, tensor in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(features(model), features(source), strict=True))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "sharded"])
def test_every_file_layout_is_read(name: str, tmp_path: Path) -> None:
    state = pretrained.weights(trained())
    if name == "model.safetensors":
        save_file(state, tmp_path / name)
    elif name == "pytorch_model.bin":
        torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / name)
    else:
        keys = sorted(state)
        shards = {"model-1-of-2.safetensors": keys[::2], "model-2-of-2.safetensors": keys[1::2]}
        for shard, members in shards.items():
            save_file({key: state[key] for key in members}, tmp_path / shard)
        where = ", ".join(f'"{key}": "{shard}"' for shard, members in shards.items() for key in members)
        (tmp_path / "model.safetensors.index.json").write_text(f'{{"weight_map": {{{where}}}}}')
    read = pretrained.read(tmp_path)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[key], state[key]) for key in state)


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("vision_model.encoder.layers.1.self_attn.q_proj.weight", "1 missing: vision_model.encoder.layers.1.self_attn"),
        ("text_model.final_layer_norm.bias", "1 missing: text_model.final_layer_norm.bias"),
        ("text_projection.weight", "2 missing: text_projection.weight, text_filip_projection.weight"),
    ],
)
def test_an_uncovered_tower_is_refused(lost: str, said: str) -> None:
    state = clip(trained())
    del state[lost]
    with pytest.raises(Uncovered, match=said):
        load_weights(FgclipModel(CONFIG), state)
    assert lost in load_weights(FgclipModel(CONFIG), state, partial=True).missing


def test_other_shapes_and_strangers_are_told() -> None:
    state = clip(trained()) | {"visual_projection.weight": torch.zeros(96, 130), "what.is.this": torch.zeros(1)}
    with pytest.raises(Uncovered, match=r"1 mismatched: visual_projection.weight \(96, 130\), not \(96, 128\)"):
        load_weights(FgclipModel(CONFIG), state)
    assert load_weights(FgclipModel(CONFIG), state, partial=True).unexpected == ["what.is.this"]


def test_a_saved_model_with_its_bank_comes_back(tmp_path: Path) -> None:
    model = trained(replace(CONFIG, use_memory_bank=True, memory_bank_size=4))
    assert model.bank is not None
    model.bank.enqueue(torch.eye(96)[:3], torch.eye(96)[3:6], torch.tensor([5, 6, 7]))
    pretrained.save(model, tmp_path)
    assert {"region_image_queue", "queue_ptr", "training_steps"} <= pretrained.read(tmp_path).keys()
    again = pretrained.load(tmp_path)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_transformers_reads_what_we_write(tmp_path: Path) -> None:
    model = trained()
    pretrained.save(model, tmp_path)
    theirs = CLIPModel.from_pretrained(tmp_path)
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[68, 4, 9, 69, 69], [68, 1, 2, 3, 69]])
    found = theirs(input_ids=ids, pixel_values=image)
    assert torch.allclose(model.encode_image(image), found.image_embeds, rtol=0, atol=1e-5)
    assert torch.allclose(model.encode_text(ids), found.text_embeds, rtol=0, atol=1e-5)
