from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fgclip_doctor.run import Missing, Run
from fgclip_doctor_checks.data.caption_unreadable import caption_unreadable
from tests import runs
from tests.annotated import audited, records

LATIN = "Un café à Zürich, größer als Ærø, où l'œuvre naïve – „schön“ – costs 5 €"


def found(run: Run, **thresholds: float) -> set[str]:
    return {finding.where.rpartition(": ")[2] for finding in caption_unreadable(run, **thresholds)}


def spoilt(key: str, text: Any, every: int = 10) -> list[Any]:
    return [record | ({key: text} if place % every == 0 else {}) for place, record in enumerate(records(200))]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "caption empty"),
        (None, "caption empty"),
        ("狗在公园里跑", "caption in another script than Latin"),
        ("a cafÃ© by the sea", "caption garbled"),
        ("many words " * 130, "caption longer than 248 tokens"),
    ],
)
def test_each_kind_is_found(tmp_path: Path, text: Any, what: str) -> None:
    assert found(audited(tmp_path, spoilt("caption", text, every=8))) == {what}


def test_a_caption_that_is_missing_in_some_records_is_empty(tmp_path: Path) -> None:
    made = records(100)
    for record in made[:20]:
        del record["short_caption"]
    assert found(audited(tmp_path, made)) == {"short_caption empty"}
    for record in made:
        record.pop("short_caption", None)
    assert found(audited(tmp_path, made)) == set()


@pytest.mark.parametrize("count", [1, 300])
def test_sound_captions_are_quiet(tmp_path: Path, count: int) -> None:
    assert (
        found(audited(tmp_path, [record | {"caption": LATIN + record["caption"]} for record in records(count)]))
        == set()
    )


def test_short_texts_have_the_short_context(tmp_path: Path) -> None:
    text = "many words " * 45
    assert found(audited(tmp_path, spoilt("caption", text, every=5))) == set()
    assert found(audited(tmp_path, spoilt("short_caption", text, every=5))) == {"short_caption longer than 77 tokens"}


def test_a_tower_without_long_positions_reads_77_tokens_of_a_caption(tmp_path: Path) -> None:
    run = audited(tmp_path, spoilt("caption", "many words " * 45, every=5))
    for rows, expected in ((77, {"caption longer than 77 tokens"}), (248, set())):
        run.checkpoints = (runs.checkpoint({"text_model.embeddings.position_embedding.weight": np.zeros((rows, 4))}),)
        assert found(run) == expected


def test_another_vocabulary_reads_other_scripts(tmp_path: Path) -> None:
    run = audited(tmp_path, spoilt("caption", "狗在公园里跑"))
    for rows, expected in ((250_002, set()), (49_408, {"caption in another script than Latin"})):
        words = {"text_model.embeddings.token_embedding.weight": np.zeros((rows, 1))}
        run.checkpoints = (runs.checkpoint(words),)
        assert found(run) == expected


@pytest.mark.parametrize(("name", "text"), [("empty", ""), ("foreign", "狗"), ("garbled", "cafÃ©")])
def test_it_flips_at_each_threshold(tmp_path: Path, name: str, text: str) -> None:
    run = audited(tmp_path, spoilt("caption", text))
    assert found(run, **{name: 0.1}) == set()
    assert len(found(run, **{name: 0.0999})) == 1


def test_truncation_flips_at_its_threshold(tmp_path: Path) -> None:
    run = audited(tmp_path, spoilt("caption", "many words " * 130))
    assert found(run) == set()
    assert len(found(run, truncated=0.0999)) == 1


def test_without_captions_it_is_skipped() -> None:
    with pytest.raises(Missing):
        list(caption_unreadable(runs.run()))
