from __future__ import annotations

import json
import os
import random
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fgclip_doctor.annotations import Annotations
from fgclip_doctor.observations import observe
from fgclip_doctor.run import Run
from fgclip_doctor.sources import annotation_file, load
from fgclip_doctor.sources.files import Unreadable
from tests.annotated import records, spoilt


def written(tmp_path: Path, text: str | bytes, name: str = "data.json") -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def data_of(run: Run) -> Annotations:
    assert run.data is not None
    return run.data


def read(path: Path) -> Annotations:
    return data_of(annotation_file.read(path))


def said(data: Annotations) -> tuple[Any, ...]:
    return (
        data.records,
        data.malformed,
        data.regions,
        data.used,
        {name: (texts.count, texts.empty, texts.over, texts.repeats.siblings) for name, texts in data.texts.items()},
        data.boxes.sample.tolist(),
        data.groups,
    )


FORMS = {
    "array": json.dumps,
    "indented": lambda made: json.dumps(made, indent=2),
    "one a line": lambda made: "".join(json.dumps(one) + "\n" for one in made),
    "one a line, as Windows has lines": lambda made: "\ufeff" + "\r\n\r\n".join(map(json.dumps, made)),
    "not ASCII": lambda made: json.dumps(made, ensure_ascii=False),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_json_tells_the_same(tmp_path: Path, form: str) -> None:
    made = records(60)
    made[0]["caption"] = "Ein größeres Café"
    path = written(tmp_path, FORMS[form](made))
    assert annotation_file.is_annotations(path)
    assert said(read(path)) == said(read(written(tmp_path, json.dumps(made), "plain.json")))


@pytest.mark.parametrize("form", ["array", "one a line"])
def test_records_may_lie_anywhere_between_the_pieces_in_which_a_file_is_read(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = records(20)
    made[3]["caption"] = "Ærø, 狗, 🐕"
    path = written(tmp_path, FORMS[form](made) if form == "one a line" else json.dumps(made, ensure_ascii=False))
    whole = said(read(path))
    for chunk in (1, 7, 1000):
        monkeypatch.setattr(annotation_file, "CHUNK", chunk)
        assert said(read(path)) == whole


def test_what_it_holds_is_counted(tmp_path: Path) -> None:
    made = records(80)
    data = read(written(tmp_path, json.dumps(made)))
    regions = [region for record in made for region in record["bbox_info"]]
    assert data.own_format
    assert (data.records, data.malformed, data.regions) == (80, 0, len(regions))
    assert data.used == sum(min(len(record["bbox_info"]), 4) for record in made)
    assert data.groups.sizes == {10: sum(region["flag_short_neg"] for region in regions)}
    assert {name: texts.count for name, texts in data.texts.items()} == {
        "caption": 80,
        "short_caption": 80,
        "short_expr": len(regions),
        "long_expr": len(regions),
    }
    np.testing.assert_allclose(data.boxes.sample, [region["bbox"][:4] for region in regions])
    assert data.boxes.layout == ""


def test_facts_are_what_the_training_sees(tmp_path: Path) -> None:
    run = load([written(tmp_path, json.dumps(records(50)))])
    assert run.number("dataset_size") == 50
    assert run.number("regions_per_sample") == pytest.approx(run.annotations.used / 50)
    stated = load([written(tmp_path, json.dumps(records(50)))], facts={"regions_per_sample": "1.05"})
    assert stated.number("regions_per_sample") == 1.05


def test_it_is_observed_whether_or_not_anything_is_wrong(tmp_path: Path) -> None:
    run = load([written(tmp_path, json.dumps(records(50)))])
    seen, crashes = observe(run)
    values = {one.name: one.value for one in seen}
    assert crashes == []
    assert values["data: images"] == 50
    assert values["data: regions per image"] == pytest.approx(run.annotations.used / 50, abs=1e-3)
    assert values["data: boxes"] == "x1, y1, x2, y2, normalised"
    assert values["data: short_caption that occurs once"] == "100.0%"


@pytest.mark.parametrize(
    ("box", "kind"),
    [
        ([0.6, 0.2, 0.1, 0.9], "inverted"),
        ([0.1, 0.2, 0.1, 0.9], "empty"),
        ([0.1, 0.2, 0.6, 1.2], "outside"),
        ([0.1, 0.2, 0.3], "malformed"),
        ([0.1, 0.2, float("nan"), 0.4], "malformed"),
        ([0.1, "0.2", 0.3, 0.4], "malformed"),
        ([0.1, 0.2, 0.3, True], "malformed"),
        (None, "malformed"),
        ([0.0, 0.0, 1.0005, 1], ""),
        ([0, 0, 1, 1, 0.9, 7], ""),
    ],
)
def test_each_kind_of_bad_box_is_told(tmp_path: Path, box: object, kind: str) -> None:
    boxes = read(written(tmp_path, json.dumps(spoilt(lambda region: region.update(bbox=box), count=20)))).boxes
    counted = {name: getattr(boxes, name) for name in ("malformed", "inverted", "empty", "outside")}
    assert counted == dict.fromkeys(counted, 0) | ({kind: boxes.count} if kind else {})


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "empty"),
        (" ...\n", "empty"),
        (None, "empty"),
        (7, "empty"),
        ("狗在公园里跑", "foreign"),
        ("Кот на ковре, a cat", "foreign"),
        ("cafÃ© with a terrace", "garbled"),
        ("a dog\u2019s bowl", ""),
        ("itâ€™s a dog", "garbled"),
        ("a do\ufffd", "garbled"),
        ("Ærø og Ĳsselmeer, größer als Çanakkale, tiếng Việt", ""),
        ("SÃO PAULO, Â, fenêtre", ""),
        ("a cat 🐈🐈🐈", ""),
        ("42", ""),
    ],
)
def test_each_kind_of_unreadable_text_is_told(tmp_path: Path, text: object, kind: str) -> None:
    made = [record | {"caption": text} for record in records(20)]
    texts = read(written(tmp_path, json.dumps(made))).texts["caption"]
    counted = {name: getattr(texts, name) for name in ("empty", "foreign", "garbled")}
    assert counted == dict.fromkeys(counted, 0) | ({kind: 20} if kind else {})


def test_records_for_another_vocabulary_may_be_in_its_script(tmp_path: Path) -> None:
    made = [record | {"caption": "狗在公园里跑", "is_cn": 1} for record in records(20)]
    assert read(written(tmp_path, json.dumps(made))).texts["caption"].foreign == 0


def test_the_length_of_texts_is_never_over_that_in_tokens(tmp_path: Path) -> None:
    tokenizer = pytest.importorskip("instant_clip_tokenizer", reason="has wheels for Python 3.11 and 3.12 only")
    encode = tokenizer.Tokenizer().encode
    texts = [record["caption"] for record in records(40)] + ["it's 12:30, isn't_it?! (so-called) co2 ½", "a" * 80]
    for text in texts:
        pieces = annotation_file._pieces(text)
        assert pieces <= len(encode(text)), text
        if text[0] == "T":
            assert pieces >= 0.8 * len(encode(text)), text


def test_truncation_is_told_by_context(tmp_path: Path) -> None:
    made = records(30)
    for record in made[:15]:
        record["caption"] = "a dog and " * 90  # 270 words
    texts = read(written(tmp_path, json.dumps(made))).texts["caption"]
    assert texts.over[248] == 0.5
    assert read(written(tmp_path, json.dumps([record | {"caption": "word " * 75} for record in made]))).texts[
        "caption"
    ].over == {77: 0.0, 248: 0.0}
    assert (
        read(written(tmp_path, json.dumps([record | {"caption": "word " * 76} for record in made])))
        .texts["caption"]
        .over[77]
        == 1.0
    )


def test_other_names_for_the_same_are_understood(tmp_path: Path) -> None:
    made = [
        {
            "image": record["f_path"],
            "caption": [record["caption"], "another"],
            "regions": [
                {"box": region["bbox"], "phrase": region["short_expr"], "hard_negatives": ["x1", "x2", "x3"]}
                for region in record["bbox_info"]
            ],
        }
        for record in records(30)
    ]
    path = written(tmp_path, json.dumps(made))
    assert annotation_file.is_annotations(path)
    data = read(path)
    assert not data.own_format
    assert data.texts.keys() == {"caption", "short_expr"}
    assert data.groups.expected == 3
    assert data.boxes.malformed == data.boxes.outside == 0


def test_pairs_of_an_image_and_a_caption_are_annotations_too(tmp_path: Path) -> None:
    path = written(tmp_path, '{"image": "1.jpg", "caption": "a cat"}\n{"image": "2.jpg", "caption": "a dog"}\n')
    run = load([path])
    assert run.annotations.records == 2
    assert run.annotations.regions == 0
    assert "regions_per_sample" not in run.facts


@pytest.mark.parametrize(
    "text",
    [
        '{"loss": 1.5, "step": 10}\n{"loss": 1.4, "step": 20}\n',
        '{"log_history": [], "global_step": 5}',
        "[1, 2, 3]",
        "a caption of nothing",
        '{"caption": "a cat"}',  # of which image?
        '{"step": 10, "loss": 1.5, "image": "1.jpg", "caption": "a cat"}',
        "",
        "[",
        "[" * 100_000,
        '{"a":' * 50_000,
    ],
)
def test_other_files_are_none(tmp_path: Path, text: str) -> None:
    assert not annotation_file.is_annotations(written(tmp_path, text))


def test_a_first_record_that_is_longer_than_the_head_is_recognised(tmp_path: Path) -> None:
    made = records(3)
    made[0]["bbox_info"] *= 200
    path = written(tmp_path, json.dumps(made))
    assert path.stat().st_size > annotation_file.HEAD
    assert annotation_file.is_annotations(path)


def test_a_directory_is_read_as_one(tmp_path: Path) -> None:
    made = records(40)
    (tmp_path / "notes.txt").write_text("nothing")
    folder = tmp_path / "parts"
    folder.mkdir()
    written(folder, json.dumps(made[:20]), "a.json")
    written(folder, FORMS["one a line"](made[20:]), "b.jsonl")
    assert said(read(folder)) == said(read(written(tmp_path, json.dumps(made))))


def test_a_torn_array_tells_what_stands_before(tmp_path: Path) -> None:
    text = json.dumps(records(40))
    run = load([written(tmp_path, text[: len(text) // 2])])
    assert 10 < run.annotations.records < 30
    (problem,) = run.problems
    assert problem.startswith(str(tmp_path / "data.json"))
    assert "no JSON array to its end" in problem


def test_lines_that_are_no_json_are_counted(tmp_path: Path) -> None:
    lines = [json.dumps(record) for record in records(20)]
    lines[5] = lines[5][:50]
    lines[6] = "[" * 10_000
    lines[7] = '{"f_path": 7, "n": ' + "9" * 5000 + "}"
    data = read(written(tmp_path, "\n".join(lines)))
    assert (data.records, data.malformed) == (20, 3)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("[]"),
        lambda path: path.write_text('[{"f_path": 7}]'),
        lambda path: path.write_text('["caption"'),
        lambda path: path.write_text("{" * 100_000),
        lambda path: path.unlink(),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: (path.unlink(), os.mkfifo(path)),
        lambda path: (path.unlink(), path.symlink_to(path)),
    ],
)
def test_what_is_no_annotations_is_refused_in_one_line(tmp_path: Path, spoil: Any) -> None:
    path = written(tmp_path, "")
    spoil(path)
    with pytest.raises(Unreadable) as refused:
        annotation_file.read(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert "\n" not in str(refused.value)


HOSTILE = (None, [], {}, "", "x", -1, 1e400, float("nan"), True, [[]], {"a": 1}, "\ud800", "\x00", ["\ud800"], 10**400)


def test_no_value_anywhere_crashes_it(tmp_path: Path) -> None:
    draw = random.Random(0)
    for seed in range(40):
        made = records(4, seed)
        for record in made[1:]:
            places: list[Any] = [record, *record["bbox_info"]]
            place = draw.choice(places)
            place[draw.choice(list(place))] = draw.choice(HOSTILE)
        for form in ("array", "one a line"):
            data = read(written(tmp_path, FORMS[form](made)))
            assert data.records == 4
            assert data.boxes.layout is not None
            for texts in data.texts.values():
                assert texts.repeats.among(50).share <= 1.0


def test_memory_does_not_grow_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotation_file, "CHUNK", 1 << 16)
    monkeypatch.setattr(annotation_file._TextCensus, "EXAMPLES", 256)
    monkeypatch.setattr(annotation_file._TextCensus, "HASHES", 256)
    monkeypatch.setattr(annotation_file._Census, "BOXES", 256)
    monkeypatch.setattr(annotation_file._GroupCensus, "GROUPS", 64)
    lines = FORMS["one a line"](records(200))
    peaks = []
    for times in (4, 16):
        path = written(tmp_path, lines * times, "data.jsonl")
        tracemalloc.start()
        read(path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


def test_a_sample_tells_of_repeats_what_all_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = spoilt(lambda region: region.update(short_expr="a car"), share=0.2, count=2000)
    path = written(tmp_path, json.dumps(made))
    whole = read(path).texts["short_expr"].repeats.among(20)
    monkeypatch.setattr(annotation_file._TextCensus, "HASHES", 1000)
    part = read(path).texts["short_expr"].repeats
    assert part.total < 1000
    assert part.among(20).share == pytest.approx(whole.share, abs=0.03)
    assert part.among(20).floor == pytest.approx(whole.floor, abs=0.06)


def test_whoever_watches_is_told_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotation_file, "CHUNK", 1 << 14)
    path = written(tmp_path, json.dumps(records(60)))
    seen: list[tuple[int, int]] = []
    with annotation_file.watched(lambda done, total: seen.append((done, total))):
        read(path)
    size = path.stat().st_size
    assert seen == [(min((place + 1) << 14, size), size) for place in range(len(seen))]
    assert seen[-1] == (size, size)
