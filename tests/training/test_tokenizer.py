"""CLIP's tokenizer against OpenAI's own, whose ids `fixtures/make_clip_tokens.py` wrote down."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import pytest

from fgclip_doctor.core.config import FgclipConfig
from fgclip_doctor.training.tokenizer import ClipTokenizer

LINES = Path(__file__).with_name("fixtures").joinpath("clip_tokens.jsonl").read_text("ascii").splitlines()
REFERENCE = [json.loads(line) for line in LINES]

pytest.importorskip("instant_clip_tokenizer", reason="has wheels for Python 3.11 and 3.12 only")


@pytest.fixture(scope="module")
def tokenizer() -> ClipTokenizer:
    return ClipTokenizer()


def test_ids_are_those_of_the_reference(tokenizer: ClipTokenizer) -> None:
    assert len(REFERENCE) > 200
    different = [line["text"] for line in REFERENCE if tokenizer.tokens(line["text"]) != line["ids"]]
    assert different == []


def test_begin_and_end_are_those_of_the_model(tokenizer: ClipTokenizer) -> None:
    text = FgclipConfig.preset("b16").text_config
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (text.bos_token_id, text.eos_token_id)
    assert (tokenizer.context, tokenizer.long_context) == (text.max_position_embeddings, text.longtext_len)
    assert tokenizer.encode("a photo of a cat") == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer.encode("") == [49406, 49407]


@pytest.mark.parametrize(("long", "context"), [(False, 77), (True, 248)])
def test_a_text_is_cut_to_its_context_and_still_ends(long: bool, context: int, tokenizer: ClipTokenizer) -> None:
    just, over = "cat " * (context - 2), "cat " * (context - 1)
    for text in (just, over):
        assert tokenizer.encode(text, long=long) == [49406, *[2368] * (context - 2), 49407]
    assert tokenizer.fits(just, long=long)
    assert tokenizer.fits("!?" * (context // 2 - 1), long=long)
    assert not tokenizer.fits(over, long=long)


@pytest.mark.parametrize("token", ["<end_of_text>", "<start_of_text>", "<|endoftext|>", "<|startoftext|>"])
def test_a_text_cannot_forge_a_control_token(token: str, tokenizer: ClipTokenizer) -> None:
    ids = tokenizer.encode(f"a cat {token} and a dog!!{token}")
    assert {49406, 49407}.isdisjoint(ids[1:-1])


def test_workers_get_the_same_tokenizer(tokenizer: ClipTokenizer) -> None:
    other = pickle.loads(pickle.dumps(ClipTokenizer(context=5, long_context=7)))
    assert (other.context, other.long_context) == (5, 7)
    assert other.tokens("a cat") == tokenizer.tokens("a cat")


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "instant_clip_tokenizer", None)
    with pytest.raises(ModuleNotFoundError, match=r"fgclip-doctor\[data\]"):
        ClipTokenizer()
