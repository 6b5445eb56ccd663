from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fgclip_doctor.run import Missing, Run
from fgclip_doctor_checks.data.box_frame_wrong import box_frame_wrong
from tests import runs
from tests.annotated import audited, records, spoilt


def messages(run: Run, **thresholds: float) -> list[str]:
    return [finding.message for finding in box_frame_wrong(run, **thresholds)]


def pixels(region: Any) -> None:
    region["bbox"] = [round(at * side) for at, side in zip(region["bbox"], (640, 480, 640, 480), strict=False)]


def thousandths(region: Any) -> None:
    region["bbox"] = [round(at * 1000) for at in region["bbox"][:4]]


def percent(region: Any) -> None:
    region["bbox"] = [at * 100 for at in region["bbox"][:4]]


def sizes(region: Any) -> None:
    left, top, right, bottom = region["bbox"][:4]
    region["bbox"] = [left, top, right - left, bottom - top]


def centres(region: Any) -> None:
    left, top, right, bottom = region["bbox"][:4]
    region["bbox"] = [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]


def pixel_sizes(region: Any) -> None:
    sizes(region)
    pixels(region)


@pytest.mark.parametrize(
    ("change", "layout"),
    [
        (pixels, "in pixels"),
        (thousandths, "in thousandths"),
        (percent, "in percent"),
        (sizes, "x, y, width, height,"),
        (centres, "centre, width, height,"),
        (pixel_sizes, "with width, height, in pixels"),
    ],
)
def test_each_other_frame_is_named(tmp_path: Path, change: Any, layout: str) -> None:
    (message,) = messages(audited(tmp_path, spoilt(change)))
    assert f"The boxes are {layout}" in message


@pytest.mark.parametrize("count", [1, 5, 300])
def test_sound_boxes_are_quiet(tmp_path: Path, count: int) -> None:
    assert messages(audited(tmp_path, records(count))) == []


def test_some_swapped_corners_are_another_fault(tmp_path: Path) -> None:
    def swap(region: Any) -> None:
        region["bbox"][0], region["bbox"][2] = region["bbox"][2], region["bbox"][0]

    assert messages(audited(tmp_path, spoilt(swap, 0.2))) == []


def test_mixed_frames_are_told_and_flip_at_the_threshold(tmp_path: Path) -> None:
    run = audited(tmp_path, spoilt(pixels, 0.1))
    (message,) = messages(run)
    assert "two frames are mixed" in message
    large = run.annotations.boxes.large
    assert messages(run, share=large) == []
    assert messages(run, share=0.999 * large)


def test_other_formats_have_their_own_frame_but_only_one(tmp_path: Path) -> None:
    def other(record: Any) -> Any:
        boxes = [{"bbox": region["bbox"], "phrase": region["short_expr"]} for region in record["bbox_info"]]
        return {"image": record["f_path"], "caption": record["caption"], "objects": boxes}

    for change in (pixels, pixel_sizes):
        assert messages(audited(tmp_path, [other(record) for record in spoilt(change)])) == []
    assert messages(audited(tmp_path, [other(record) for record in spoilt(pixels, 0.3)]))


def test_without_boxes_it_is_skipped(tmp_path: Path) -> None:
    for run in (runs.run(), audited(tmp_path, [record | {"bbox_info": []} for record in records(5)])):
        with pytest.raises(Missing):
            list(box_frame_wrong(run))
