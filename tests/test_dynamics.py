"""The statistics of one series, held to series whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from fgclip_doctor import dynamics
from fgclip_doctor.sources import lines

RNG = np.random.default_rng(0)


def normal(count: int, sigma: float = 1.0) -> np.ndarray:
    return sigma * np.random.default_rng(count).standard_normal(count)


@pytest.mark.parametrize("count", [10, 1000, 100_000])
def test_noise_is_that_around_a_trend(count: int) -> None:
    tolerance = 4 / count**0.5
    assert dynamics.noise(normal(count)) == pytest.approx(1.0, rel=tolerance)
    assert dynamics.noise(normal(count) + np.linspace(0, 50, count)) == pytest.approx(1.0, rel=tolerance + 0.02)


def test_wild_values_and_jumps_change_no_noise() -> None:
    values = normal(1000)
    values[::50] = 1e6
    assert dynamics.noise(values) == pytest.approx(1.0, rel=0.15)
    assert dynamics.noise(normal(1000) + 100 * (np.arange(1000) > 500)) == pytest.approx(1.0, rel=0.1)


def test_rounded_values_have_the_noise_that_rounding_leaves() -> None:
    assert dynamics.noise(np.round(normal(1000), 1)) == pytest.approx(1.0, rel=0.1)
    assert 0 < dynamics.noise(np.round(normal(1000, 0.1), 0) + (np.arange(1000) % 100 == 0)) < 0.2
    assert dynamics.noise(np.full(100, 2.0)) == 0.0
    assert dynamics.noise([1.0, 2.0]) == np.inf
    assert dynamics.spread([]) == np.inf


def test_condensing_keeps_the_shape_of_any_length() -> None:
    for count in (5, 4096, 4097, 1_000_003):
        steps, levels = dynamics.condensed(np.arange(count), np.arange(count, dtype=float))
        assert len(levels) <= dynamics.MOST + 1
        assert np.abs(levels - steps).max() <= 1 + count / dynamics.MOST / 2
        assert (np.diff(steps) > 0).all()


def test_shifts_are_found_where_they_are() -> None:
    values = normal(300, 0.1) + 2.0 * (np.arange(300) >= 100) - 1.0 * (np.arange(300) >= 200)
    found = dynamics.shifts(values, window=10, least=0.5)
    assert [shift.index for shift in found] == [100, 200]
    assert [shift.size for shift in found] == pytest.approx([2.0, -1.0], abs=0.15)


@pytest.mark.parametrize(("least", "count"), [(1.8, 1), (2.2, 0)])
def test_a_shift_has_to_be_large_enough(least: float, count: int) -> None:
    values = normal(100, 0.05) + 2.0 * (np.arange(100) >= 50)
    assert len(dynamics.shifts(values, window=10, least=least)) == count


def test_noise_and_single_values_are_no_shifts() -> None:
    assert dynamics.shifts(normal(5000), window=10, least=0.5, errors=8.0) == []
    assert dynamics.shifts(np.where(np.arange(100) == 50, 10.0, 0.0), window=10, least=0.5) == []
    assert dynamics.shifts(normal(3), window=10, least=0.0) == []


def test_turns_are_the_extremes_between_large_swings() -> None:
    values = [0, 1, 0.8, 2, 0, 0.2, 3, 1]
    assert dynamics.turns(values, 1.0) == [3, 4, 6]
    assert dynamics.turns(values, 2.5) == []  # from one end to the other it goes but up
    assert dynamics.turns(np.linspace(0, 9, 100), 0.5) == []
    assert dynamics.turns([], 1.0) == []


@pytest.mark.parametrize("cycle", [20.0, 50.0, 133.0])
def test_the_period_of_a_wave_under_noise(cycle: float) -> None:
    steps = np.sort(np.random.default_rng(1).choice(3000, 1500, replace=False)) + 1
    values = 2 + np.sin(2 * np.pi * steps / cycle) + 0.5 * np.random.default_rng(2).standard_normal(1500)
    period, strength = dynamics.period(steps, values)
    assert (period / cycle) % 1 == pytest.approx(0, abs=0.05) or (period / cycle) % 1 > 0.95
    assert strength > 0.4


def test_noise_has_no_period() -> None:
    assert dynamics.period(np.arange(1000), normal(1000))[1] < 0.2
    assert dynamics.period(np.arange(5), normal(5)) == (0.0, 0.0)
    assert dynamics.period(np.arange(100), np.ones(100)) == (0.0, 0.0)


def test_growth_is_that_of_the_noise_and_not_of_the_level() -> None:
    sizes = np.repeat([1.0, 2.0, 4.0], 200)
    ratio, error = dynamics.growth(sizes * normal(600) + np.linspace(0, 100, 600))
    assert ratio == pytest.approx(4.0, rel=3 * error)
    assert dynamics.growth(normal(12)) == (1.0, np.inf)


def test_spikes_stand_out_of_their_neighbourhood() -> None:
    values = np.exp(0.3 * normal(500))
    values[[100, 400]] = 30.0
    assert dynamics.spikes(values, factor=10, errors=3).tolist() == [100, 400]
    assert dynamics.spikes(100 * values, factor=10, errors=3).tolist() == [100, 400]
    assert dynamics.spikes(values, factor=40, errors=3).tolist() == []
    level = np.concatenate([np.exp(0.1 * normal(100)), 50 * np.exp(0.1 * normal(100))])
    assert dynamics.spikes(level, factor=10, errors=3).tolist() == []


def test_smoothing_takes_neighbours_together() -> None:
    levels, error = dynamics.smooth(normal(9600) + 5.0)
    assert len(levels) == 96
    assert levels.std() == pytest.approx(error, rel=0.4)


def test_a_constant_is_one_to_the_printed_place() -> None:
    assert dynamics.constant(np.array([2.0, 2.0, 2.0]))
    assert not dynamics.constant(np.array([2.0, 2.001]))
    assert dynamics.constant(np.array([2.0, 2.001]), 0.001)
    assert not dynamics.constant(np.array([]))


def test_the_last_value_of_a_step_counts() -> None:
    steps, values = dynamics.by_step(np.array([1, 2, 2, 1, 3]), np.array([1.0, 2.0, 3.0, 4.0, np.nan]))
    assert (steps.tolist(), values.tolist()) == ([1, 2], [4.0, 3.0])


@pytest.mark.parametrize("count", [2, 5, 40])
def test_a_trend_is_taken_out(count: int) -> None:
    assert np.abs(dynamics.detrended(3 + 2.0 * np.arange(count))).max() < 1e-9


def test_a_series_that_is_too_long_to_keep_keeps_its_level_noise_and_spikes() -> None:
    """As of ten million values, at a hundredth of the size: thinned again and again as it grows."""
    count = 100 * lines.STRETCH
    values = 2.0 + 0.1 * normal(count)
    values[count // 2 :] += 1.0
    values[RNG.random(count) < 1e-3] = 50.0
    values[[7_000, 91_000]] = np.nan
    column = lines._Column()
    for start in range(0, count, lines.STRETCH):
        part = slice(start, start + lines.STRETCH)
        column.add(np.arange(count)[part], values[part], limit=16 * lines.STRETCH)
    steps, kept = column.arrays()
    assert len(kept) <= 17 * lines.STRETCH
    assert np.flatnonzero(np.isnan(values)).tolist() == steps[np.isnan(kept)].tolist()
    steps, kept = dynamics.finite(steps, kept)
    assert dynamics.noise(kept) == pytest.approx(0.1, rel=0.05)
    assert np.median(kept[steps < count // 2]) == pytest.approx(2.0, abs=0.01)
    assert np.median(kept[steps >= count // 2]) == pytest.approx(3.0, abs=0.01)
    assert len(dynamics.spikes(kept, factor=10.0, errors=3.0)) == pytest.approx(1e-3 * len(kept), rel=0.6)
    assert steps[-1] > count - 2 * lines.STRETCH
