"""The bank's rows the right way round, how many were written, and the test for noise by simulation."""

from __future__ import annotations

from math import log2
from typing import Any

import numpy as np
import pytest

from fgclip_doctor import Missing, bank
from tests import features, runs
from tests.features import Pairs, bank_run, saved

SHAPES = [(16, 32), (16, 1024), (64, 128), (128, 64), (256, 32), (128, 512), (1024, 64), (65536, 32), (4096, 1024)]


def verdicts(pairs: Pairs, start: int = 0, stop: int | None = None) -> list[str]:
    held = bank.memory_bank(bank_run(saved(pairs, pointer=0, full=True), bank_size=len(pairs[0])))
    return [rows.verdict for rows in held.look(start, stop)]


def trials(rows: int, width: int) -> int:
    return max(1, min(60, 200_000 // (rows * width) * 4, 30_000_000 // (rows * width * min(rows, width)) * 4))


@pytest.mark.parametrize("encoder", features.ENCODED)
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_no_encoded_bank_is_called_noise(encoder: Any, rows: int, width: int) -> None:
    rng = np.random.default_rng(rows + width)
    found = [verdict for _ in range(trials(rows, width)) for verdict in verdicts(encoder(rng, rows, width))]
    assert "noise" not in found
    if bank.has_power(rows, width - 1, paired=True):
        assert set(found) == {"encoded"}


@pytest.mark.parametrize("generator", [features.noise, features.uniform_noise])
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_noise_is_called_noise_where_there_is_power(generator: Any, rows: int, width: int) -> None:
    rng = np.random.default_rng(rows + width)
    found = [verdict for _ in range(trials(rows, width)) for verdict in verdicts(generator(rng, rows, width))]
    expected = "noise" if bank.has_power(rows, width - 1, paired=True) else "undecided"
    assert found.count(expected) >= len(found) - 1  # one in 2,000 is over 4 standard deviations


@pytest.mark.parametrize(
    ("generator", "expected"), [(features.noise, "noise"), (features.cone, "encoded"), (features.aligned, "encoded")]
)
def test_the_largest_bank_is_told_too(generator: Any, expected: str) -> None:
    assert set(verdicts(generator(np.random.default_rng(0), 65536, 1024))) == {expected}


def test_statistics_of_noise_are_standard() -> None:
    """All three have mean 0 and standard deviation 1 over many banks of noise, so 4 means what it says."""
    rng = np.random.default_rng(5)
    z = []
    for _ in range(300):
        held = bank.memory_bank(bank_run(saved(features.noise(rng, 96, 48), pointer=0, full=True)))
        rows = held.look()[0]
        z.append((rows.mean_cosine_z, rows.spread_z, rows.alignment_z))
    np.testing.assert_allclose(np.mean(z, axis=0), 0, atol=0.25)
    np.testing.assert_allclose(np.std(z, axis=0), 1, atol=0.2)


def test_only_the_written_part_is_judged() -> None:
    rng = np.random.default_rng(0)
    images, texts = features.cone(rng, 256, 64)
    blank, drawn = features.noise(rng, 256, 64)
    images[128:], texts[128:] = blank[128:], drawn[128:]
    assert verdicts((images, texts), 0, 128) == ["encoded", "encoded"]
    assert verdicts((images, texts), 128) == ["noise", "noise"]


def test_one_modality_may_be_noise_alone() -> None:
    rng = np.random.default_rng(0)
    assert verdicts((features.noise(rng, 256, 64)[0], features.cone(rng, 256, 64)[1])) == ["noise", "encoded"]


def test_one_bank_needs_more_rows_than_two() -> None:
    assert bank.has_power(64, 128, paired=True)
    assert not bank.has_power(64, 128, paired=False)
    assert bank.has_power(78, 128, paired=False)


@pytest.mark.parametrize(
    ("facts", "more"),
    [
        ({"dimension": 48}, {}),
        ({"bank_size": 96}, {}),
        ({}, {"visual_projection.weight": np.zeros((48, 32))}),
        ({}, {}),  # unit norms
    ],
)
@pytest.mark.parametrize("width_first", [True, False])
def test_rows_come_the_right_way_round(facts: dict[str, Any], more: dict[str, Any], width_first: bool) -> None:
    images, texts = features.cone(np.random.default_rng(0), 96, 48)
    stored = {"i": images.T if width_first else images, "t": texts.T if width_first else texts}
    roles = {"bank.image_keys": "i", "bank.text_keys": "t", "head.image": "visual_projection.weight"}
    held = bank.memory_bank(runs.run(runs.checkpoint({**stored, **more}), facts=facts, roles=roles))
    assert (held.size, held.dimension) == (96, 48)
    np.testing.assert_array_equal(held.rows("text"), texts)


@pytest.mark.parametrize("filled", [1024, 300])
@pytest.mark.parametrize("rows", [features.noise, features.cone])
@pytest.mark.parametrize("width_first", [True, False])
def test_a_large_square_bank_is_told_by_its_unit_rows(rows: Any, width_first: bool, filled: int) -> None:
    images, texts = rows(np.random.default_rng(0), 1024, 1024)
    images[filled:] = texts[filled:] = 0
    stored = {"i": images.T if width_first else images, "t": texts.T if width_first else texts}
    roles = {"bank.image_keys": "i", "bank.text_keys": "t"}
    held = bank.memory_bank(runs.run(runs.checkpoint(stored), roles=roles))
    assert held.width_first == {"image": width_first, "text": width_first}


def test_one_bank_tells_the_other() -> None:
    images, _ = features.cone(np.random.default_rng(0), 96, 48)
    stored = {"i": images.T, "t": np.zeros((48, 96))}
    roles = {"bank.image_keys": "i", "bank.text_keys": "t"}
    assert bank.memory_bank(runs.run(runs.checkpoint(stored), roles=roles)).width_first == {"image": True, "text": True}


@pytest.mark.parametrize("width_first", [True, False])
def test_rows_that_are_not_unit_are_told_by_what_a_layer_gives_out(width_first: bool) -> None:
    images, _ = features.cone(np.random.default_rng(0), 96, 48)
    stored = {"q": 3 * (images.T if width_first else images), "enc.out.weight": np.zeros((48, 32))}
    held = bank.memory_bank(runs.run(runs.checkpoint(stored), roles={"bank.image_keys": "q"}))
    assert (held.size, held.dimension) == (96, 48)


def test_a_bank_that_could_be_either_way_round_is_missing() -> None:
    run = runs.run(runs.checkpoint({"q": np.zeros((48, 96))}), roles={"bank.image_keys": "q"})
    with pytest.raises(Missing, match="--fact dimension"):
        bank.memory_bank(run)


@pytest.mark.parametrize("shape", [(3, 48, 96), (48,), (0, 96)])
def test_what_is_no_matrix_is_missing(shape: tuple[int, ...]) -> None:
    run = runs.run(runs.checkpoint({"q": np.zeros(shape)}), roles={"bank.image_keys": "q"})
    with pytest.raises(Missing, match="no bank"):
        bank.memory_bank(run)


@pytest.mark.parametrize(("filled", "written"), [(7, 7), (63, 7), (64, 64)])
def test_a_fill_flag_that_counts_rows(filled: int, written: int) -> None:
    pairs = features.cone(np.random.default_rng(0), 64, 32)
    count = runs.tensor("queue_is_full", np.array([filled]), "int64")
    run = bank_run(saved(pairs, pointer=7, full=False, more={"queue_is_full": count}))
    assert bank.memory_bank(run).written == written


@pytest.mark.parametrize(
    ("pointer", "full", "written"),
    [(7, False, 7), (7, True, 64), (0, False, 0), (0, None, None), (None, None, None), (7, None, 7), (500, False, 64)],
)
def test_written_rows(pointer: int | None, full: bool | None, written: int | None) -> None:
    pairs = features.cone(np.random.default_rng(0), 64, 32)
    assert bank.memory_bank(bank_run(saved(pairs, pointer=pointer, full=full))).written == written


def test_retrieval_of_known_pairs() -> None:
    rng = np.random.default_rng(0)
    images, texts = features.aligned(rng, 128, 256, cosine=0.9)
    found = bank.memory_bank(bank_run(saved((images, texts), pointer=0, full=True))).retrieval()
    assert (found.image_to_text, found.text_to_image) == (1.0, 1.0)
    assert found.bits == pytest.approx(log2(128), abs=1e-3)


def test_bits_are_what_the_best_scale_leaves() -> None:
    """At cosine 0.3 in 64 dimensions some pairs are lost, whatever the scale."""
    pairs = features.aligned(np.random.default_rng(0), 128, 64, cosine=0.3)
    found = bank.memory_bank(bank_run(saved(pairs, pointer=0, full=True))).retrieval()
    logits = np.linspace(1, 40, 400)[:, None, None] * (pairs[0] @ pairs[1].T)
    forward, backward = (np.log(np.exp(logits).sum(axis=axis)).mean(axis=1) for axis in (1, 2))
    losses = (forward + backward) / 2 - np.diagonal(logits, axis1=1, axis2=2).mean(axis=1)
    assert found.bits == pytest.approx(log2(128) - losses.min() / np.log(2), abs=0.05)
    assert found.bits < 5


def test_retrieval_of_noise_is_chance_and_ties_share() -> None:
    rng = np.random.default_rng(0)
    noise = bank.memory_bank(bank_run(saved(features.noise(rng, 2048, 64), pointer=0, full=True))).retrieval()
    assert noise.image_to_text < 5 * noise.chance
    assert noise.bits < 0.02
    same = features.unit(np.ones((64, 32)))
    collapsed = bank.memory_bank(bank_run(saved((same, same), pointer=0, full=True), bank_size=64)).retrieval()
    assert collapsed.image_to_text == pytest.approx(collapsed.chance)
    assert collapsed.bits == pytest.approx(0, abs=1e-5)


def test_observations_answer_without_data() -> None:
    pairs = features.aligned(np.random.default_rng(0), 128, 256, cosine=0.3)
    more = {"logit_scale_finegraind": np.array(2.6592)}
    run = bank_run(saved(pairs, pointer=5, full=True, more=more))
    seen = {one.name: one.value for one in bank.observations(run)}
    assert (seen["bank size"], seen["bank pointer"], seen["bank rows written"]) == (128, 5, 128)
    assert seen["retrieval inside the bank, image to text"] > 0.9
    assert 6 < seen["bits learnt, by the bank's pairs"] < 7


@pytest.mark.parametrize("wrong", ["nan", "inf"])
def test_rows_that_are_not_finite_are_left_out(wrong: str) -> None:
    images, texts = features.cone(np.random.default_rng(0), 128, 64)
    images[3, 4] = float(wrong)
    held = bank.memory_bank(bank_run(saved((images, texts), pointer=0, full=True)))
    assert [rows.count for rows in held.look()] == [127, 127]
    assert held.retrieval().rows == 127


@pytest.mark.parametrize(
    ("facts", "forwards", "over"),
    [
        ({"bank_warmup": 50}, None, True),
        ({"bank_warmup": 240}, None, False),
        ({"bank_warmup": 400, "bank_clock": "forward"}, 1920, True),
        ({"bank_warmup": 400}, 1920, False),  # it may be meant in steps
        ({"bank_warmup": 400, "bank_clock": "step"}, 1920, False),
        ({}, None, True),
        ({"max_steps": 2000}, None, False),
    ],
)
def test_warmup_is_over_only_when_every_clock_says_so(facts: dict[str, Any], forwards: int | None, over: bool) -> None:
    pairs = features.noise(np.random.default_rng(0), 32, 16)
    assert bank.warmup_over(bank_run(saved(pairs, pointer=0, full=False, forwards=forwards), **facts)) is over


def test_forwards_stand_in_for_unknown_steps() -> None:
    pairs = features.noise(np.random.default_rng(0), 32, 16)
    bare = saved(pairs, pointer=0, full=False, step=None, forwards=1920)
    assert bank.steps_done(bank_run(bare, accumulation=8)) == 240
    assert bank.steps_done(bank_run(bare)) == 60
    with pytest.raises(Missing):
        bank.warmup_over(bank_run(saved(pairs, pointer=0, full=False, step=None)))
