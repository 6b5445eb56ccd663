from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from math import log
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from fgclip_doctor import Finding, Missing, Run, theory
from fgclip_doctor.terms import falling, sites
from fgclip_doctor_checks.losses.loss_at_chance import loss_at_chance
from tests import features, runs
from tests.features import saved
from tests.watched_ranks import rank, site, watched

SCRATCH, TUNED = 2.6592, 4.6052  # logit_scale
SCALES = {"scale.global": "logit_scale", "scale.region": "logit_scale_finegraind", "scale.hard": "logit_scale_hardneg"}
ALONE = {"micro_batch": 4, "world_size": 1, "dimension": 512, "accumulation": 8, "regions_per_sample": 1.0}


def unaligned(
    anchors: int, candidates: int, logit_scale: float, *, steps: int = 200, batches: int = 8, seed: int = 0
) -> NDArray[np.float64]:
    """The loss of random features, as a log that averages `batches` of them a step has it."""
    rng, scale = np.random.default_rng(seed), np.exp(logit_scale)
    losses = np.empty((steps, batches))
    for place in np.ndindex(losses.shape):
        logits = scale * features.unit(rng.standard_normal((anchors, 512))) @ features.noise(rng, candidates, 512)[1].T
        top = logits.max(axis=1)
        losses[place] = np.mean(
            top + np.log(np.exp(logits - top[:, None]).sum(axis=1)) - logits[:, :anchors].diagonal()
        )
    return losses.mean(axis=1)


def logged(
    values: ArrayLike, term: str = "global", *, logit_scale: float = SCRATCH, bank: Any = None, **facts: Any
) -> Run:
    """A run whose term `term` was logged once a step."""
    role = f"scale.{term}" if term != "total" else "scale.global"
    scale = {SCALES[role]: np.array(logit_scale)}
    stored = runs.checkpoint(scale, 200) if bank is None else saved(**bank, more=scale)
    roles = {**(features.ROLES if bank else {}), f"loss.{term}": f"{term}_loss", role: SCALES[role]}
    return runs.run(stored, facts={**ALONE, **facts}, roles=roles, logged=[runs.series(f"{term}_loss", values)])


def found(run: Run, **thresholds: Any) -> list[Finding]:
    return list(loss_at_chance(run, **thresholds))


CHANCE_4 = unaligned(4, 4, SCRATCH)
CHANCE_132 = unaligned(4, 132, SCRATCH, steps=160)
BANK = features.cone(np.random.default_rng(0), 128, 512)


def test_fires_on_unaligned_features() -> None:
    (finding,) = found(logged(CHANCE_4))
    assert "at chance (unaligned)" in finding.message
    proof = {one.name: one.value for one in finding.evidence}
    assert proof["null level"] == pytest.approx(1.528, abs=2e-3)
    assert proof["mean loss"] == pytest.approx(1.528, abs=0.06)
    assert "FGD701" in finding.explained_by


def test_fires_on_unaligned_features_at_scale_100_with_every_batch_logged() -> None:
    many = unaligned(4, 4, TUNED, steps=4000, batches=1)
    (finding,) = found(logged(many, logit_scale=TUNED, accumulation=1))
    assert "unaligned" in finding.message


def test_noise_hides_nothing_of_a_loss_far_over_ln_n() -> None:
    """7.0 +- 0.4 with four candidates: as pretrained features do that are confidently wrong about shuffled captions."""
    values = 7.0 + 3.0 * np.random.default_rng(0).standard_normal(160)
    (finding,) = found(logged(values, logit_scale=TUNED))
    assert "unaligned" in finding.message


def test_fires_with_the_candidates_of_the_bank() -> None:
    (finding,) = found(logged(CHANCE_132, "region", bank={"pairs": BANK, "pointer": 3, "full": True}))
    assert "128 rows of the bank" in finding.evidence[1].why


@pytest.mark.parametrize("logit_scale", [SCRATCH, TUNED])
def test_fires_on_collapsed_features(logit_scale: float) -> None:
    flat = log(128) + 1e-3 * np.random.default_rng(0).standard_normal(200)
    (finding,) = found(logged(flat, logit_scale=logit_scale, candidates=128))
    assert "at chance (collapsed)" in finding.message


def cone(steps: int = 200) -> NDArray[np.float64]:
    """The loss of features that share a mean direction and nothing else, as a pretrained tower under a lost head."""
    rng = np.random.default_rng(0)
    means = 1.5 * features.unit(rng.standard_normal((2, 512)))
    losses = np.empty((steps, 8))
    for place in np.ndindex(losses.shape):
        images, texts = (
            features.unit(one + mean) for one, mean in zip(features.noise(rng, 4, 512), means, strict=True)
        )
        logits = np.exp(TUNED) * images @ texts.T
        losses[place] = np.mean(np.log(np.exp(logits).sum(axis=1)) - logits.diagonal())
    return losses.mean(axis=1)


def test_fires_on_unaligned_features_in_a_cone() -> None:
    values = cone()
    assert log(4) + 0.2 < values.mean() < 4.0  # between ln N and the level of features that are spread evenly
    (finding,) = found(logged(values, logit_scale=TUNED))
    assert "unaligned" in finding.message


@pytest.mark.parametrize(("kind", "chance", "learnt"), [("margin", 0.02, 0.9), ("accuracy", 0.26, 0.6)])
def test_a_logged_margin_or_accuracy_acquits(kind: str, chance: float, learnt: float) -> None:
    run = logged(CHANCE_4)
    name = f"{kind}_global"
    run.series[name] = runs.series(name, chance + 0.05 * np.random.default_rng(0).standard_normal(200))
    assert found(run)
    run.series[name] = runs.series(name, learnt + 0.05 * np.random.default_rng(0).standard_normal(200))
    assert not found(run)


def test_reads_the_candidates_from_the_log() -> None:
    """The values from before the last change have another yardstick, and don't count."""
    run = logged(np.concatenate([np.full(100, 1.0), CHANCE_132[:150]]), "region")
    run.series["candidates_region"] = runs.series("candidates_region", [4] * 100 + [130, 134] * 75)
    (finding,) = found(run)
    assert "132 as logged" in finding.evidence[1].why
    assert "steps 176 to 250" in finding.message


def test_fires_on_hard_negatives() -> None:
    values = unaligned(4, 11, SCRATCH)
    (finding,) = found(logged(values, "hard"))
    assert finding.where == "hard_loss"


def test_fires_on_a_total_of_one_term() -> None:
    assert len(found(logged(CHANCE_4, "total"))) == 1


def learning(start: float, end: float, steps: int = 400, noise: float = 0.1) -> NDArray[np.float64]:
    falling = end + (start - end) * np.exp(-np.arange(steps) / (steps / 2))
    return falling + noise * np.random.default_rng(1).standard_normal(steps)


BANK_ON = {"pairs": BANK, "pointer": 3, "full": True}


@pytest.mark.parametrize(
    "run",
    [
        logged(learning(3.66, 0.8), candidates=32),
        logged(learning(1.9, 1.45, noise=0.05)),  # through its null level, slowly
        logged(np.full(200, 1.2) + 0.1 * np.sin(np.arange(200.0))),  # learnt half a bit of two, and stays there
        # at ln 32 and at the null level of 32, where 256 were gathered
        logged(log(32) + learning(0, 0, noise=0.05), micro_batch=32, world_size=8),
        logged(3.66 + learning(0, 0, noise=0.05), micro_batch=32, world_size=8),
        # at ln 4 and at the null level of 4 with a bank: five bits learnt
        logged(1.39 + learning(0, 0, noise=0.1), "region", bank=BANK_ON),
        logged(1.53 + learning(0, 0, noise=0.1), "region", bank=BANK_ON),
        # at ln 4 at scale 100, with the noise of features that are not collapsed
        logged(log(4) + learning(0, 0, noise=0.15), logit_scale=TUNED),
        # the right level with swings that no sampling explains is another fault
        logged(1.53 + 0.9 * np.sin(np.arange(400.0))),
    ],
)
def test_quiet_on_learning(run: Run) -> None:
    assert not found(run)


def test_quiet_in_random_learning_runs() -> None:
    """Of 200 runs that end between a quarter and all of their bits, none is called at chance."""
    rng = np.random.default_rng(7)
    for _ in range(200):
        candidates = int(rng.choice([4, 8, 32, 132, 1024]))
        level = theory.null(anchors=4, candidates=candidates, scale=14.24, dimension=512).level
        end = level - rng.uniform(0.25, 1.0) * log(candidates)
        shape = np.exp(-np.arange(300) / rng.uniform(20, 300))
        values = end + (level - end) * shape + rng.uniform(0.02, 0.3) * rng.standard_normal(300)
        run = logged(values, candidates=candidates)
        with suppress(Missing):  # some are too noisy to tell
            assert not found(run)


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (logged(CHANCE_4[:60]), "too few values"),
        (logged(CHANCE_4, warmup_steps=190), "too few values"),
        (logged(CHANCE_4, max_steps=10_000), "too few values"),
        (logged(1.4 + np.random.default_rng(0).standard_normal(160), logit_scale=TUNED), "too noisy"),
        (logged(CHANCE_4, label_smoothing=0.1), "label smoothing"),
        (logged(CHANCE_4, "total", bank=BANK_ON), "several loss terms"),
        (runs.run(facts=ALONE), "no loss was logged"),
    ],
)
def test_skipped_without_evidence(run: Run, reason: str) -> None:
    with pytest.raises(Missing, match=reason):
        found(run)


@pytest.mark.parametrize("lost", ["micro_batch", "world_size", "dimension"])
def test_skipped_without_what_makes_the_yardstick(lost: str) -> None:
    run = logged(CHANCE_4)
    del run.facts[lost]
    with pytest.raises(Missing, match=lost):
        found(run)


def test_collapsed_features_are_told_whatever_their_width() -> None:
    run = logged(log(4) + 1e-3 * np.random.default_rng(0).standard_normal(200))
    del run.facts["dimension"]
    (finding,) = found(run)
    assert "at chance (collapsed)" in finding.message


def test_skipped_without_the_scale() -> None:
    run = logged(CHANCE_4)
    del run.roles["scale.global"]
    with pytest.raises(Missing, match="scale"):
        found(run)


def test_flips_at_ln_n() -> None:
    """Unaligned features are never under ln N; their noise goes with how far over it they are."""
    run = logged(log(64) + 0.02 + 0.03 * np.tile([1.0, -1.0], 150), candidates=64)
    assert len(found(run)) == 1
    assert not found(logged(log(64) - 0.02 + 0.03 * np.tile([1.0, -1.0], 150), candidates=64))


def test_flips_at_the_precision() -> None:
    values = 1.528 + 0.5 * np.tile([1.0, -1.0], 65)  # so near to ln N that precision is needed
    run = logged(values)
    error = theory.mean_with_error(values[90:])[1]
    assert 2 * error > 0.1 * log(4)
    assert found(run, bits=2.001 * error / log(2))
    with pytest.raises(Missing, match="too noisy"):
        found(run, bits=1.999 * error / log(2))


def text_only(values: ArrayLike, **facts: Any) -> Run:
    """A log of a lone loss, with nothing beside it but what is stated."""
    return runs.run(
        facts=facts, roles={"loss.total": "loss"}, logged=[runs.series("loss", values, np.arange(200) * 10)]
    )


def test_fires_on_shuffled_captions_far_over_the_null_level() -> None:
    """Features that know captions, but those of other images: at scale 100, ten nats and more."""
    values = 14.0 + 1.5 * np.random.default_rng(0).standard_normal(300)
    (finding,) = found(logged(values, logit_scale=TUNED))
    assert "(opposed)" in finding.message
    assert "FGD404" in finding.explained_by
    assert not found(logged(learning(30, 11, 300, noise=0.5), logit_scale=TUNED))  # comes down


def test_a_sigmoid_loss_without_knowledge_comes_down_to_its_own_chance() -> None:
    noise = 0.02 * np.random.default_rng(0).standard_normal(300)
    chance = theory.sigmoid_chance(64)
    assert chance == pytest.approx(log(64) + 1, abs=0.01)
    run = logged(chance + 0.3 * np.exp(-np.arange(300) / 20) + noise, micro_batch=64, loss_kind="sigmoid")
    (finding,) = found(run)
    assert "N H(1/N)" in finding.message
    assert not found(logged(0.8 * chance + noise, micro_batch=64, loss_kind="sigmoid"))


def test_label_smoothing_hides_chance_only_at_a_high_scale() -> None:
    """Confident pairs cost epsilon times their margin, and the margin is at most about the scale."""
    flat = log(128) + 1e-3 * np.random.default_rng(0).standard_normal(200)
    assert found(logged(flat, candidates=128, label_smoothing=0.1))
    with pytest.raises(Missing, match="label smoothing"):
        found(logged(flat, candidates=128, label_smoothing=0.1, logit_scale=TUNED))


def test_candidates_inferred_from_a_batch_tell_only_what_stands_still() -> None:
    rng = np.random.default_rng(0)
    still = log(128) + 2e-3 * rng.standard_normal(200)
    assert found(text_only(still, micro_batch=128))
    for values in (still + 0.1 * rng.standard_normal(200), still + 3 * np.exp(-np.arange(200) / 10)):
        with pytest.raises(Missing):
            found(text_only(values, micro_batch=128))
    assert not found(text_only(still - 1.0, micro_batch=128, world_size=1, candidates=128))


def test_a_handful_of_values_tells_where_the_null_noise_is_known() -> None:
    facts = {"micro_batch": 4, "candidates": 132, "bank_size": 128, "world_size": 1, "dimension": 512, "scale": 14.24}
    steps = np.arange(60, 110, 10)
    run = runs.run(facts=facts, roles={"loss.total": "loss"}, logged=[runs.series("loss", CHANCE_132[:5], steps)])
    assert found(run)
    run.series["loss"] = runs.series("loss", [4.9, 4.6, 4.35, 4.1, 3.9], steps)
    assert not found(run)
    del run.facts["scale"]
    with pytest.raises(Missing, match="too few values"):
        found(run)


def test_a_warmup_that_the_log_shows_is_no_chance() -> None:
    run = logged(CHANCE_4)
    run.series["learning_rate"] = runs.series("learning_rate", np.arange(1, 201) * 1e-6)
    with pytest.raises(Missing, match="too few values"):
        found(run)


def seen(*, learnt: float, calls: int = 160) -> Run:
    """A loss that was seen being computed, of unit features that share `learnt` of a direction by the end; the scale
    sinks meanwhile, and the loss with it."""
    rng = np.random.default_rng(0)
    losses, nulls, hits = [], [], []
    for scale, share in zip(np.linspace(14, 4, calls), np.linspace(0, learnt, calls), strict=True):
        images, noise = rng.normal(size=(2, 24, 64))
        texts = share * images + noise
        rows = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in (images, texts)]
        logits = scale * rows[0] @ rows[1].T
        level = np.log(np.exp(logits).sum(1))
        losses.append((level - np.diag(logits)).mean())
        nulls.append((level - logits.mean(1)).mean())
        hits.append((logits.argmax(1) == np.arange(24)).mean())
    measured = {"loss": np.array(losses), "null": np.array(nulls), "top1": np.array(hits)}
    one = site(anchors=24, candidates=24, calls=calls, **measured)
    return watched(rank(0, one))


@pytest.mark.parametrize(("margin", "expected"), [(0.002, 1), (0.02, 1), (0.08, 0)])
def test_a_margin_that_is_certain_and_next_to_nothing(margin: float, expected: int) -> None:
    """As of a region loss whose duplicates are masked, so that the number of its candidates changes a little."""
    candidates = 47 + (np.arange(120) % 3 - 1)
    null = np.log(candidates) + 1e-3
    measured = {"loss": null - margin, "null": null, "top1": np.full(120, 1 / 48)}
    one = replace(site(anchors=48, calls=120, **measured), candidates=candidates.astype(float))
    assert len(list(loss_at_chance(watched(rank(0, one))))) == expected


@pytest.mark.parametrize(("learnt", "expected"), [(0.0, 1), (0.5, 0)])
def test_a_loss_that_falls_because_its_scale_sinks_has_learnt_nothing(learnt: float, expected: int) -> None:
    made = seen(learnt=learnt)
    assert falling(next(sites(made)).loss), "or the fall would not be what acquits it"
    assert len(list(loss_at_chance(made))) == expected
