from __future__ import annotations

import numpy as np
import pytest

from fgclip_doctor import Missing, Run
from fgclip_doctor.run import Remark, Source
from fgclip_doctor_checks.data.images_replaced import images_replaced
from tests.runs import run, series


def replaced(count: int, **facts: float) -> Run:
    """A thousand steps with so many lines of failures."""
    one = run(logged=[series("loss", [3.0] * 100, range(10, 1001, 10))], facts=facts)
    one.remarks = [Remark("image-replaced", Source("train.log", line=3), (), np.arange(count))]
    return one


def test_one_in_a_hundred() -> None:
    [finding] = images_replaced(replaced(320, micro_batch=8, accumulation=4))
    assert "320 images" in finding.message
    assert "1.00%" in finding.message
    assert finding.evidence[0].source == "train.log:3"


@pytest.mark.parametrize(("count", "expected"), [(31, 0), (33, 1)])
def test_flips_at_its_threshold(count: int, expected: int) -> None:
    assert len(list(images_replaced(replaced(count, micro_batch=32)))) == expected


def test_the_size_of_the_data_will_do() -> None:
    assert list(images_replaced(replaced(50, dataset_size=10_000, num_epochs=1)))
    assert not list(images_replaced(replaced(50, dataset_size=10_000, num_epochs=8)))


def test_a_handful_is_no_rate() -> None:
    assert not list(images_replaced(replaced(4, micro_batch=1)))


def test_skipped_without_a_line_or_a_size() -> None:
    with pytest.raises(Missing, match="no line"):
        list(images_replaced(run()))
    with pytest.raises(Missing, match="dataset_size"):
        list(images_replaced(replaced(50)))
