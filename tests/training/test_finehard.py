from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fgclip_doctor.core import pretrained
from fgclip_doctor.core.config import FgclipConfig, TextConfig
from fgclip_doctor.training.checkpointing import latest
from fgclip_doctor.training.data import PIXEL_MEAN, PIXEL_STD, collate, micro_batches, pixels
from fgclip_doctor.training.finehard import PROBLEMS, Census, FineHard, Rejected, read_image, survey
from fgclip_doctor.training.loop import train
from fgclip_doctor.training.settings import TrainConfig

pytest.importorskip("instant_clip_tokenizer", reason="has wheels for Python 3.11 and 3.12 only")
from fgclip_doctor.training.tokenizer import ClipTokenizer

SIDE = 48
NAMES = ("a cat", "a dog", "a tall tree", "an old car", "a wooden chair", "a lamp")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "white", "black", "grey")
NEGATIVES = [f"a {colour} thing" for colour in COLOURS]
TOKENIZER = ClipTokenizer()


def region(name: str, **changes: Any) -> dict[str, Any]:
    """A good region, in the form in which FineHARD has them: with a score, and the negatives in an object."""
    negatives = {str(number): text for number, text in enumerate(NEGATIVES)}
    good = {
        "bbox": [0.1, 0.2, 0.6, 0.9, 0.87],
        "short_expr": name,
        "long_expr": f"{name} that stands in front of a wall",
        "flag_short_neg": 1,
        "short_expr_negs": negatives,
    }
    return good | changes


def record(number: int, **changes: Any) -> dict[str, Any]:
    name = NAMES[number % len(NAMES)]
    good = {
        "f_path": f"{number % 2}/{number}.png",
        "caption": f"This is image number {number}, and it shows {name} before a wall of bricks.",
        "short_caption": f"{name} and number {number}",
        "bbox_info": [region(name), region(f"the wall of {name}", flag_short_neg=0, short_expr_negs={})],
    }
    return good | changes


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Twelve small images in two folders."""
    rng = np.random.default_rng(0)
    for number in range(12):
        path = tmp_path / "images" / f"{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20 + number, 30, 3), dtype=np.uint8)).save(path)
    return tmp_path / "images"


def surveyed(images: Path, records: list[Any], **settings: Any) -> tuple[FineHard, Census]:
    path = images.parent / "data.json"
    path.write_text(json.dumps(records))
    return survey(path, images, side=SIDE, tokenizer=TOKENIZER, **settings)


def problems(census: Census) -> dict[str, int]:
    return {name: count for name, count in census.problems.items() if count}


def test_a_record_becomes_a_sample(images: Path) -> None:
    dataset, census = surveyed(images, [record(number) for number in range(12)])
    assert (census.records, census.samples, census.regions, census.groups) == (12, 12, 24, 12)
    assert problems(census) == {}
    assert census.rejected == []
    sample = dataset[3]
    assert sample.image.shape == (3, SIDE, SIDE)
    assert sample.long_caption == "This is image number 3, and it shows an old car before a wall of bricks."
    assert sample.short_caption == "a photo of an old car and number 3"
    first, second = sample.regions
    assert first.box == (0.1, 0.2, 0.6, 0.9)
    assert (first.caption, first.long_caption) == ("an old car", "an old car that stands in front of a wall")
    assert first.negatives == tuple(NEGATIVES)
    assert second.negatives == ()  # masked by its flag


BAD_SAMPLES: dict[str, list[dict[str, Any]]] = {
    "record-malformed": [{"f_path": 7}, {"bbox_info": "none"}],
    "image-missing": [{"f_path": "0/nowhere.png"}, {"f_path": "0"}, {"f_path": "0/\0.png"}, {"f_path": "x" * 5000}],
    "image-outside-folder": [{"f_path": "../outside.png"}, {"f_path": "/etc/hostname"}, {"f_path": "0/link.png"}],
    "image-unreadable": [{"f_path": "0/torn.png"}, {"f_path": "0/text.png"}],
    "caption-empty": [{"caption": ""}, {"caption": " ...\n"}, {"short_caption": None}],
    "caption-not-latin": [{"caption": "狗在公园里跑"}, {"short_caption": "Кот на ковре, a cat"}],
}
BAD_REGIONS: dict[str, list[dict[str, Any]]] = {
    "box-malformed": [
        {"bbox": [0.1, 0.2, 0.3]},
        {"bbox": None},
        {"bbox": [0.1, "0.2", 0.3, 0.4]},
        {"bbox": [0.1, float("nan"), 0.3, 0.4]},
    ],
    "box-inverted": [{"bbox": [0.6, 0.2, 0.1, 0.9]}, {"bbox": [0.1, 0.9, 0.6, 0.2]}],
    "box-out-of-range": [{"bbox": [10, 20, 300, 200]}, {"bbox": [-0.2, 0.1, 0.5, 0.5]}, {"bbox": [0, 0, 10**400, 1]}],
    "box-zero-area": [{"bbox": [0.1, 0.2, 0.1, 0.9]}, {"bbox": [0.1, 1.0002, 0.5, 1.0005]}],
    "region-caption-empty": [{"short_expr": " "}],
    "region-caption-not-latin": [{"short_expr": "собака"}],
}
BAD_NEGATIVES: dict[str, list[dict[str, Any]]] = {
    "negatives-not-ten": [
        {"short_expr_negs": NEGATIVES[:9]},
        {"short_expr_negs": [*NEGATIVES[:9], ""]},
        {"short_expr_negs": [*NEGATIVES, "a pink thing"]},
        {"short_expr_negs": None},
    ],
    "negative-is-caption": [{"short_expr_negs": [*NEGATIVES[:9], "A cat "]}],
}
KEPT: dict[str, dict[str, Any]] = {
    "caption-truncated": {"caption": "very " * 300 + "long"},
    "region-caption-truncated": {"bbox_info": [region("a very " + "very " * 80 + "long region")]},
    "caption-duplicate": {"caption": record(0)["caption"]},
}


def test_every_problem_is_tested() -> None:
    assert [*BAD_SAMPLES, *BAD_REGIONS, *BAD_NEGATIVES, *KEPT] == [*PROBLEMS]


@pytest.mark.parametrize(
    ("problem", "changes"), [(name, one) for name, every in BAD_SAMPLES.items() for one in every], ids=str
)
def test_a_bad_sample_is_rejected_by_name(problem: str, changes: dict[str, Any], images: Path) -> None:
    data = (images / "0" / "0.png").read_bytes()
    (images / "0" / "torn.png").write_bytes(data[: len(data) // 2])
    (images / "0" / "text.png").write_text("%!PS not an image")
    (images.parent / "outside.png").write_bytes(data)
    (images / "0" / "link.png").symlink_to(images.parent / "outside.png")
    dataset, census = surveyed(images, [record(0), record(1, **changes), record(2)])
    assert problems(census) == {problem: 1}
    assert (census.records, census.samples) == (3, 2)
    [(name, reason)] = census.rejected
    path = changes.get("f_path", "1/1.png")
    assert name == (path if isinstance(path, str) else f"data.json, byte {len(json.dumps(record(0))) + 3}")
    assert reason.startswith(f"{problem}: ")
    captions = [dataset[index].long_caption for index in range(len(dataset))]
    assert captions == [record(0)["caption"], record(2)["caption"]]  # nothing took its place


@pytest.mark.parametrize(
    ("problem", "changes"), [(name, one) for name, every in BAD_REGIONS.items() for one in every], ids=str
)
def test_a_bad_region_is_dropped_and_its_sample_stays(problem: str, changes: dict[str, Any], images: Path) -> None:
    regions = [region("a cat", **changes), region("a dog")]
    dataset, census = surveyed(images, [record(0, bbox_info=regions), record(1, bbox_info=[])])
    assert problems(census) == {problem: 1}
    assert (census.samples, census.regions) == (2, 1)
    assert [one.caption for one in dataset[0].regions] == ["a dog"]


@pytest.mark.parametrize(
    ("problem", "changes"), [(name, one) for name, every in BAD_NEGATIVES.items() for one in every], ids=str
)
def test_bad_negatives_are_dropped_and_their_region_stays(problem: str, changes: dict[str, Any], images: Path) -> None:
    dataset, census = surveyed(images, [record(0, bbox_info=[region("a cat", **changes)])])
    assert problems(census) == {problem: 1}
    assert [(one.caption, one.negatives) for one in dataset[0].regions] == [("a cat", ())]


@pytest.mark.parametrize("problem", KEPT)
def test_what_costs_nothing_is_counted_and_kept(problem: str, images: Path) -> None:
    dataset, census = surveyed(images, [record(0), record(1, **KEPT[problem])])
    assert problems(census) == {problem: 1}
    assert len(dataset) == census.samples == 2


def test_boxes_are_cut_to_the_image_where_only_rounding_left_it(images: Path) -> None:
    dataset, census = surveyed(images, [record(0, bbox_info=[region("a cat", bbox=[-0.0004, 0, 1, 1.0004])])])
    assert problems(census) == {}
    assert dataset[0].regions[0].box == (0.0, 0.0, 1.0, 1.0)


def test_no_image_has_more_regions_than_asked_for(images: Path) -> None:
    regions = [region(f"region {number}") for number in range(6)]
    assert len(surveyed(images, [record(0, bbox_info=regions)])[0][0].regions) == 4
    assert len(surveyed(images, [record(0, bbox_info=regions)], max_regions=5)[0][0].regions) == 5


def as_lines(records: list[Any]) -> str:
    return "\n".join(map(json.dumps, records)) + "\n\n"


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
@pytest.mark.parametrize(
    "text",
    [
        json.dumps,
        lambda records: "\ufeff  " + json.dumps(records, indent=1, ensure_ascii=False),
        as_lines,
        lambda records: as_lines(records).replace("\n", "\r\n"),
    ],
    ids=["array", "indented", "lines", "crlf"],
)
def test_arrays_and_lines_are_told_apart_by_what_they_hold(
    name: str, text: Callable[[list[Any]], str], images: Path
) -> None:
    records = [record(number, caption=f"Ünïcode “quotes” {number} and a \\ and ]") for number in range(5)]
    path = images.parent / name
    path.write_bytes(text(records).encode())
    dataset, _ = survey(path, images, side=SIDE, tokenizer=TOKENIZER)
    assert [dataset[index].long_caption for index in range(5)] == [one["caption"] for one in records]


def test_a_directory_is_all_of_its_files(images: Path) -> None:
    folder = images.parent / "jsonfiles"
    folder.mkdir()
    (folder / "b.jsonl").write_text(as_lines([record(2)]))
    (folder / "a.json").write_text(json.dumps([record(0), record(1)]))
    (folder / "notes.txt").write_text("nothing")
    dataset, _ = survey(folder, images, side=SIDE, tokenizer=TOKENIZER)
    assert [dataset[index].long_caption for index in range(3)] == [record(number)["caption"] for number in range(3)]


def test_a_broken_line_is_rejected_by_its_place(images: Path) -> None:
    lines = [json.dumps(record(0)), '{"f_path": ', "[" * 100_000, '"\\ud83d"', "\xff", "7", json.dumps(record(1))]
    path = images.parent / "data.jsonl"
    path.write_bytes("\n".join(lines).encode("latin-1"))
    dataset, census = survey(path, images, side=SIDE, tokenizer=TOKENIZER)
    assert len(dataset) == 2
    assert problems(census) == {"record-malformed": 5}
    assert census.rejected[0][0] == f"data.jsonl, byte {len(lines[0]) + 1}"


@pytest.mark.parametrize("text", ["[", '[{"f_path": 1}', '[{"f_path": 1} x]', "[" * 100_000])
def test_a_broken_array_says_so_in_one_line(text: str, images: Path) -> None:
    path = images.parent / "data.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"^{path}: not JSON: .*$"):
        survey(path, images, side=SIDE, tokenizer=TOKENIZER)


def test_nothing_to_train_on_is_an_error(images: Path) -> None:
    with pytest.raises(ValueError, match=r"no sample can be used: 0 of 2 .*2 image-missing \(sample rejected\)"):
        surveyed(images, [record(0, f_path="a"), record(1, f_path="b")])
    with pytest.raises(FileNotFoundError, match="no such file"):
        survey(images / "nowhere.json", images, side=SIDE, tokenizer=TOKENIZER)
    os.mkfifo(images / "pipe.json")
    with pytest.raises(FileNotFoundError, match="no such file"):
        survey(images / "pipe.json", images, side=SIDE, tokenizer=TOKENIZER)


def test_an_image_torn_after_the_survey_stops_the_run(images: Path) -> None:
    dataset, census = surveyed(images, [record(0)], decode_images=False)
    assert problems(census) == {}
    path = images / "0" / "0.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(Rejected, match=rf"image-unreadable: {path}"):
        dataset[0]


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
def test_pixels_are_those_of_clips_image_processor(mode: str, images: Path) -> None:
    """Of the image that was squeezed to a square before, as FG-CLIP does."""
    from transformers import CLIPImageProcessor

    path = images / f"{mode}.png"
    with Image.open(images / "1" / "11.png") as original:
        original.convert(mode).save(path)
    processor = CLIPImageProcessor(
        size={"shortest_edge": SIDE}, crop_size=SIDE, image_mean=PIXEL_MEAN, image_std=PIXEL_STD
    )
    with Image.open(path) as image:
        square = image.convert("RGB").resize((SIDE, SIDE))
    expected = processor(square, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels([read_image(path, SIDE)]), expected, atol=1e-5, rtol=0)


def test_long_region_captions_are_drawn_anew_every_epoch(images: Path) -> None:
    dataset, _ = surveyed(images, [record(number) for number in range(12)])
    samples = [dataset[index] for index in range(12)]

    def captions(draw: int | None, some: slice = slice(None)) -> list[list[int]]:
        batch = collate(samples[some], TOKENIZER, draw=draw)
        first = [batch.text_ids[index].tolist() for index in batch.hard_index[:, 0]]
        assert [row[: row.index(49407) + 1] for row in first] == [
            TOKENIZER.encode(one.regions[0].caption) for one in samples[some]
        ]  # the group of hard negatives begins with the short caption, whatever is drawn
        rows = [batch.text_ids[index].tolist() for index in batch.region_index]
        return [row[: row.index(49407)] for row in rows]

    plain, epochs = captions(None), [captions(draw) for draw in range(8)]
    assert plain == [TOKENIZER.encode(one.caption)[:-1] for sample in samples for one in sample.regions]
    assert epochs[0] == captions(0)
    assert epochs[0][8:16] == captions(0, slice(4, 8))  # whatever else is in the batch
    assert epochs[0] != epochs[1]
    long = np.mean([row != short for epoch in epochs for row, short in zip(epoch, plain, strict=True)])
    assert 0.4 < long < 0.6  # of 192 draws; by chance outside in fewer than 1 of 100 such tests


def test_workers_change_nothing(images: Path) -> None:
    dataset, _ = surveyed(images, [record(number) for number in range(12)])
    before = torch.random.get_rng_state()
    batches = [micro_batches(dataset, TOKENIZER, size=5, seed=3, start=1, workers=workers) for workers in (0, 2)]
    for _ in range(4):  # into the third epoch
        alone, made_ahead = map(next, batches)
        for name in ("pixel_values", "long_ids", "text_ids", "short_index", "boxes", "region_index", "hard_index"):
            assert torch.equal(getattr(alone, name), getattr(made_ahead, name)), name
    assert torch.equal(torch.random.get_rng_state(), before)


def settings(images: Path, directory: Path, **changes: Any) -> TrainConfig:
    records = [record(number) for number in range(11)]
    records += [record(11, bbox_info=[]), record(12), record(3, caption="狗在公园里跑")]
    path = images.parent / "data.jsonl"
    path.write_text(as_lines(records))
    tiny = FgclipConfig.preset("tiny")
    text = replace(TextConfig(), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)
    config = TrainConfig(
        output_dir=directory,
        model=tiny.with_changes(text_config=text, use_memory_bank=True, memory_bank_size=20),
        data=path,
        images=images,
        max_steps=4,
        micro_batch=4,
        accumulation=2,
        warmup_steps=1,
        save_steps=2,
    )
    return replace(config, **changes)


def test_training_on_files_end_to_end(images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        run = train(settings(images, tmp_path / "run"))
    assert "12 of 14 samples with 22 regions, 11 with hard negatives" in caplog.text
    report = json.loads((run / "data_report.json").read_text())
    assert (report["records"], report["samples"], report["regions"]) == (14, 12, 22)
    assert {name for name, count in report["problems"].items() if count} == {"image-missing", "caption-not-latin"}
    assert [one["name"] for one in report["rejected"]] == ["0/12.png", "1/3.png"]
    state = json.loads((latest(run) / "trainer_state.json").read_text())
    assert state["epoch"] == pytest.approx(4 * 2 * 4 / 12)
    losses = [entry["loss"] for entry in state["log_history"]]
    assert losses[-1] < losses[0]
    assert {entry["candidates_hard"] for entry in state["log_history"]} == {11}
    arguments = torch.load(latest(run) / "training_args.bin", weights_only=True)
    assert (arguments["dataset_size"], arguments["regions_per_sample"]) == (12, pytest.approx(22 / 12))


def test_a_resumed_run_on_files_is_bit_identical(images: Path, tmp_path: Path) -> None:
    whole = train(settings(images, tmp_path / "whole"))
    halves = tmp_path / "halves"
    halves.mkdir()
    (whole / "checkpoint-2").rename(halves / "checkpoint-2")
    train(settings(images, halves, resume=True, workers=1))
    one, other = (pretrained.read(path / "checkpoint-4") for path in (whole, halves))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_text_tower_of_another_vocabulary_is_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ends texts with 63, CLIP's tokenizer 49407"):
        train(settings(images, tmp_path / "run", model=FgclipConfig.preset("tiny")))
