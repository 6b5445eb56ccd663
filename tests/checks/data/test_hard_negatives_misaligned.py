from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fgclip_doctor.run import Missing, Run
from fgclip_doctor_checks.data.hard_negatives_misaligned import hard_negatives_misaligned
from tests import runs
from tests.annotated import audited, records, spoilt


def found(run: Run, **thresholds: float) -> dict[str, str]:
    return {
        finding.where.rpartition("hard negatives, ")[2]: finding.message
        for finding in hard_negatives_misaligned(run, **thresholds)
    }


def negatives(change: Any) -> Any:
    """Changes the list of negatives of a region that has them."""

    def spoil(region: Any) -> None:
        if region["flag_short_neg"]:
            texts = list(region["short_expr_negs"].values())
            change(texts)
            region["short_expr_negs"] = {str(place): text for place, text in enumerate(texts)}

    return spoil


def caption(change: Any) -> Any:
    return lambda region: region.update(short_expr=change(region["short_expr"]))


@pytest.mark.parametrize("count", [2, 20, 400])
def test_sound_groups_are_quiet(tmp_path: Path, count: int) -> None:
    assert found(audited(tmp_path, records(count))) == {}


@pytest.mark.parametrize(
    "change", [lambda texts: texts.pop(), lambda texts: texts.append("a cat"), lambda texts: texts.__setitem__(4, " ")]
)
def test_any_group_of_another_size_is_told(tmp_path: Path, change: Any) -> None:
    run = audited(tmp_path, spoilt(negatives(change), 0.01))
    assert run.annotations.groups.misaligned < 10
    assert "groups don't have 10 negatives" in found(run)["sizes"]


def test_nine_and_eleven_which_still_reshape(tmp_path: Path) -> None:
    made = records(100)
    groups = [
        region["short_expr_negs"] for record in made for region in record["bbox_info"] if region["flag_short_neg"]
    ]
    groups[-1]["10"] = groups[0].pop("9")
    assert sum(1 + len(group) for group in groups) % 11 == 0
    assert "1 of 9, 1 of 11" in found(audited(tmp_path, made))["sizes"]


def test_a_flag_without_negatives_and_negatives_without_a_flag(tmp_path: Path) -> None:
    assert "sizes" in found(audited(tmp_path, spoilt(lambda region: region.pop("short_expr_negs", None))))
    assert "sizes" not in found(audited(tmp_path, spoilt(negatives(lambda texts: None), 0.5)))
    masked = spoilt(lambda region: region.update(flag_short_neg=0, short_expr_negs={"0": "a cat"}), 0.5)
    assert found(audited(tmp_path, masked)) == {}


def test_other_formats_have_their_own_number(tmp_path: Path) -> None:
    def other(place: int, record: Any) -> Any:
        region = {
            "bbox": [0, 0, 1, 1],
            "phrase": "a cat",
            "hard_negatives": ["a dog", "a cow", "a hen"][: place % 9 + 2],
        }
        return {"image": record["f_path"], "caption": record["caption"], "regions": [region]}

    assert found(audited(tmp_path, [other(8, record) for record in records(20)])) == {}
    assert "sizes" in found(audited(tmp_path, [other(place, record) for place, record in enumerate(records(20))]))


def test_a_caption_among_its_negatives(tmp_path: Path) -> None:
    def contain(region: Any) -> None:
        if region["flag_short_neg"]:
            region["short_expr_negs"]["4"] = region["short_expr"].upper() + " "

    run = audited(tmp_path, spoilt(contain, 0.1))
    assert set(found(run)) == {"captions among negatives"}
    share = run.annotations.groups.contained / run.annotations.groups.judged
    assert found(run, contained=share) == {}
    assert found(run, contained=0.999 * share)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (str.capitalize, "capital letters"),
        (lambda text: text + ".", "punctuation marks"),
        (lambda text: text + " that stands there on its own", "characters"),
        (lambda text: " " + text, "blanks"),
        (lambda text: text.replace("e", "é"), "ASCII"),
    ],
)
def test_each_tell_is_found(tmp_path: Path, change: Any, word: str) -> None:
    finding = next(one for one in hard_negatives_misaligned(audited(tmp_path, spoilt(caption(change)))))
    assert any(word in one.name for one in finding.evidence)
    assert "chance is 9%" in finding.message


def test_a_tell_in_all_texts_alike_tells_nothing(tmp_path: Path) -> None:
    def both(region: Any) -> None:
        caption(str.capitalize)(region)
        negatives(lambda texts: texts.__setitem__(slice(None), [text.capitalize() for text in texts]))(region)

    assert found(audited(tmp_path, spoilt(both))) == {}


def test_a_few_groups_prove_nothing_and_some_do(tmp_path: Path) -> None:
    made = spoilt(caption(lambda text: text + "."), count=2)
    run = audited(tmp_path, made)
    assert 0 < run.annotations.groups.judged < 9
    assert found(run) == {}
    assert "leak" in found(audited(tmp_path, spoilt(caption(lambda text: text + "."), count=10)))


def test_a_leak_flips_at_the_threshold(tmp_path: Path) -> None:
    run = audited(tmp_path, spoilt(caption(lambda text: text + "."), 0.4))
    share = max(run.annotations.groups.told.values())
    assert 0.4 < share < 0.5
    assert found(run, leak=share) == {}
    assert found(run, leak=0.999 * share)


def test_capitals_tell_nothing_to_the_words_of_clip(tmp_path: Path) -> None:
    run = audited(tmp_path, spoilt(caption(str.capitalize)))
    assert "leak" in found(run)
    for rows, quiet in ((49_408, True), (256_000, False)):
        words = {"text_model.embeddings.token_embedding.weight": np.zeros((rows, 1))}
        run.checkpoints = (runs.checkpoint(words),)
        assert ("leak" not in found(run)) is quiet


def test_without_hard_negatives_it_is_skipped(tmp_path: Path) -> None:
    none = spoilt(lambda region: region.update(flag_short_neg=0), count=5)
    for run in (runs.run(), audited(tmp_path, none)):
        with pytest.raises(Missing):
            list(hard_negatives_misaligned(run))
