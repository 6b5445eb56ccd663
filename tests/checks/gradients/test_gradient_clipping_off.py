from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fgclip_doctor import Missing, Run
from fgclip_doctor.recorded import Rank, Recording
from fgclip_doctor.run import Fact, Source
from fgclip_doctor_checks.gradients.gradient_clipping_off import gradient_clipping_off
from tests.runs import checkpoint, group, optimizer, run, series, state


def given(norm: float, *, key: str = "max_grad_norm", threshold: float = 1.0, **options: Any) -> Run:
    """Two parameters, whose gradients together had this norm at every one of nine steps."""
    square = np.full((4, 8), norm**2 / 64 * (1 - 0.98**9))
    held = optimizer([group(0, [0, 1], betas=(0.9, 0.98), **options)], [state(i, 9, square, square) for i in (0, 1)])
    made = run(checkpoint({"logit_scale": 1.0}, optimizer=held))
    made.facts["max_grad_norm"] = Fact("max_grad_norm", threshold, Source("training_args.bin", key))
    return made


@pytest.mark.parametrize(("norm", "expected"), [(0.2, 0), (1.0, 0), (1.09, 0), (1.11, 1), (40.0, 1)])
def test_what_the_optimizer_was_given_over_the_threshold(norm: float, expected: int) -> None:
    found = list(gradient_clipping_off(given(norm)))
    assert len(found) == expected
    if found:
        assert found[0].evidence[0].value == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize(
    ("unsure", "why"),
    [
        (given(40.0, key="gradient_clip_val"), "for values"),
        (given(40.0, weight_decay=0.1), "weight decay"),
        (run(checkpoint({"logit_scale": 1.0})), "max_grad_norm is not known"),
    ],
)
def test_skipped_where_the_norm_or_the_threshold_is_not_known(unsure: Run, why: str) -> None:
    with pytest.raises(Missing, match=why):
        list(gradient_clipping_off(unsure))


def test_decoupled_decay_is_not_in_the_gradients() -> None:
    assert len(list(gradient_clipping_off(given(40.0, weight_decay=0.1, decoupled_weight_decay=True)))) == 1


def test_deepspeed_leaves_it_out() -> None:
    made = given(40.0, threshold=0.0, key="gradient_clipping")
    made.facts["clipping_asked"] = Fact("clipping_asked", 1.0, Source("training_args.bin", "max_grad_norm"))
    [finding] = gradient_clipping_off(made)
    assert (finding.evidence[0].value, finding.evidence[0].expected) == (0.0, 1.0)


@pytest.mark.parametrize(("spikes", "threshold", "expected"), [(3, 0.0, 1), (2, 0.0, 0), (0, 0.0, 0), (9, 60.0, 0)])
def test_spikes_in_the_log_without_clipping(spikes: int, threshold: float, expected: int) -> None:
    """A norm over the threshold is no evidence: it is logged before clipping."""
    values = np.exp(np.random.default_rng(0).normal(np.log(50), 0.2, 300))
    values[60 : 60 + 20 * spikes : 20] *= 30
    made = given(1.0, threshold=threshold)
    made.series["grad_norm"] = series("grad_norm", values)
    assert len(list(gradient_clipping_off(made))) == expected


RANK = Rank(0, 1, "recording")


def watched_norms(*norms: float, rank: Rank = RANK, **facts: Any) -> Run:
    """What a recording saw of the norms just before the optimizer's steps; Adam's moments would say 0.2."""
    made = given(0.2)
    made.recording = Recording((rank,), len(norms))
    seen = series("grad_norm", [*norms, *[0.9] * 20])
    made.series["grad_norm"] = replace(seen, source=Source("recording", "grad_norm"))
    made.facts |= {name: Fact(name, value, Source("training_args.bin", name)) for name, value in facts.items()}
    return made


@pytest.mark.parametrize(
    ("case", "findings"),
    [
        (watched_norms(1.2, 7.0, 3.0), 1),
        (watched_norms(1.2, 7.0), 0),  # `often`
        (watched_norms(1.09, 1.09, 1.09), 0),
        (watched_norms(7.0, 7.0, 7.0, fp16=True), 0),  # of scaled gradients
        (watched_norms(7.0, 7.0, 7.0, rank=Rank(0, 1, "recording", optimizers=("AdamW", "SGD"))), 0),
        (watched_norms(7.0, 7.0, 7.0, rank=Rank(0, 1, "elsewhere")), 0),  # a log's, which are those before clipping
    ],
)
def test_what_a_recording_saw_before_the_steps(case: Run, findings: int) -> None:
    found = list(gradient_clipping_off(case))
    assert len(found) == findings
    assert not found or found[0].evidence[0].value == 7.0


def test_skipped_without_a_log() -> None:
    with pytest.raises(Missing, match="no gradient norm was logged"):
        list(gradient_clipping_off(given(1.0, threshold=0.0)))
