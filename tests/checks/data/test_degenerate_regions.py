from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fgclip_doctor.run import Missing, Run
from fgclip_doctor_checks.data.degenerate_regions import degenerate_regions
from tests import runs
from tests.annotated import audited, records, spoilt


def found(run: Run, **thresholds: float) -> dict[str, Any]:
    return {
        finding.where.rpartition("boxes ")[2]: finding.evidence[0].value
        for finding in degenerate_regions(run, **thresholds)
    }


def boxed(at: int, value: float) -> Any:
    return lambda region: region["bbox"].__setitem__(at, value)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (boxed(2, -0.0), "inverted"),
        (lambda region: boxed(2, region["bbox"][0])(region), "of no area"),
        (boxed(3, 1.2), "outside the image"),
        (boxed(0, float("nan")), "not four finite numbers"),
        (lambda region: region.pop("bbox"), "not four finite numbers"),
    ],
)
def test_each_kind_is_found(tmp_path: Path, change: Any, kind: str) -> None:
    assert list(found(audited(tmp_path, spoilt(change, 0.04)))) == [kind]


@pytest.mark.parametrize("count", [1, 300])
def test_sound_boxes_are_quiet(tmp_path: Path, count: int) -> None:
    assert found(audited(tmp_path, records(count))) == {}


def test_whole_images_and_boxes_a_little_over_the_edge_are_sound(tmp_path: Path) -> None:
    assert found(audited(tmp_path, spoilt(lambda region: region.update(bbox=[0, 0, 1, 1])))) == {}
    assert found(audited(tmp_path, spoilt(boxed(3, 1.0009)))) == {}
    assert found(audited(tmp_path, spoilt(boxed(3, 1.01), 0.01))) == {}


def test_it_flips_at_the_threshold(tmp_path: Path) -> None:
    run = audited(tmp_path, spoilt(boxed(2, -0.0), 0.04))
    share = run.annotations.boxes.inverted / run.annotations.boxes.count
    assert found(run, share=share) == {}
    assert found(run, share=0.999 * share)


def test_another_frame_is_not_told_twice(tmp_path: Path) -> None:
    def size(region: Any) -> None:
        left, top, right, bottom = region["bbox"][:4]
        region["bbox"] = [left, top, right - left, bottom - top]

    assert found(audited(tmp_path, spoilt(size))) == {}


def test_a_mixed_frame_explains_boxes_outside(tmp_path: Path) -> None:
    run = audited(tmp_path, spoilt(lambda region: region.update(bbox=[10, 20, 300, 200]), 0.1))
    (finding,) = degenerate_regions(run)
    assert finding.explained_by == ("FGD604",)


def test_without_boxes_it_is_skipped(tmp_path: Path) -> None:
    for run in (runs.run(), audited(tmp_path, [record | {"bbox_info": []} for record in records(5)])):
        with pytest.raises(Missing):
            list(degenerate_regions(run))
