"""FGD412: a rate that was asked for and that the schedule doesn't run on."""

from __future__ import annotations

import pytest

from fgclip_doctor import Missing
from fgclip_doctor.run import Checkpoint, Fact, Run, Source
from fgclip_doctor_checks.clocks.arguments_ignored_on_resume import arguments_ignored_on_resume


def checkpoint(step: int, asked: float, rates: list[float]) -> Checkpoint:
    facts = {"learning_rate": Fact("learning_rate", asked, Source(f"checkpoint-{step}/training_args.bin"))}
    return Checkpoint(f"checkpoint-{step}", step, {}, scheduler={"base_lrs": rates}, facts=facts)


def found(*checkpoints: Checkpoint) -> list[str]:
    return [finding.message for finding in arguments_ignored_on_resume(Run("run", checkpoints=checkpoints))]


def test_the_old_rate_on_a_new_wish_is_named() -> None:
    (message,) = found(checkpoint(100, 1e-5, [1e-5, 1e-5]), checkpoint(200, 5e-6, [1e-5, 1e-5]))
    assert "ask for a learning rate of 5e-06" in message
    assert "still runs on the 1e-05" in message


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (checkpoint(100, 1e-5, [1e-5]), checkpoint(200, 5e-6, [5e-6])),  # it arrived
        (checkpoint(100, 5e-5, [1e-6]), checkpoint(200, 5e-5, [1e-6])),  # an optimizer made by hand
        (checkpoint(100, 1e-5, [1e-5, 2e-6]), checkpoint(200, 5e-6, [1e-5, 2e-6])),  # rates of their own
    ],
)
def test_what_else_two_checkpoints_may_say_is_sound(first: Checkpoint, second: Checkpoint) -> None:
    assert not found(first, second)


@pytest.mark.parametrize(("asked", "fires"), [(0.995e-5, False), (0.985e-5, True)])
def test_it_flips_at_its_share(asked: float, fires: bool) -> None:
    assert bool(found(checkpoint(100, 1e-5, [1e-5]), checkpoint(200, asked, [1e-5]))) is fires


def test_one_checkpoint_is_never_enough() -> None:
    with pytest.raises(Missing, match="no two checkpoints"):
        found(checkpoint(100, 5e-5, [1e-6]))
