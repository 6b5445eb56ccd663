from __future__ import annotations

from math import log, log2
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fgclip_doctor.run import Missing, Run
from fgclip_doctor_checks.data.duplicate_captions import duplicate_captions
from tests import runs
from tests.annotated import audited, records, spoilt


def found(run: Run, **thresholds: float) -> dict[str, tuple[Any, Any]]:
    """What repeats too often: the share of anchors that meet a copy, and the least loss."""
    return {
        finding.where.rpartition(": ")[2]: (finding.evidence[0].value, finding.evidence[1].value)
        for finding in duplicate_captions(run, **thresholds)
    }


def say_a_car(region: dict[str, Any]) -> None:
    region |= {"short_expr": "A car ", "long_expr": "a car on a road"}


@pytest.mark.parametrize("count", [3, 40, 600])
def test_sound_data_is_quiet_at_any_size(tmp_path: Path, count: int) -> None:
    assert found(audited(tmp_path, records(count), micro_batch=64, world_size=4, bank_size=4096)) == {}


def test_repeats_that_a_batch_rarely_meets_are_no_finding(tmp_path: Path) -> None:
    made = records(600)
    for place in range(0, 60, 2):
        made[place]["short_caption"] = made[place + 1]["short_caption"]  # a tenth of all, in pairs
    assert found(audited(tmp_path, made, micro_batch=4)) == {}
    assert "short_caption" in found(audited(tmp_path, made, micro_batch=512))


def test_one_caption_in_many_regions(tmp_path: Path) -> None:
    run = audited(tmp_path, spoilt(say_a_car, 0.2, 1000), micro_batch=16, world_size=1)
    share, floor = found(run)["region caption"]
    assert share == pytest.approx(0.2, abs=0.03)
    assert floor > 0.2 * log(2)
    (finding,) = duplicate_captions(run)
    candidates = 16 * run.number("regions_per_sample")
    assert f"of {log2(candidates):.3g} bits can't be learnt" in finding.message
    assert '"A car "' in finding.message


def test_more_candidates_meet_more_copies(tmp_path: Path) -> None:
    made = spoilt(say_a_car, 0.03, 1000)
    few, many = (audited(tmp_path, made, micro_batch=4, world_size=1, bank_size=rows) for rows in (0, 1024))
    assert found(few) == {}
    assert found(many)["region caption"][0] == pytest.approx(0.03, abs=0.01)


def test_a_bank_that_leaves_copies_out_adds_none(tmp_path: Path) -> None:
    run = audited(tmp_path, spoilt(say_a_car, 0.03, 1000), micro_batch=4, world_size=1, dimension=32)
    rows = np.random.default_rng(0).normal(size=(1024, 32))
    tensors = {"queue_image": rows, "queue_text": rows, "queue_full": np.array([True])}
    roles = {"bank.image_keys": "queue_image", "bank.text_keys": "queue_text", "bank.full": "queue_full"}
    run.roles.update(roles)
    run.checkpoints = (runs.checkpoint(tensors),)
    assert "region caption" in found(run)
    run.checkpoints = (runs.checkpoint(tensors | {"caption_queue": np.arange(1024)}),)
    assert found(run) == {}


def test_copies_in_one_image_count_at_any_batch(tmp_path: Path) -> None:
    made = records(200)
    for record in made:
        for region in record["bbox_info"][1:]:
            region |= {name: record["bbox_info"][0][name] for name in ("short_expr", "long_expr")}
    assert found(audited(tmp_path, made, micro_batch=2))["region caption"][0] > 0.3


def test_an_image_with_several_captions_is_its_own_negative(tmp_path: Path) -> None:
    made = [record | {"f_path": f"{place % 30}.jpg"} for place, record in enumerate(records(300))]
    assert "image" in found(audited(tmp_path, made, micro_batch=32))


def test_it_flips_at_the_threshold(tmp_path: Path) -> None:
    run = audited(tmp_path, spoilt(say_a_car, 0.2), micro_batch=16)
    share = next(iter(duplicate_captions(run))).evidence[0].value
    assert isinstance(share, float)
    assert "region caption" in found(run, share=share - 1e-4)
    assert "region caption" not in found(run, share=share + 1e-4)


def test_without_a_batch_size_a_modest_one_is_assumed_and_said(tmp_path: Path) -> None:
    (finding,) = duplicate_captions(audited(tmp_path, spoilt(say_a_car, 0.2)))
    assert "assumed" in finding.evidence[0].why


def test_without_annotations_it_is_skipped() -> None:
    with pytest.raises(Missing, match="--data"):
        list(duplicate_captions(runs.run(facts={"micro_batch": 4})))
