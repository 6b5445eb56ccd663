from __future__ import annotations

from dataclasses import replace
from math import log
from typing import Any

import numpy as np
import pytest

from fgclip_doctor import Missing, Run
from fgclip_doctor.recorded import Recording
from fgclip_doctor.run import Source
from fgclip_doctor_checks.scales.logit_scale_wrong_init import logit_scale_wrong_init
from tests.runs import adam, checkpoint, parameter, run, series, watched
from tests.watched_ranks import site

RNG = np.random.default_rng(0)
TRAINED_NORMS = {f"blocks.{block}.norm.weight": RNG.normal(1, 0.3, 64) for block in range(4)}
NEW_NORMS = {name: 1 + RNG.normal(0, 1e-4, 64) for name in TRAINED_NORMS}


def scaled(
    value: float,
    norms: dict[str, Any],
    *,
    name: str = "logit_scale",
    dtype: str = "float32",
    lr: float = 5e-6,
    **more: Any,
) -> Run:
    """A run of 240 steps whose scale is now `value`; `more` are facts."""
    now = checkpoint({**norms, name: np.array(value)}, 240, dtype=dtype)
    return run(now, roles={"scale.region": name}, facts={"learning_rate": lr, **more})


@pytest.mark.parametrize(("value", "dtype"), [(2.6592, "float32"), (2.6592, "bfloat16"), (2.6600, "float32")])
def test_the_start_of_a_new_model_on_trained_weights(value: float, dtype: str) -> None:
    [finding] = logit_scale_wrong_init(scaled(value, TRAINED_NORMS, dtype=dtype))
    assert finding.where == "logit_scale"
    assert finding.evidence[0].expected == "4.6052"


def test_the_default_of_the_configuration_is_no_excuse() -> None:
    assert list(logit_scale_wrong_init(scaled(2.6592, TRAINED_NORMS, logit_scale_init=2.6592)))


def test_the_end_of_a_trained_model_on_new_weights() -> None:
    [finding] = logit_scale_wrong_init(scaled(log(100), NEW_NORMS))
    assert finding.evidence[0].expected == "2.6593"


@pytest.mark.parametrize(
    ("value", "norms"),
    [(log(100), TRAINED_NORMS), (log(1 / 0.07), NEW_NORMS), (3.9, TRAINED_NORMS)],
    ids=["fine-tuning", "scratch", "a pretrained model of another scale"],
)
def test_a_start_that_fits_is_quiet(value: float, norms: dict[str, Any]) -> None:
    assert not list(logit_scale_wrong_init(scaled(value, norms)))


def test_a_declared_start_is_quiet() -> None:
    assert not list(logit_scale_wrong_init(scaled(log(100), NEW_NORMS, logit_scale_init=4.6052)))


@pytest.mark.parametrize("value", [100.0, 14.2857, 14.28, 0.07, 1.0])
def test_a_raw_start_is_named(value: float) -> None:
    assert len(list(logit_scale_wrong_init(scaled(value, TRAINED_NORMS)))) == 1


REACH = 240 * 4e-4 * 10**0.5  # of 240 steps at a rate of 4e-4: 0.30


def trained(value: float, *, name: str = "logit_scale", **facts: Any) -> Run:
    """A run of 240 steps at 4e-4 whose scale is now `value`, with the optimizer's state."""
    weights = checkpoint({"w.weight": np.ones((4, 4)), name: np.array(value)}).tensors
    now = checkpoint(weights, 240, optimizer=adam(weights, lr=4e-4, weight_decay=0.0, step=240))
    return run(now, roles={"scale.global": name}, facts=facts)


@pytest.mark.parametrize(
    "value", [1.3, 1.0, log(2) + REACH + 0.01, log(5) - REACH - 0.01], ids=["1.3", "1", "over ln 2", "under ln 5"]
)
def test_what_no_start_in_reach_explains(value: float) -> None:
    [finding] = logit_scale_wrong_init(trained(value))
    assert "between" in finding.message


@pytest.mark.parametrize("value", [log(2) + REACH - 0.01, log(5) - REACH + 0.01, 2.5, 3.7])
def test_what_a_start_in_reach_explains_is_quiet(value: float) -> None:
    with pytest.raises(Missing, match="may have moved by 0"):
        list(logit_scale_wrong_init(trained(value)))


@pytest.mark.parametrize(
    "case",
    [
        trained(1.2, name="temperature"),
        trained(1.2, name="tau"),
        trained(1.3, logit_scale_init=1.0986),
        scaled(1.3, {}, lr=4e-4),
    ],
    ids=["a temperature", "tau", "declared", "a rate that may not be its own"],
)
def test_a_soft_scale_may_be_right(case: Run) -> None:
    with pytest.raises(Missing, match="may have moved"):
        list(logit_scale_wrong_init(case))


def test_a_temperature_by_name_is_quiet() -> None:
    assert not list(logit_scale_wrong_init(scaled(0.07, TRAINED_NORMS, name="temperature")))


@pytest.mark.parametrize(("base", "expected"), [(2.6592, 0), (4.6052, 1)])
def test_the_base_decides_where_it_is_given(base: float, expected: int) -> None:
    case = scaled(2.6592, TRAINED_NORMS)
    case.base = checkpoint({"logit_scale": np.array(base)})
    assert len(list(logit_scale_wrong_init(case))) == expected


@pytest.mark.parametrize(("value", "expected"), [(2.69, 1), (4.3, 0)])
def test_the_base_decides_however_fast_the_scale_may_move(value: float, expected: int) -> None:
    case = scaled(value, TRAINED_NORMS, lr=1e-3)
    case.base = checkpoint({"logit_scale": np.array(4.6052)})
    assert len(list(logit_scale_wrong_init(case))) == expected


def test_the_norms_of_the_base_tell_how_the_run_started() -> None:
    case = scaled(log(100), NEW_NORMS)
    case.base = checkpoint(TRAINED_NORMS)
    assert not list(logit_scale_wrong_init(case))


def test_norms_of_a_short_pretraining_are_not_taken_for_new() -> None:
    """What lies within 0.1 of 1 is new only to a run that can't have moved it nearly as far."""
    with pytest.raises(Missing, match="can't tell pretrained weights from new ones"):
        list(logit_scale_wrong_init(scaled(log(100), NEW_NORMS, lr=1e-4)))


def test_the_sigmoid_loss_starts_elsewhere() -> None:
    assert not list(logit_scale_wrong_init(scaled(log(10), NEW_NORMS, loss_kind="sigmoid")))


@pytest.mark.parametrize(("widest", "skipped"), [(0.0037, True), (0.0039, False)])
def test_flips_at_its_threshold(widest: float, *, skipped: bool) -> None:
    """240 steps at 5e-6 and Adam's bound of 3.16 are 0.0038."""
    case = scaled(2.6592, TRAINED_NORMS)
    if skipped:
        with pytest.raises(Missing, match="may have moved"):
            list(logit_scale_wrong_init(case, widest=widest))
    else:
        assert list(logit_scale_wrong_init(case, widest=widest))


def test_skipped_where_the_norms_can_not_tell() -> None:
    with pytest.raises(Missing, match="norm gains"):
        list(logit_scale_wrong_init(scaled(2.6592, {})))


@pytest.mark.parametrize(("value", "findings"), [(99.0, 1), (57.3, 1), (11.5, 1), (10.5, 0), (250.0, 0)])
def test_what_can_be_no_logarithm_is_named(value: float, findings: int) -> None:
    assert len(list(logit_scale_wrong_init(scaled(value, TRAINED_NORMS)))) == findings


@pytest.mark.parametrize(("learnt", "findings"), [(2.75, 0), (3.0, 0), (2.6592, 2), (3.2, 1), (log(100), 1)])
def test_a_branch_beside_a_young_global_scale_is_quiet(learnt: float, findings: int) -> None:
    now = checkpoint({**TRAINED_NORMS, "logit_scale": np.array(learnt), "branch_scale": np.array(2.6592)}, 240)
    roles = {"scale.global": "logit_scale", "scale.region": "branch_scale"}
    assert len(list(logit_scale_wrong_init(run(now, roles=roles, facts={"learning_rate": 5e-6})))) == findings


def logged(first: float, *, name: str = "logit_scale", step: int = 10, rate: float = 1e-4) -> Run:
    scale = series(name, [first, 1.1], [step, 500])
    return run(logged=[scale, series("learning_rate", [rate, rate], [step, 500])])


@pytest.mark.parametrize(("first", "findings"), [(1.0, 1), (1.003, 1), (1.005, 0), (2.6592, 0), (log(100), 0)])
def test_a_log_that_begins_at_one_is_named_within_its_reach(first: float, findings: int) -> None:
    assert len(list(logit_scale_wrong_init(logged(first)))) == findings


@pytest.mark.parametrize(("name", "step"), [("temperature", 10), ("logit_scale", 400)], ids=["temperature", "late"])
def test_a_log_that_may_have_come_to_one_is_quiet(name: str, step: int) -> None:
    if name == "temperature":
        with pytest.raises(Missing, match="no logit scale"):
            list(logit_scale_wrong_init(logged(1.0, name=name, step=step)))
    else:
        assert not list(logit_scale_wrong_init(logged(1.0, name=name, step=step)))


def test_a_log_without_a_learning_rate_is_not_judged() -> None:
    with pytest.raises(Missing, match="learning rate"):
        list(logit_scale_wrong_init(run(logged=[series("logit_scale", [1.0, 1.0], [1, 2])])))


NAME = "region_logit_scale"


def recorded(*looks: tuple[int, float], loss: float = 3.0, kind: str = "softmax", before: int | None = 0) -> Run:
    """A recording of looks at a scale, (step, value), whose learning rates allow it to move by 0.1 in 20 steps."""
    steps, values = zip(*looks, strict=True)
    first = site(kind=kind, anchors=32, candidates=32, loss=np.full(20, loss))
    case = watched(parameter(NAME, shape=()), roles={"scale.region": NAME}, rates=(5e-3,), sites=(first,))
    held = case.optimizer
    groups = tuple(replace(one, options={**one.options, "betas": (0.9, 0.999)}) for one in held.groups)
    case.checkpoints = (checkpoint({NAME: np.array(values[-1])}, 20, optimizer=replace(held, groups=groups)),)
    ranks = case.watched.ranks
    case.recording = Recording((replace(ranks[0], updates_before=before),), 20)
    kept = series(NAME, np.array(values), np.array(steps))
    case.series = {NAME: replace(kept, source=Source(ranks[0].path, NAME))}
    return case


def test_the_first_look_of_a_recording_is_the_start() -> None:
    [finding] = logit_scale_wrong_init(recorded((1, 0.07), (20, 0.3)))
    assert "started from 0.07" in finding.message
    assert finding.evidence[0].step == 1


def test_it_is_that_of_the_last_training_of_several() -> None:
    [finding] = logit_scale_wrong_init(recorded((1, 2.6592), (20, 2.6592), (1, 0.07), (20, 0.09)))
    assert "started from 0.07" in finding.message
    with pytest.raises(Missing, match="norm gains"):
        list(logit_scale_wrong_init(recorded((1, 0.07), (20, 0.09), (1, 2.6592), (20, 2.6592))))


@pytest.mark.parametrize(("source", "before"), [("recording", 500), ("trainer_state.json", 0)])
def test_no_start_is_seen_of_a_resumed_run_or_in_a_log(source: str, before: int) -> None:
    case = recorded((1, 0.07), (20, 0.3), before=before)
    case.series[NAME] = replace(case.series[NAME], source=Source(source, NAME))
    with pytest.raises(Missing, match="may have moved by"):
        list(logit_scale_wrong_init(case))


@pytest.mark.parametrize(("kind", "loss"), [("softmax", 51.0), ("sigmoid", 1601.0)])
def test_a_loss_shows_that_the_exp_is_taken_of_a_scale(kind: str, loss: float) -> None:
    """Of cosines times 10 and a bias up to 30, a loss is no higher than 50; the sigmoid's sums over 32 columns."""
    [finding] = logit_scale_wrong_init(recorded((1, 10.0), (20, 9.9), loss=loss, kind=kind))
    assert "started from 10, where 2.3026 was due" in finding.message


@pytest.mark.parametrize(("kind", "loss"), [("softmax", 49.0), ("sigmoid", 1599.0)])
def test_a_scale_that_is_used_as_it_is_kept_is_quiet(kind: str, loss: float) -> None:
    with pytest.raises(Missing, match="norm gains"):
        list(logit_scale_wrong_init(recorded((1, 10.0), (20, 9.9), loss=loss, kind=kind)))


def test_a_high_loss_accuses_no_scale_of_ordinary_size() -> None:
    with pytest.raises(Missing, match="norm gains"):
        list(logit_scale_wrong_init(recorded((1, log(100)), (20, log(100)), loss=60.0)))
