"""Long positions, and packed texts against padded ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPTextModelWithProjection

from fgclip_doctor.core.config import FgclipConfig
from fgclip_doctor.core.model import FgclipModel, unit
from fgclip_doctor.core.text import Texts, stretched_positions

CONFIG = FgclipConfig.preset("tiny")
BEGIN, END = CONFIG.text_config.bos_token_id, CONFIG.text_config.eos_token_id
CAPTION = [BEGIN, 1, 7, 3, 9]
TEXTS = [  # a caption, twice, among others that begin as it does for a while, or are its beginning
    [*CAPTION, END],
    [BEGIN, 1, 7, 4, 9, END],
    [*CAPTION, END],
    [BEGIN, 2, 7, 3, 9, END],
    [BEGIN, 1, 7, END],
    [BEGIN, END],
    [*CAPTION, 5, 5, 5, 5, END],
    [BEGIN, *range(30), END],
]


def padded(texts: list[list[int]], length: int, rest: int = END) -> Tensor:
    return torch.tensor([text + [rest] * (length - len(text)) for text in texts])


def model() -> FgclipModel:
    torch.manual_seed(0)
    found = FgclipModel(replace(CONFIG, text_config=replace(CONFIG.text_config, num_hidden_layers=3)))
    with torch.no_grad():
        for parameter in found.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return found


def gradients(features: Tensor, module: torch.nn.Module) -> dict[str, Tensor]:
    """Of a sum that weighs every feature of every text differently."""
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(1))
    module.zero_grad()
    (features * weights).sum().backward()
    return {name: one.grad for name, one in module.named_parameters() if one.grad is not None}


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-6, name


def test_77_positions_become_248() -> None:
    table = torch.arange(77, dtype=torch.float64)[:, None] ** 2  # a row is the square of its number
    longer = stretched_positions(table)
    assert longer.shape == (248, 1)
    assert torch.equal(longer[:20], table[:20])
    for row in range(20, 76):  # each old row, then three quarters, a half and a quarter of the way to the next one
        steps = [row**2 + quarter / 4 * ((row + 1) ** 2 - row**2) for quarter in range(4)]
        start = 20 + 4 * (row - 20)
        assert longer[start : start + 4, 0].tolist() == steps
    last, slope = 76**2, 76**2 - 75**2
    assert longer[-4:, 0].tolist() == [last + quarter / 4 * slope for quarter in range(4)]


@pytest.mark.parametrize("rest", [END, 3])  # whatever follows the end is padding
def test_every_distinct_beginning_stands_once(rest: int) -> None:
    texts = Texts.of(padded(TEXTS, 40, rest), END)
    beginnings = {tuple(text[: end + 1]) for text in TEXTS for end in range(len(text))}
    assert len(texts.tokens) == len(texts.positions) == len(texts.origin) == len(beginnings)
    for text, row in zip(TEXTS, texts.index.tolist(), strict=True):
        path = texts.path[row, : len(text)]
        assert texts.tokens[path].tolist() == text
        assert texts.positions[path].tolist() == list(range(len(text)))
        assert texts.ends[row] == len(text) - 1
    assert torch.equal(texts.path.flatten()[texts.origin], torch.arange(len(beginnings)))


def test_packed_texts_are_padded_texts() -> None:
    """Features and gradients are those of transformers' tower, which computes every row in full."""
    ours, ids = model(), padded(TEXTS, 32)
    settings = ours.config.to_dict()
    theirs = CLIPTextModelWithProjection(
        CLIPConfig(
            text_config={**settings["text_config"], "projection_dim": 64, "pad_token_id": END},
        ).text_config
    )
    weights = ours.state_dict()
    theirs.load_state_dict({name: weights[name] for name in theirs.state_dict()})
    features, expected = ours.encode_text(ids), unit(theirs(input_ids=ids).text_embeds)
    assert torch.allclose(features, expected, rtol=0, atol=1e-6)
    assert_same_gradients(gradients(features, ours), gradients(expected, theirs))


@pytest.mark.parametrize("long", [False, True])
def test_packed_texts_are_texts_by_themselves(long: bool) -> None:
    ours = model()
    together = ours.encode_text(padded(TEXTS, 32), long=long)
    one_by_one = torch.cat([ours.encode_text(torch.tensor([text]), long=long) for text in TEXTS])
    assert torch.allclose(together, one_by_one, rtol=0, atol=1e-6)
    assert_same_gradients(gradients(together, ours), gradients(one_by_one, ours))


def test_a_text_without_its_end_is_refused() -> None:
    with pytest.raises(ValueError, match="a text without end-of-text token"):
        Texts.of(torch.tensor([[BEGIN, 1, END], [BEGIN, 1, 2]]), END)


def test_no_texts_have_no_features() -> None:
    assert model().encode_text(torch.empty(0, 5, dtype=torch.long)).shape == (0, CONFIG.projection_dim)
