from __future__ import annotations

import numpy as np
import pytest

from fgclip_doctor import Missing, Run
from fgclip_doctor.run import Remark, Source
from fgclip_doctor_checks.weights.activation_mismatch import activation_mismatch
from tests.runs import checkpoint, run

WEIGHTS = {"visual_projection.weight": np.ones((8, 4))}


def tuned(ours: str, base: str = "", started_from: str = "") -> Run:
    before = checkpoint(WEIGHTS, 0, facts={"hidden_act": base} if base else {})
    facts = {"started_from": started_from} if started_from else {}
    return run(checkpoint(WEIGHTS, facts={"hidden_act": ours}), base=before, facts=facts)


@pytest.mark.parametrize(
    "wrong",
    [
        tuned("gelu", base="quick_gelu"),
        tuned("quick_gelu", base="gelu"),
        tuned("gelu", started_from="openai/clip-vit-base-patch32"),
        tuned("gelu_new", started_from="facebook/metaclip-b32-400m"),
    ],
)
def test_another_activation_is_named(wrong: Run) -> None:
    [finding] = activation_mismatch(wrong)
    assert finding.evidence[0].value != finding.evidence[0].expected


@pytest.mark.parametrize(
    "quiet",
    [
        tuned("quick_gelu", base="quick_gelu"),
        tuned("QuickGELU", base="quick_gelu"),
        tuned("gelu", base="gelu_pytorch_tanh"),
        tuned("quick_gelu", started_from="openai/clip-vit-base-patch32"),
        tuned("gelu", base="gelu", started_from="openai/clip-vit-base-patch32"),
    ],
    ids=["the same", "another spelling", "variants of gelu", "OpenAI's", "the base decides"],
)
def test_the_same_activation_is_quiet(quiet: Run) -> None:
    assert not list(activation_mismatch(quiet))


@pytest.mark.parametrize("name", ["", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "facebook/metaclip-2-worldwide-b32"])
def test_skipped_where_the_base_is_not_known(name: str) -> None:
    with pytest.raises(Missing, match="isn't known"):
        list(activation_mismatch(tuned("gelu", started_from=name)))


def test_open_clips_warning_in_a_log() -> None:
    warned = run()
    warned.remarks = [Remark("activation", Source("train.log", line=2), ("False", "True"), np.zeros(1))]
    [finding] = activation_mismatch(warned)
    assert (finding.evidence[0].value, finding.evidence[0].expected) == ("False", "True")
    assert finding.evidence[0].source == "train.log:2"
