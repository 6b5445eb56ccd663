from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fgclip_doctor import Missing, Run
from fgclip_doctor_checks.banks.bank_holds_noise import bank_holds_noise
from tests import features
from tests.features import Pairs, bank_run, saved

RNG = np.random.default_rng(0)


def half(first: Pairs, second: Pairs, rows: int) -> Pairs:
    images, texts = (np.concatenate([one[:rows], two[rows:]]) for one, two in zip(first, second, strict=True))
    return images, texts


NOISE, CONE = features.noise(RNG, 256, 64), features.cone(RNG, 256, 64)


def places(run: Run) -> list[tuple[str, str]]:
    return [(finding.where, finding.message.split(" of ")[0]) for finding in bank_holds_noise(run)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_fires_on_noise_that_counts_as_full(dtype: str) -> None:
    assert places(bank_run(saved(NOISE, pointer=12, full=True, dtype=dtype))) == [
        ("region_image_queue", "The image rows 0 to 256"),
        ("region_text_queue", "The text rows 0 to 256"),
    ]


def test_fires_on_noise_up_to_the_pointer() -> None:
    assert len(places(bank_run(saved(NOISE, pointer=200, full=False)))) == 2


def test_fires_on_the_half_that_was_never_written() -> None:
    found = places(bank_run(saved(half(CONE, NOISE, 128), pointer=128, full=True)))
    assert [place for _, place in found] == ["The image rows 128 to 256", "The text rows 128 to 256"]


def test_a_pointer_may_count_on_and_wrap_only_when_it_writes() -> None:
    found = places(bank_run(saved(half(CONE, NOISE, 128), pointer=128 + 3 * 256, full=True)))
    assert [place for _, place in found] == ["The image rows 128 to 256", "The text rows 128 to 256"]


def test_fires_on_one_modality() -> None:
    assert [where for where, _ in places(bank_run(saved((CONE[0], NOISE[1]), pointer=0, full=True)))] == [
        "region_text_queue"
    ]


def test_carries_its_proof_and_its_cause() -> None:
    finding = next(iter(bank_holds_noise(bank_run(saved(NOISE, pointer=0, full=True)))))
    assert finding.explained_by == ("FGD201",)
    assert len(finding.evidence) == 3
    assert all("standard deviations" in one.why and one.source for one in finding.evidence)


def test_says_from_which_cosine_on_noise_costs_nothing() -> None:
    rows, anchors = (features.noise(np.random.default_rng(seed), count, 256)[0] for seed, count in ((4, 4096), (5, 64)))
    finding = next(iter(bank_holds_noise(bank_run(saved((rows, rows[::-1]), pointer=0, full=True), scale=100.0))))
    free = finding.evidence[-1].value
    assert isinstance(free, float)
    level = np.log(np.exp(100 * anchors @ rows.T).sum(axis=1)).mean()
    assert np.log1p(np.exp(level - 100 * free)) == pytest.approx(0.1, abs=0.03)  # nats that such a pair pays


@pytest.mark.parametrize("encoder", features.ENCODED)
@pytest.mark.parametrize(("pointer", "full"), [(0, True), (100, True), (128, False), (128, None)])
def test_quiet_on_encoded_rows(encoder: Any, pointer: int, full: bool | None) -> None:
    pairs = encoder(np.random.default_rng(1), 256, 64)
    drawn = half(pairs, NOISE, 128) if full is not True else pairs  # what the pointer hasn't reached is noise
    assert not places(bank_run(saved(drawn, pointer=pointer, full=full)))


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (bank_run(saved(NOISE, pointer=0, full=False)), "no rows yet"),
        (bank_run(saved(NOISE, pointer=10, full=False)), "too few"),
        (bank_run(saved(NOISE, pointer=0, full=None, step=20)), "warmup"),
        (bank_run(saved(NOISE, pointer=0, full=None), bank_enabled=False), "off"),
        (Run("test"), "no checkpoint"),
    ],
)
def test_skipped_without_evidence(run: Run, reason: str) -> None:
    with pytest.raises(Missing, match=reason):
        places(run)


def test_flips_where_the_rows_have_power() -> None:
    """Of width 64, 81 paired rows are the fewest whose mean cosine would show an alignment of 0.1."""
    assert len(places(bank_run(saved(NOISE, pointer=81, full=False)))) == 2
    with pytest.raises(Missing):
        places(bank_run(saved(NOISE, pointer=80, full=False)))
