"""The towers against transformers' CLIPModel, and the parts that FG-CLIP adds against what they claim."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

from fgclip_doctor.core.config import LOGIT_SCALE_CAP, LOGIT_SCALE_FROM_SCRATCH, FgclipConfig
from fgclip_doctor.core.losses import total
from fgclip_doctor.core.model import FgclipModel
from fgclip_doctor.core.text import Texts
from fgclip_doctor.training.data import collate
from fgclip_doctor.training.synthetic import Scenes, WordTokenizer

DEPTH = 2  # the shapes are those of the preset; the depth only costs time


def config(preset: str, depth: int = DEPTH) -> FgclipConfig:
    full, depths = FgclipConfig.preset(preset), {"num_hidden_layers": depth}
    return replace(
        full, vision_config=replace(full.vision_config, **depths), text_config=replace(full.text_config, **depths)
    )


def reference(config: FgclipConfig, attention: str = "eager") -> CLIPModel:
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(
            text_config={**config.to_dict()["text_config"], "pad_token_id": config.text_config.eos_token_id},
            vision_config=config.to_dict()["vision_config"],
            projection_dim=config.projection_dim,
            attn_implementation=attention,
        )
    )
    with torch.no_grad():  # away from init, where biases and gains could be mixed up unseen
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return model


def inputs(config: FgclipConfig) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    side, text = config.vision_config.image_size, config.text_config
    ids = torch.randint(0, text.bos_token_id, (3, 20), generator=generator)
    for row, end in zip(ids, (19, 7, 12), strict=True):
        row[end:] = text.eos_token_id
    return torch.randn(2, 3, side, side, generator=generator), ids


@pytest.mark.parametrize(("preset", "depth"), [("tiny", DEPTH), ("b32", DEPTH), ("b16", DEPTH), ("b32", 12)])
def test_towers_are_transformers_own(preset: str, depth: int) -> None:
    ours, theirs = FgclipModel(config(preset, depth)), reference(config(preset, depth))
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not unexpected
    assert {name.split(".")[0] for name in missing} == {
        "text_filip_projection",
        "logit_scale_finegraind",
        "logit_scale_hardneg",
        "text_model",
    }
    assert all("position_embedding_" in name for name in missing if name.startswith("text_model"))
    pixel_values, ids = inputs(ours.config)

    images, texts = ours.encode_image(pixel_values), ours.encode_text(ids)
    expected = theirs(input_ids=ids, pixel_values=pixel_values)
    assert torch.allclose(images, expected.image_embeds, rtol=0, atol=5e-7)
    assert torch.allclose(texts, expected.text_embeds, rtol=0, atol=5e-7)
    logits = ours.logit_scale.exp() * images @ texts.T
    assert ours.logit_scale.item() == pytest.approx(LOGIT_SCALE_FROM_SCRATCH, abs=0.1)
    assert torch.allclose(logits, expected.logits_per_image, rtol=0, atol=1e-5)
    with torch.no_grad():  # at a scale of 100, float32 rounds a cosine of 1 to 6e-6
        cosines, expected_cosines = images @ texts.T, expected.image_embeds @ expected.text_embeds.T
        assert torch.allclose(100 * cosines, 100 * expected_cosines, rtol=0, atol=5e-5)

    gradients = gradients_of(logits[0, 1], ours)
    assert_close(gradients, gradients_of(expected.logits_per_image[0, 1], theirs), relative=1e-4)


@pytest.mark.parametrize("preset", ["tiny", "b32", "b16"])
def test_towers_are_transformers_own_in_float64(preset: str) -> None:
    """What differs in float32 is rounding."""
    ours = FgclipModel(config(preset)).double()
    theirs = reference(config(preset), "sdpa").double()  # the softmax of their eager attention is always in float32
    ours.load_state_dict(theirs.state_dict(), strict=False)
    pixel_values, ids = inputs(ours.config)
    images = ours.visual_projection(ours.vision_model(pixel_values.double()))
    texts = ours.text_projection(ours.text_model(Texts.of(ids, ours.config.text_config.eos_token_id)))
    expected_images = theirs.get_image_features(pixel_values.double()).pooler_output
    expected_texts = theirs.get_text_features(ids).pooler_output
    assert torch.allclose(images, expected_images, rtol=1e-12, atol=1e-12)
    assert torch.allclose(texts, expected_texts, rtol=1e-12, atol=1e-12)
    gradients = gradients_of((images[0] * texts[1]).sum(), ours)
    assert_close(gradients, gradients_of((expected_images[0] * expected_texts[1]).sum(), theirs), relative=1e-11)


def gradients_of(value: Tensor, model: nn.Module) -> dict[str, Tensor]:
    torch.autograd.backward(value)
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], *, relative: float) -> None:
    for name, gradient in expected.items():  # those of k_proj.bias are 0 but for rounding
        assert (found[name] - gradient).norm() <= relative * (gradient.norm() + 0.01), name


def test_pooling_is_at_the_first_end_of_text() -> None:
    model = FgclipModel(config("tiny"))
    eos = model.config.text_config.eos_token_id
    ids = torch.tensor([[62, 5, 9, eos, eos, eos, eos]])
    bare = model.encode_text(ids[:, :4])
    assert torch.allclose(model.encode_text(ids), bare, rtol=0, atol=1e-6)
    ids[0, 5] = 3  # whatever follows the end is padding
    assert torch.allclose(model.encode_text(ids), bare, rtol=0, atol=1e-6)


def test_long_texts_take_their_own_positions_and_projection() -> None:
    model = FgclipModel(config("tiny"))
    long = torch.arange(60)[None] % 50
    long[0, -1] = model.config.text_config.eos_token_id
    with pytest.raises(ValueError, match="60 tokens in a text, and 32 positions"):
        model.encode_text(long)
    before = model.encode_text(long, long=True)
    with torch.no_grad():  # of either table, the rows that the other one stands for are never read
        model.text_model.embeddings.position_embedding_ori.weight[20:] = torch.nan
        model.text_model.embeddings.position_embedding_res.weight[:20] = torch.nan
    assert torch.equal(model.encode_text(long, long=True), before)
    with torch.no_grad():
        model.text_filip_projection.weight.neg_()
    assert torch.equal(model.encode_text(long, long=True), -before)


def test_images_of_another_size_get_interpolated_positions() -> None:
    ours, theirs = FgclipModel(config("tiny")).eval(), reference(config("tiny"))
    ours.load_state_dict(theirs.state_dict(), strict=False)
    larger = torch.randn(1, 3, 72, 72, generator=torch.Generator().manual_seed(0))
    expected = theirs.get_image_features(larger, interpolate_pos_encoding=True).pooler_output
    assert torch.allclose(ours.encode_image(larger), F.normalize(expected, dim=-1), rtol=0, atol=1e-5)


def test_region_features_are_those_of_projected_patches() -> None:
    """Pooling before the projection is the same as FG-CLIP's pooling after it."""
    model = FgclipModel(replace(config("tiny"), roi_projection=True))
    batch = collate([Scenes(1)[0]], WordTokenizer())
    whole = replace(batch, boxes=torch.tensor([[0.0, 0.0, 1.0, 1.0]]), box_image=torch.tensor([0]), boxes_per_image=1)
    tokens = model.vision_model.tokens(whole.pixel_values)
    assert model.roi_projection is not None
    expected = model.roi_projection(model.vision_model.dense(tokens)).mean(dim=1)  # (1, D)
    assert torch.allclose(model.encode_regions(whole), F.normalize(expected, dim=-1), rtol=0, atol=1e-6)


def test_value_path_is_attention_to_oneself() -> None:
    model = FgclipModel(config("tiny"))
    layer = model.vision_model.encoder.last
    one = torch.randn(3, 1, 64, generator=torch.Generator().manual_seed(0))  # a single token attends to itself
    assert torch.allclose(layer.value_path(one), layer(one), rtol=0, atol=1e-6)


def test_every_parameter_learns_from_the_four_terms() -> None:
    model = FgclipModel(FgclipConfig.preset("tiny", roi_projection=True)).train()
    samples = [Scenes(8)[index] for index in range(8)]
    terms = model(collate(samples, WordTokenizer()), step=0)
    assert list(terms) == ["global", "global_short", "region", "hard"]
    assert [term.candidates.item() for term in terms.values()] == [8, 8, 16, 11]
    total(terms).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_scales_stop_at_the_cap() -> None:
    model = FgclipModel(FgclipConfig.preset("tiny", logit_scale_init_value=5.0))
    model.clamp_scales()
    assert all(scale.item() == pytest.approx(LOGIT_SCALE_CAP) for scale in model.logit_scales().values())
    with torch.no_grad():
        model.logit_scale.fill_(1.0)
    model.clamp_scales()
    assert model.logit_scale.item() == 1.0


def test_a_batch_without_regions_still_trains() -> None:
    model = FgclipModel(FgclipConfig.preset("tiny", use_memory_bank=True)).train()
    samples = [replace(Scenes(2)[index], regions=()) for index in range(2)]
    terms = model(collate(samples, WordTokenizer()), step=0)
    assert terms["region"].loss.item() == terms["hard"].loss.item() == 0
    total(terms).backward()
    assert model.logit_scale.grad is not None
    assert math.isfinite(model.logit_scale.grad.item())


def test_texts_that_stand_once_give_the_same_gradients() -> None:
    """A batch that repeats and pads every text, as FG-CLIP's own collator does, is the same problem."""
    model = FgclipModel(config("tiny")).train()
    batch = collate([Scenes(6)[index] for index in range(6)], WordTokenizer())
    uses = torch.cat([batch.short_index, batch.region_index, batch.hard_index.flatten()])
    eos = model.config.text_config.eos_token_id
    start, end = len(batch.short_index), len(batch.short_index) + len(batch.region_index)
    repeated = replace(
        batch,
        texts=Texts.of(F.pad(batch.text_ids[uses], (0, 9), value=eos), eos),
        long_texts=Texts.of(F.pad(batch.long_ids, (0, 9), value=eos), eos),
        short_index=torch.arange(start),
        region_index=torch.arange(start, end),
        hard_index=torch.arange(end, len(uses)).view_as(batch.hard_index),
    )
    assert len(uses) > 1.2 * len(batch.text_ids)
    gradients = []
    for one in (batch, repeated):
        model.zero_grad()
        total(model(one, step=0)).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None
        other = gradients[1][name]
        assert other is not None
        assert (gradient - other).norm() <= 1e-5 * gradient.norm() + 1e-6, name
