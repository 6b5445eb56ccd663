from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fgclip_doctor import Missing, Run
from fgclip_doctor.run import Remark, Source
from fgclip_doctor_checks.weights.weights_left_at_init import weights_left_at_init
from tests.runs import adam, checkpoint, run

Weights = dict[str, NDArray[Any]]
RNG = np.random.default_rng(0)
HEADS = {"head.image": "visual_projection.weight", "head.region": "roi_projection.weight"}


def new(*shape: int, std: float = 0.02) -> NDArray[np.float64]:
    return RNG.normal(0, std, shape)


def learnt(*shape: int) -> NDArray[np.float64]:
    """What training makes of a matrix: strong directions, rows of unequal size, heavy tails."""
    strong = RNG.normal(size=(shape[0], 4)) @ RNG.normal(size=(4, shape[1]))
    rows = np.exp(RNG.normal(0, 0.4, (shape[0], 1)))
    return 0.02 * rows * (RNG.standard_t(5, shape) + 0.5 * strong)


def pretrained(blocks: int = 4) -> Weights:
    weights: Weights = {}
    for block in range(blocks):
        prefix = f"vision_model.encoder.layers.{block}"
        weights[f"{prefix}.self_attn.in_proj_weight"] = learnt(192, 64)
        weights[f"{prefix}.self_attn.out_proj.weight"] = learnt(64, 64)
        weights[f"{prefix}.mlp.fc1.weight"] = learnt(256, 64)
        weights[f"{prefix}.mlp.fc2.weight"] = learnt(64, 256)
        weights[f"{prefix}.norm.weight"] = RNG.normal(1, 0.2, 64)
        weights[f"{prefix}.norm.bias"] = RNG.normal(0, 0.2, 64)
    weights["vision_model.post_layernorm.weight"] = RNG.normal(1, 0.2, 64)
    weights["vision_model.post_layernorm.bias"] = RNG.normal(0, 0.2, 64)
    weights["visual_projection.weight"] = learnt(64, 64)
    weights["roi_projection.weight"] = weights["visual_projection.weight"] + RNG.normal(0, 1e-4, (64, 64))
    return weights


def tuned(weights: Mapping[str, Any], *, lr: float = 5e-6, steps: int = 240, planned: int = 240, **more: Any) -> Run:
    """A run of `steps` steps that started from these weights."""
    start = checkpoint(weights).tensors
    held = adam(start, step=steps, lr=lr)
    return run(checkpoint(start, steps, optimizer=held), facts={"max_steps": planned}, roles=HEADS, **more)


def found(case: Run) -> set[str]:
    return {finding.where for finding in weights_left_at_init(case)}


def with_new(weights: Weights, part: str) -> Weights:
    """The same model with every matrix whose name has `part` in it at random."""
    return {name: new(*one.shape) if part in name and one.ndim > 1 else one for name, one in weights.items()}


@pytest.mark.parametrize("bare", [True, False], ids=["weights alone", "a run"])
@pytest.mark.parametrize(
    ("part", "where"),
    [
        ("in_proj", "vision_model.encoder.layers.*.self_attn.in_proj_weight"),
        ("roi_projection", "roi_projection.weight"),
        ("layers.3", "vision_model.encoder.layers.3.mlp.fc1.weight"),
    ],
)
def test_a_part_at_random_is_named(part: str, where: str, *, bare: bool) -> None:
    weights = with_new(pretrained(), part)
    case = run(checkpoint(weights, None), roles=HEADS) if bare else tuned(weights)
    assert where in found(case)
    assert all(part in name for name in found(case))


def test_a_norm_that_was_missed_is_named() -> None:
    weights = pretrained()
    weights["vision_model.post_layernorm.weight"] = np.ones(64)
    weights["vision_model.post_layernorm.bias"] = np.zeros(64)
    assert found(tuned(weights)) == {"vision_model.post_layernorm.weight"}


def test_a_single_tensor_is_named_beside_its_base() -> None:
    weights = pretrained()
    name = "vision_model.encoder.layers.2.mlp.fc1.weight"
    missed = {**weights, name: new(256, 64)}
    assert found(tuned(missed, base=checkpoint(weights))) == {name}


def orthogonal(size: int) -> NDArray[np.float64]:
    return np.linalg.qr(RNG.normal(size=(size, size)))[0]


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"roi_projection.weight": orthogonal(64)},
        {f"vision_model.encoder.layers.{n}.lora_A.weight": new(16, 64) for n in range(4)},
        {f"vision_model.encoder.layers.{n}.extra.down.weight": new(32, 64) for n in range(4)}
        | {f"vision_model.encoder.layers.{n}.extra.up.weight": np.zeros((64, 32)) for n in range(4)},
        {"text_model.embeddings.token_embedding.weight": new(1000, 64, std=1.0)},
        {"region_norm.weight": np.ones(64), "region_norm.bias": np.zeros(64)},
    ],
    ids=["itself", "orthogonal", "LoRA", "zero-init adapters", "lookup table", "a new norm"],
)
def test_look_alikes_in_a_pretrained_model_are_quiet(extra: Weights) -> None:
    assert not found(tuned({**pretrained(), **extra}))
    assert not found(run(checkpoint({**pretrained(), **extra}, None), roles=HEADS))


def test_a_model_from_scratch_is_quiet() -> None:
    started = {
        name: np.ones_like(one) if name.endswith("norm.weight") else one * 0 for name, one in pretrained().items()
    }
    weights = {**started, **{name: new(*one.shape) for name, one in started.items() if one.ndim > 1}}
    assert not found(tuned(weights))
    with pytest.raises(Missing, match="clearly trained"):
        found(run(checkpoint(weights, None), roles=HEADS))


def test_a_new_head_flips_with_what_its_learning_rate_can_teach() -> None:
    """Half of its standard deviation of 0.02 is 0.01: 1,000 steps at 1e-5, and not quite 999."""
    head = new(32, 64)
    weights = {**pretrained(), "roi_projection.weight": head * 0.02 / head.std()}
    assert not found(tuned(weights, lr=1e-5, planned=1001))
    assert found(tuned(weights, lr=1e-5, planned=999)) == {"roi_projection.weight"}


def test_skipped_where_learning_rates_could_have_made_everything() -> None:
    with pytest.raises(Missing, match="can't tell pretrained"):
        found(tuned(pretrained(), lr=1e-3, steps=10_000))


@pytest.mark.parametrize(("copied", "expected"), [(False, {"roi_projection.weight"}), (True, set())])
def test_a_branch_head_unlike_its_donor_is_named_even_among_weights_that_look_random(
    expected: set[str], *, copied: bool
) -> None:
    """A base so small that its own matrices show no structure, as test models are."""
    base = {name: new(*one.shape) if one.ndim > 1 else one for name, one in pretrained().items() if "roi" not in name}
    donor = base["visual_projection.weight"]
    weights = {**base, "roi_projection.weight": donor + new(64, 64, std=1e-3) if copied else new(64, 64)}
    assert found(tuned(weights, base=checkpoint(base))) == expected


def test_a_base_of_another_model_proves_nothing() -> None:
    base = {name: new(*one.shape) if one.ndim > 1 else one for name, one in pretrained().items()}
    weights = {name: new(*one.shape) if one.ndim > 1 else one for name, one in base.items()}
    assert not found(tuned(weights, base=checkpoint(base)))


def test_a_transposed_projection_was_loaded_all_the_same() -> None:
    """It is random beside its base, but not beside the base's transpose: FGD702 says what happened."""
    base = with_new(pretrained(), "projection")
    weights = {**base, "visual_projection.weight": base["visual_projection.weight"].T}
    assert not found(tuned(weights, base=checkpoint(base)))


def listed(*names: str, lr: float = 1e-6, steps: int = 1000) -> Run:
    """A log with transformers' list of newly initialized weights."""
    one = run(facts={"learning_rate": lr, "max_steps": steps})
    one.remarks = [Remark("new-weights", Source("train.log", line=9), names, np.zeros(1))]
    return one


def test_transformers_lists_a_part_of_a_tower() -> None:
    names = ("vision_model.encoder.layers.0.mlp.fc1.weight", "visual_projection.weight", "classifier.weight")
    [finding] = weights_left_at_init(listed(*names))
    assert finding.where == names[0]
    assert (finding.evidence[0].value, finding.evidence[0].source) == (2, "train.log:9")


@pytest.mark.parametrize(
    "case",
    [
        listed("classifier.weight", "classifier.bias"),
        listed("text_filip_projection.weight", "text_model.embeddings.position_embedding_res.weight"),
        listed("roi_projection.weight", "logit_scale_hardneg", "text_model.embeddings.position_ids"),
        listed("visual_projection.weight", lr=1e-3),
    ],
    ids=["a classifier", "copied by start-up code", "branches and buffers", "rates that can teach it"],
)
def test_what_is_new_by_design(case: Run) -> None:
    assert not list(weights_left_at_init(case))


@pytest.mark.parametrize(("steps", "expected"), [(9_900, 1), (10_100, 0)])
def test_a_list_flips_where_the_rates_can_teach(steps: int, expected: int) -> None:
    assert len(list(weights_left_at_init(listed("text_projection.weight", steps=steps)))) == expected


def test_skipped_where_a_list_comes_without_rates() -> None:
    one = listed("text_projection.weight")
    one.facts.clear()
    with pytest.raises(Missing, match="learning_rate"):
        list(weights_left_at_init(one))
    with pytest.raises(Missing, match="no checkpoint"):
        list(weights_left_at_init(run()))
