from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fgclip_doctor import Missing, Run
from fgclip_doctor.recorded import Rank, Recording
from fgclip_doctor.run import Checkpoint, Optimizer, OptimizerGroup, ParameterState, Source
from fgclip_doctor_checks.gradients.updates_lost_to_rounding import updates_lost_to_rounding
from tests.runs import checkpoint, group, optimizer, parameter, run, series, state, tensor, watched

RNG = np.random.default_rng(0)
WEIGHTS = {"visual_projection.weight": RNG.normal(0, 0.02, (64, 64)), "logit_scale": np.array(4.6)}


def trained(weights: str, moments: str, lr: float, *, noise: float = 1e-8, **options: Any) -> Run:
    """A run whose weights and moments were rounded to these types (`grid`: to bfloat16's values, in float32).

    `noise` is the part of the second moments that is not the square of the first.
    """

    def stored(name: str, values: Any, dtype: str) -> Any:
        rounded = tensor(name, values, "bfloat16" if dtype == "grid" else dtype)
        return tensor(name, rounded.values(), "float32") if dtype == "grid" else rounded

    saved = {name: stored(name, values, weights) for name, values in WEIGHTS.items()}
    states = []
    for index, values in enumerate(WEIGHTS.values()):
        mean = stored("m", RNG.normal(0, 1e-4, values.shape), moments).values()
        square = stored("v", mean**2 + noise, moments).values()
        states.append(state(index, 100, mean, square, dtype="float32" if moments == "grid" else moments))
    held = optimizer([group(0, [0, 1], lr=lr, **options)], states, dict(enumerate(WEIGHTS)))
    return run(checkpoint(saved, 100, optimizer=held))


@pytest.mark.parametrize(("weights", "moments"), [("bfloat16", "bfloat16"), ("grid", "grid"), ("float16", "float16")])
def test_sixteen_bits_throughout_at_a_fine_tuning_rate(weights: str, moments: str) -> None:
    [finding] = updates_lost_to_rounding(trained(weights, moments, 1e-6, noise=1e-6))
    assert float(str(finding.evidence[0].value)) > 0.7


@pytest.mark.parametrize(
    ("weights", "moments"),
    [("float32", "float32"), ("bfloat16", "float32"), ("grid", "float32")],
    ids=["float32", "export", "export, read as float32"],
)
def test_masters_in_float32_are_quiet(weights: str, moments: str) -> None:
    assert not list(updates_lost_to_rounding(trained(weights, moments, 1e-6)))


def test_large_steps_survive_in_sixteen_bits() -> None:
    assert not list(updates_lost_to_rounding(trained("bfloat16", "bfloat16", 1e-2)))


@pytest.mark.parametrize("option", ["use_kahan_summation", "bf16_stochastic_round"])
def test_compensated_rounding_is_quiet(option: str) -> None:
    assert not list(updates_lost_to_rounding(trained("bfloat16", "bfloat16", 1e-6, **{option: True})))


def test_weights_that_moved_where_plain_rounding_forbids_it_are_quiet() -> None:
    late = trained("bfloat16", "bfloat16", 1e-6)
    early = checkpoint({name: values * 1.05 for name, values in WEIGHTS.items()}, 50, dtype="bfloat16")
    late.checkpoints = (early, *late.checkpoints)
    assert not list(updates_lost_to_rounding(late))


def test_flips_at_its_threshold() -> None:
    case = trained("bfloat16", "bfloat16", 1e-4)
    share = float(str(next(updates_lost_to_rounding(case, lost=0.01)).evidence[0].value))
    assert 0.05 < share < 0.95
    assert list(updates_lost_to_rounding(case, lost=share - 1e-3))
    assert not list(updates_lost_to_rounding(case, lost=share + 1e-3))


def test_skipped_without_optimizer() -> None:
    with pytest.raises(Missing, match="no optimizer state"):
        list(updates_lost_to_rounding(run(checkpoint(WEIGHTS, dtype="bfloat16"))))


def test_a_recording_without_moments_is_skipped_and_not_passed() -> None:
    made = watched(parameter("blocks.0.weight"), roles={})
    with pytest.raises(Missing, match="moments"):
        list(updates_lost_to_rounding(made))


def test_second_moments_that_underflow_are_named_beside_the_first() -> None:
    found = list(updates_lost_to_rounding(trained("float16", "float16", 1e-6)))
    assert any("underflow" in one.message for one in found)
    assert not any("underflow" in one.message for one in updates_lost_to_rounding(trained("bfloat16", "bfloat16", 1)))


def test_underflow_flips_at_its_threshold() -> None:
    case = trained("float16", "float16", 1e-6)
    [share] = [one.evidence[0].value for one in updates_lost_to_rounding(case) if "underflow" in one.message]
    for least, expected in ((float(str(share)) - 1e-3, True), (float(str(share)) + 1e-3, False)):
        found = updates_lost_to_rounding(case, vanished=least)
        assert any("underflow" in one.message for one in found) == expected


def seen(unchanged: list[float], *, rate: float = 5e-6, optimizers: tuple[str, ...] = ("AdamW",)) -> Run:
    """A recorded run whose 16-bit values stayed as they were by such shares, one a step, at a constant rate."""
    steps = range(1, len(unchanged) + 1)
    rank = Rank(0, 1, "rec", optimizers=optimizers, unchanged=dict(zip(steps, unchanged, strict=True)))
    made = run(logged=[series("learning_rate", np.full(len(unchanged), rate), list(steps))])
    held = OptimizerGroup(0, (0,), {"lr": rate, "initial_lr": 5e-6})
    weight = tensor("visual_projection.weight", np.ones((4, 4)), "bfloat16")
    rounded = Optimizer(Source("rec"), (held,), {0: ParameterState(0, len(unchanged))}, {0: (weight.name,)})
    made.checkpoints = (Checkpoint("rec", len(unchanged), {weight.name: weight}, rounded, partial="a recording"),)
    made.recording = Recording((rank,), len(unchanged))
    return made


def test_a_recording_in_which_nearly_nothing_moves_is_named() -> None:
    (finding,) = updates_lost_to_rounding(seen([0.99] * 10))
    assert "99.0% of the values that had a gradient stay" in finding.message


@pytest.mark.parametrize(("share", "fires"), [(0.79, False), (0.81, True)])
def test_a_recording_flips_at_its_share(share: float, fires: bool) -> None:
    assert bool(list(updates_lost_to_rounding(seen([share] * 10)))) is fires


@pytest.mark.parametrize(
    "recorded",
    [
        seen([]),  # 32-bit parameters
        seen([0.99] * 4),  # too few looks
        seen([0.99] * 10, rate=1e-6),  # early in the warmup
        seen([0.99] * 10, optimizers=("AnyPrecisionAdamW",)),  # which may round otherwise, or keep copies
    ],
)
def test_a_recording_that_can_not_tell_is_skipped(recorded: Run) -> None:
    with pytest.raises(Missing):
        list(updates_lost_to_rounding(recorded))
