from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fgclip_doctor import events
from fgclip_doctor.recorded import Columns
from fgclip_doctor.run import Event, Plan, Run, Source
from tests import runs, watched_ranks


def logged(steps: Any = None, **series: Any) -> Run:
    return runs.run(
        roles={"loss.total": "loss"}, logged=[runs.series(name, values, steps) for name, values in series.items()]
    )


def happened(run: Run) -> list[tuple[str, int]]:
    return [(event.kind, event.step) for event in events.events(run)]


def cosine(count: int, cycles: int) -> Any:
    return 1e-3 * 0.5 * (1 + np.cos(np.pi * (np.arange(count) / count * cycles % 1)))


def test_what_was_planned_and_told() -> None:
    run = Run("test", plan=Plan(bank_on=50, restarts=(100,), candidates={70: 256}))
    run.events.append(Event("resume", 60, "told", Source("train.log")))
    assert happened(run) == [("bank-on", 50), ("resume", 60), ("candidates", 70), ("restart", 100)]
    between = events.between(run, 55, 75)
    assert between is not None
    assert between.kind == "candidates"  # the likeliest cause of a jump
    assert events.between(run, 101, 999) is None


@pytest.mark.parametrize("warmup", [1, 20])
def test_a_learning_rate_that_starts_over(warmup: int) -> None:
    rates = cosine(900, 3) * np.minimum(1, (np.arange(900) % 300 + 1) / warmup)
    found = happened(logged(learning_rate=rates))
    assert [kind for kind, _ in found] == ["restart", "restart"]
    assert [step for _, step in found] == pytest.approx([301, 601], abs=3)


def test_a_single_schedule_starts_once() -> None:
    assert happened(logged(lr=cosine(900, 1))) == []
    assert happened(logged(lr=np.minimum(1, np.arange(1, 901) / 100) * cosine(900, 1))) == []
    assert happened(logged(lr=np.zeros(50))) == []


def test_candidates_banks_scales_and_legs() -> None:
    at = np.arange(100)
    steps = np.concatenate([np.arange(1, 61), np.arange(41, 81)])
    assert happened(logged(candidates_region=np.where(at < 50, 4.0, 132.0))) == [("candidates", 51)]
    assert happened(logged(candidates=4 + at % 2)) == []
    assert happened(logged(bank_on=np.where(at < 30, 0.0, 1.0))) == [("bank-on", 31)]
    assert happened(logged(logit_scale=np.where(at < 70, 4.6, 2.66) + 1e-4 * at)) == [("scale", 71)]
    assert happened(logged(logit_scale=2.66 + 0.01 * at)) == []
    assert happened(logged(steps, loss=np.ones(100))) == [("resume", 41)]


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("logit_scale", [2.6592, 4.6052], [2.6592, 4.6052]),
        ("train/Logit_Scale", [14.29, 100.0], [2.6596, 4.6052]),
        ("temperature", [0.07, 0.01], [2.6593, 4.6052]),
        ("tau", [0.07, 0.0], [2.6593]),
        ("temp", [2.6593, 4.6], [2.6593, 4.6]),  # the value decides, not the name
        ("temp", [2.6593, 0.4], [2.6593, 0.4]),  # and of a scale that collapses, that at the start
        ("temperature", [0.5, 1.7], [0.6931, -0.5306]),
        ("train/temperature", [14.29, 5.0], [2.6596, 1.6094]),
        ("log_temp", [-2.6593, -4.6052], [2.6593, 4.6052]),
        ("logit_temperature", [0.07, 0.05], [2.6593, 2.9957]),
    ],
)
def test_scales_are_read_in_log_space(name: str, values: list[float], expected: list[float]) -> None:
    run = logged(**{name: values})
    (series,) = events.scales(run)
    assert events.log_scale(series)[1].tolist() == pytest.approx(expected, abs=1e-4)


def test_where_the_warmup_ends() -> None:
    assert events.warmed_up(logged(lr=np.minimum(1, np.arange(1, 301) / 100))) == 99
    assert events.warmed_up(logged(lr=np.ones(50))) == 0
    assert events.warmed_up(runs.run(facts={"warmup_steps": 40})) == 40
    assert events.warmed_up(runs.run(facts={"warmup_ratio": 0.1, "max_steps": 500})) == 50
    assert events.warmed_up(Run("test")) == 0


def test_steps_of_an_epoch() -> None:
    facts = {"dataset_size": 6400, "micro_batch": 16, "accumulation": 4}
    assert events.steps_per_epoch(runs.run(facts=facts)) == 100
    assert events.steps_per_epoch(logged(np.arange(0, 1000, 10), epoch=np.arange(0, 10, 0.1))) == pytest.approx(100)
    assert events.steps_per_epoch(logged(loss=np.ones(5))) is None


@pytest.mark.parametrize(
    ("values", "taken"),
    [
        ([14.29, 14.31, 14.40], True),  # open_clip's `train/scale`
        ([2.65625, 2.65625, 2.65625], True),
        ([65536.0, 32768.0, 32768.0], False),  # a gradient scaler's
        ([512.0, 256.0, 128.0], False),
        ([float("nan")] * 3, False),
    ],
)
def test_a_bare_scale_is_the_logits_unless_it_is_that_of_gradients(values: list[float], taken: bool) -> None:
    run = logged(**{"train/scale": values})
    assert bool(events.scales(run)) is taken
    named = logged(**{"train/scale": values, "logit_scale": [4.6, 4.6, 4.6]})
    assert [one.name for one in events.scales(named)] == ["logit_scale"]


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        (name, True)
        for name in ("grad_norm", "train/gradnorm", "optim/gradNorm", "gnorm", "gn", "grads/l2", "total_grad_norm")
    ]
    + [(name, False) for name in ("grad_norm_text", "norm", "max_grad_norm", "learning_rate")],
)
def test_the_norm_of_the_gradient_by_any_name(name: str, *, is_one: bool) -> None:
    made = runs.run(logged=[runs.series(name, [1.0, 2.0])])
    assert [one.name for one in events.gradient_norms(made)] == ([name] if is_one else [])


def test_candidates_that_a_recording_saw_join_are_known_at_their_step() -> None:
    joins = (Columns(0, 1, 24, 24), Columns(45, 136, 24, 240))
    seen = watched_ranks.watched(watched_ranks.rank(0, watched_ranks.site(anchors=24, candidates=24, changes=joins)))
    event = events.between(seen, 39, 49)
    assert event is not None
    assert (event.kind, event.step, event.value) == ("candidates", 45, 240)
    assert events.between(seen, 50, 80) is None
