"""Logs of sound runs that look like faults, each a `Run`: what every check of a log has to stay quiet on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgclip_doctor import Run
from fgclip_doctor.run import Plan
from tests import runs

FACTS = {"micro_batch": 32, "accumulation": 4, "world_size": 1, "dimension": 512, "scale": 100.0}
Floats = NDArray[np.float64]


def run(values: Floats, steps: Any = None, *, plan: Plan | None = None, facts: Any = None, **others: Floats) -> Run:
    """A run whose only term is `loss`; `others` are series of one value a step of it."""
    at = np.arange(1, len(values) + 1) if steps is None else np.asarray(steps)
    logged = [runs.series("loss", values, at), *(runs.series(name, one, at) for name, one in others.items())]
    stated = {"candidates": 32, **FACTS, **(facts or {})}
    made = runs.run(facts=stated, roles={"loss.total": "loss"}, logged=logged)
    made.plan = plan or Plan()
    return made


def learning(count: int, start: float = 3.4, end: float = 0.6, rate: float = 4.0) -> Floats:
    return end + (start - end) * np.exp(-rate * np.arange(count) / count)


def noisy(rng: np.random.Generator, values: Floats, share: float = 0.1) -> Floats:
    return values * (1 + share * rng.standard_normal(len(values)))


def cosine(count: int, cycles: int = 1, warmup: int = 20) -> Floats:
    places = np.arange(count) / count * cycles % 1
    return 1e-3 * 0.5 * (1 + np.cos(np.pi * places)) * np.minimum(1, (np.arange(count) + 1) / warmup)


def plain(rng: np.random.Generator) -> Run:
    return run(noisy(rng, learning(600)), grad_norm=np.exp(0.3 * rng.standard_normal(600)), learning_rate=cosine(600))


def steady_norm_over_ten(rng: np.random.Generator) -> Run:
    norms = 40 * np.exp(0.4 * rng.standard_normal(600))
    return run(noisy(rng, learning(600)), grad_norm=norms, facts={"max_grad_norm": 1.0})


def lone_spike_that_nothing_came_of(rng: np.random.Generator) -> Run:
    norms = np.exp(0.2 * rng.standard_normal(600))
    norms[400] = 80.0
    return run(noisy(rng, learning(600)), grad_norm=norms)


def end_over_a_single_minimum(rng: np.random.Generator) -> Run:
    values = noisy(rng, learning(400), 0.3)
    values[300] = 0.2
    return run(values)


def bank_on_by_plan(rng: np.random.Generator) -> Run:
    values = np.where(np.arange(400) < 200, learning(400, 3.0, 0.8), learning(400, 6.0, 2.2))
    return run(noisy(rng, values, 0.05), plan=Plan(bank_on=201), facts={"bank_size": 4096, "candidates": 4128})


def bank_that_fills(rng: np.random.Generator) -> Run:
    """It comes on at step 200, and takes 100 steps to fill; the log of its rows says so."""
    rows = np.clip((np.arange(600) - 200) * 40.0, 0, 4000)
    values = learning(600, 3.0, 1.0) + 0.6 * np.log((32 + rows) / 32)
    return run(noisy(rng, values, 0.05), candidates_loss=32 + rows, bank_rows=rows)


def cosine_restarts(rng: np.random.Generator) -> Run:
    rates = cosine(900, cycles=3)
    return run(noisy(rng, learning(900, rate=6) + 600 * rates, 0.05), learning_rate=rates)


def resumed(rng: np.random.Generator) -> Run:
    """Killed at step 350, and gone on from step 300, a little higher for a while."""
    values = noisy(rng, learning(600), 0.08)
    again = values[300:] + 0.2 * np.exp(-np.arange(300) / 20)
    steps = np.concatenate([np.arange(1, 351), np.arange(301, 601)])
    return run(np.concatenate([values[:350], again]), steps)


def running_mean(rng: np.random.Generator) -> Run:
    values = noisy(rng, learning(600), 0.4)
    return run(np.convolve(values, np.ones(50) / 50, mode="valid"))


def tiny_batches(rng: np.random.Generator) -> Run:
    """Four anchors of four candidates at scale 100: three times as noisy as they are high."""
    values = np.maximum(0.02, learning(400, 1.4, 0.5) * rng.gamma(0.6, 1 / 0.6, 400))
    return run(values, facts={"micro_batch": 4, "candidates": 4, "accumulation": 1})


def label_smoothing(rng: np.random.Generator) -> Run:
    return run(noisy(rng, learning(600, 3.4, 0.95), 0.03), facts={"label_smoothing": 0.1})


def converged_near_zero_with_jumps(rng: np.random.Generator) -> Run:
    values = 0.01 * np.exp(0.5 * rng.standard_normal(800))
    values[rng.choice(800, 12, replace=False)] = rng.uniform(0.5, 2.0, 12)
    return run(values, grad_norm=np.exp(0.5 * rng.standard_normal(800)))


def converged(rng: np.random.Generator) -> Run:
    return run(noisy(rng, learning(3000, 3.4, 0.4, rate=12), 0.1), learning_rate=cosine(3000))


def evaluations_beside(rng: np.random.Generator) -> Run:
    made = run(noisy(rng, learning(600)))
    made.series["eval_loss"] = runs.series("eval_loss", 3.5 + np.sin(np.arange(30)), np.arange(20, 620, 20))
    return made


def epochs(rng: np.random.Generator, *, known: bool) -> Run:
    """It drops at each epoch, as what was seen is remembered, and rests or rises a little within."""
    epoch = np.arange(1200) // 100
    values = 3.0 * 0.8**epoch + 0.15 * (np.arange(1200) % 100) / 100
    return run(noisy(rng, values, 0.03), facts={"dataset_size": 100 * 32 * 4} if known else None)


def known_epochs(rng: np.random.Generator) -> Run:
    return epochs(rng, known=True)


def unknown_epochs(rng: np.random.Generator) -> Run:
    return epochs(rng, known=False)


def period_of_an_epoch(rng: np.random.Generator) -> Run:
    """Data that are read in the same order in each epoch."""
    values = learning(1200, 3.4, 1.2) * (1 + 0.3 * np.sin(2 * np.pi * np.arange(1200) / 100))
    return run(noisy(rng, values, 0.03), facts={"dataset_size": 100 * 32 * 4})


def period_of_an_unknown_epoch(rng: np.random.Generator) -> Run:
    values = learning(1200, 3.4, 1.2) * (1 + 0.3 * np.sin(2 * np.pi * np.arange(1200) / 100))
    return run(noisy(rng, values, 0.03))


def ten_points(rng: np.random.Generator) -> Run:
    return run(noisy(rng, learning(10, 3.0, 0.8)), np.arange(50, 550, 50))


def rounded_with_gaps(rng: np.random.Generator) -> Run:
    values = np.round(noisy(rng, learning(300)), 1)
    values[rng.choice(300, 40, replace=False)] = np.nan
    return run(values, np.sort(rng.choice(5000, 300, replace=False)) + 1)


def scale_that_falls_from_its_cap(rng: np.random.Generator) -> Run:
    return run(noisy(rng, learning(600)), logit_scale=np.linspace(4.6052, 4.2, 600))


def scale_that_settles_low(rng: np.random.Generator) -> Run:
    scale = np.log(6) + (2.66 - np.log(6)) * np.exp(-np.arange(600) / 100)
    return run(noisy(rng, learning(600, 3.4, 1.5)), logit_scale=scale)


def switched_off_term(rng: np.random.Generator) -> Run:
    values = noisy(rng, learning(300))
    made = run(values, loss_global=values, loss_hard=np.zeros(300))
    made.roles |= {"loss.global": "loss_global", "loss.hard": "loss_hard"}
    return made


def terms_and_total(rng: np.random.Generator) -> Run:
    one, two = noisy(rng, learning(300)), noisy(rng, learning(300, 2.4, 0.9))
    made = run(np.round(one + 0.5 * two, 4), loss_global=np.round(one, 4), loss_hard=np.round(two, 4))
    made.roles |= {"loss.global": "loss_global", "loss.hard": "loss_hard"}
    return made


def regions_not_in_every_batch(rng: np.random.Generator) -> Run:
    """Two samples a batch, half of which have a region: one in three batches has none."""
    one, two = noisy(rng, learning(300)), noisy(rng, learning(300, 1.4, 0.6))
    there = rng.random(300) > 0.35
    made = run(one + np.where(there, 0.1 * two, 0), loss_global=one)
    made.series["loss_region"] = runs.series("loss_region", two[there], np.flatnonzero(there) + 1)
    made.roles |= {"loss.global": "loss_global", "loss.region": "loss_region"}
    facts = runs.run(facts={"micro_batch": 2, "accumulation": 1, "regions_per_sample": 0.5}).facts
    made.facts |= facts
    return made


def logged_less_often(rng: np.random.Generator) -> Run:
    one, two = noisy(rng, learning(600)), noisy(rng, learning(600, 2.4, 0.9))
    made = run(one + 0.5 * two, loss_global=one)
    made.series["loss_hard"] = runs.series("loss_hard", two[9::10], np.arange(10, 610, 10))
    made.roles |= {"loss.global": "loss_global", "loss.hard": "loss_hard"}
    return made


def coincidence_with_a_chance_level(rng: np.random.Generator) -> Run:
    """3.43 is near ln 32, and the run, of 1,024 candidates, is learning."""
    values = learning(400, 6.9, 3.2, rate=3.0)
    made = run(noisy(rng, values, 0.02), facts={"candidates": 1024})
    del made.facts["candidates"], made.facts["world_size"]
    return made


HEALTHY: tuple[Callable[[np.random.Generator], Run], ...] = (
    plain,
    steady_norm_over_ten,
    lone_spike_that_nothing_came_of,
    end_over_a_single_minimum,
    bank_on_by_plan,
    bank_that_fills,
    cosine_restarts,
    resumed,
    running_mean,
    tiny_batches,
    label_smoothing,
    converged_near_zero_with_jumps,
    converged,
    evaluations_beside,
    known_epochs,
    unknown_epochs,
    period_of_an_epoch,
    period_of_an_unknown_epoch,
    ten_points,
    rounded_with_gaps,
    scale_that_falls_from_its_cap,
    scale_that_settles_low,
    switched_off_term,
    terms_and_total,
    regions_not_in_every_batch,
    logged_less_often,
    coincidence_with_a_chance_level,
)
