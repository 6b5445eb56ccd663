"""FGD509: a softmax over one candidate, and losses of 0 that are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from fgclip_doctor import Missing
from fgclip_doctor.run import Run
from fgclip_doctor.sources import load
from fgclip_doctor_checks.losses.single_candidate import single_candidate


def logged(directory: Path, lines: list[str], **facts: float) -> Run:
    log = directory / "train.log"
    log.write_text("\n".join(lines))
    return load([log], facts={name: str(value) for name, value in facts.items()})


def line(step: int, loss: str, norm: str = "0.0") -> str:
    return f"step={step} loss={loss} grad_norm={norm}"


def test_a_batch_of_one_is_named(tmp_path: Path) -> None:
    run = logged(tmp_path, [line(step, "0.00000000") for step in range(1, 11)], micro_batch=1)
    (finding,) = single_candidate(run)
    assert finding.where == "loss"
    assert "None of these steps" in finding.message


def test_a_gradient_of_exactly_zero_tells_it_without_the_candidates(tmp_path: Path) -> None:
    assert list(single_candidate(logged(tmp_path, [line(step, "0.00000000") for step in range(1, 11)])))


@pytest.mark.parametrize(("first", "fires"), [(1, True), (200, False)])
def test_a_zero_as_python_writes_it_is_one_where_nothing_was_learnt_yet(
    tmp_path: Path, first: int, fires: bool
) -> None:
    run = logged(tmp_path, [line(step, "0.0", "0.0") for step in range(first, first + 10)])
    assert len(list(single_candidate(run))) == fires


@pytest.mark.parametrize(
    ("loss", "norm", "facts"),
    [
        ("0.0001237", "0.0", {"micro_batch": 1}),  # it is a loss
        ("0.00000000", "0.0031", {}),  # learnt by heart
        ("0.00", "0.00", {"micro_batch": 1}),  # as printed
        ("0.0", "0.2", {"micro_batch": 1}),
    ],
)
def test_a_small_loss_is_none_of_it(tmp_path: Path, loss: str, norm: str, facts: dict[str, float]) -> None:
    run = logged(tmp_path, [line(step, loss, norm) for step in range(1, 11)], **facts)
    try:
        assert not list(single_candidate(run))
    except Missing:
        assert loss == "0.00000000", "only where the candidates aren't known"


@pytest.mark.parametrize(("count", "fires"), [(4, False), (5, True)])
def test_it_flips_at_its_number_of_records(tmp_path: Path, count: int, fires: bool) -> None:
    run = logged(tmp_path, [line(step, "0.00000000") for step in range(1, count + 1)], micro_batch=1)
    if fires:
        assert list(single_candidate(run))
    else:
        with pytest.raises(Missing, match="fewer than 5"):
            list(single_candidate(run))


def test_several_candidates_are_no_reason(tmp_path: Path) -> None:
    run = logged(tmp_path, [line(step, "0.00000000", "0.2") for step in range(1, 11)], micro_batch=4)
    with pytest.raises(Missing):
        list(single_candidate(run))
