"""Models whose names tell nothing: what they are made of does, or nothing is claimed."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from safetensors.numpy import save_file

from fgclip_doctor.run import Missing, Tensor
from fgclip_doctor.sources import _with_rows, load
from fgclip_doctor.sources.roles import find, sigmoid
from tests.runs import checkpoint, series, tensor

Shapes = dict[str, tuple[int, ...]]
RANDOM = np.random.default_rng(0)


def model(shapes: Shapes, values: dict[str, float] | None = None) -> dict[str, Tensor]:
    floats = {name: tensor(name, RANDOM.normal(size=shape)) for name, shape in shapes.items()}
    return floats | {name: tensor(name, np.asarray(value)) for name, value in (values or {}).items()}


def looking(prefix: str, out: int, hidden: int = 40) -> Shapes:
    return {
        f"{prefix}.c0.weight": (16, 3, 4, 4),
        f"{prefix}.c0.bias": (16,),
        f"{prefix}.l1.weight": (hidden, 64),
        f"{prefix}.n.weight": (hidden,),
        f"{prefix}.l2.weight": (out, hidden),
    }


def reading(prefix: str, out: int, hidden: int = 24) -> Shapes:
    return {
        f"{prefix}.e.weight": (99, hidden),
        f"{prefix}.b.0.q.weight": (hidden, hidden),
        f"{prefix}.b.0.o.weight": (hidden, hidden),
        f"{prefix}.n.weight": (hidden,),
        f"{prefix}.l.weight": (out, hidden),
    }


HEADS: dict[str, tuple[Shapes, dict[str, str]]] = {
    "the ends of two towers": (
        {**reading("f", 32), **looking("g", 32)},
        {"head.text": "f.l.weight", "head.image": "g.l2.weight", "tower.text": "f", "tower.image": "g"},
    ),
    "the same, wrapped": (
        {**looking("net.core.g", 32), **reading("net.core.f", 32)},
        {
            "head.image": "net.core.g.l2.weight",
            "head.text": "net.core.f.l.weight",
            "tower.image": "net.core.g",
            "tower.text": "net.core.f",
        },
    ),
    "projections on two towers": (
        {**looking("g", 48), **reading("f", 24), "wa.weight": (32, 48), "wb.weight": (32, 24)},
        {"head.image": "wa.weight", "head.text": "wb.weight", "tower.image": "g", "tower.text": "f"},
    ),
    "projections that multiply from the right": (
        {"p": (48, 32), "q": (24, 32), **looking("g", 48), **reading("f", 24)},
        {"head.image": "p", "head.text": "q", "tower.image": "g", "tower.text": "f"},
    ),
    "lists of modules": (
        {**looking("nets.0", 48), **reading("nets.1", 24), "joint.0.weight": (32, 48), "joint.1.weight": (32, 24)},
        {
            "head.image": "joint.0.weight",
            "head.text": "joint.1.weight",
            "tower.image": "nets.0",
            "tower.text": "nets.1",
        },
    ),
    "four heads that words tell apart": (
        {
            **looking("g", 48),
            **reading("f", 48),
            "top_photo.weight": (32, 48),
            "top_sentence.weight": (32, 48),
            "top_crop.weight": (32, 48),
            "top_phrase.weight": (32, 48),
        },
        {
            "head.image": "top_photo.weight",
            "head.text": "top_sentence.weight",
            "head.region": "top_crop.weight",
            "head.text_long": "top_phrase.weight",
            "tower.image": "g",
            "tower.text": "f",
        },
    ),
    "a momentum copy of each": (
        {**looking("g", 32), **reading("f", 32), **looking("g_m", 32), **reading("f_m", 32)},
        {"head.image": "g.l2.weight", "head.text": "f.l.weight", "tower.image": "g", "tower.text": "f"},
    ),
    "a classifier beside them": (
        {**looking("g", 32), **reading("f", 32), "c.weight": (10, 40)},
        {"head.image": "g.l2.weight", "head.text": "f.l.weight", "tower.image": "g", "tower.text": "f"},
    ),
    "a file that is sorted by name": (
        dict(sorted({**looking("g", 32), **reading("f", 32)}.items())),
        {"head.image": "g.l2.weight", "head.text": "f.l.weight", "tower.image": "g", "tower.text": "f"},
    ),
    "one tower": (looking("g", 32), {}),
    "a tower with a classifier": ({**looking("g", 32), "c.weight": (10, 32)}, {}),
    "towers of different widths": ({**looking("g", 32), **reading("f", 48)}, {}),
    "five of one width": (
        {name: shape for one in "abcde" for name, shape in looking(one, 32).items()},
        {},
    ),
    "an encoder and its decoder": ({**looking("g", 32), "d.0.weight": (64, 32), "d.1.weight": (48, 64)}, {}),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_and_towers(name: str) -> None:
    shapes, expected = HEADS[name]
    assert find(model(shapes), {}) == expected


def unit(rows: int, width: int) -> np.ndarray:
    values = RANDOM.normal(size=(rows, width))
    return values / np.linalg.norm(values, axis=1, keepdims=True)


TOWERS = {**looking("g", 32), **reading("f", 32)}


def bank(found: dict[str, str]) -> dict[str, str]:
    return {role: name for role, name in found.items() if role.startswith("bank")}


def test_unit_rows_with_a_counter_beside_them_are_a_bank() -> None:
    tensors = model(TOWERS) | {
        "hold.a": tensor("hold.a", unit(64, 32)),
        "hold.b": tensor("hold.b", unit(64, 32)),
        "hold.at": tensor("hold.at", np.asarray(5), "int64"),
    }
    expected = {"bank.image_keys": "hold.a", "bank.text_keys": "hold.b", "bank.pointer": "hold.at"}
    assert bank(find(tensors, {})) == expected


def test_a_lone_store_needs_rows_of_length_one() -> None:
    at = tensor("r.at", np.asarray(5), "int64")
    lone = model(TOWERS) | {"r.rows": tensor("r.rows", unit(64, 32)), "r.at": at}
    assert bank(find(lone, {})) == {"bank.image_keys": "r.rows", "bank.pointer": "r.at"}
    noise = model(TOWERS) | {"r.rows": tensor("r.rows", 2 * unit(64, 32)), "r.at": at}
    assert bank(find(noise, {})) == {}


def test_half_filled_rows_are_of_length_one_too() -> None:
    rows = unit(64, 32)
    rows[20:] = 0
    tensors = model(TOWERS) | {"r.rows": tensor("r.rows", rows), "r.at": tensor("r.at", np.asarray(20), "int64")}
    assert bank(find(tensors, {}))["bank.image_keys"] == "r.rows"


@pytest.mark.parametrize(
    "others",
    [
        {"cls.w": unit(64, 32)},  # the texts of classes, for zero-shot evaluation: no counter
        {"r.rows": unit(64, 48)},  # not of the width of the towers
        {"vq.embed": unit(64, 32), "vq.embed_avg": unit(64, 32)},  # a codebook
        {"r.one": unit(64, 32), "r.two": unit(64, 32), "r.three": unit(64, 32)},  # three: of which two?
    ],
)
def test_no_bank(others: dict[str, np.ndarray]) -> None:
    counters = {"r.at": tensor("r.at", np.asarray(5), "int64"), "vq.n": tensor("vq.n", np.asarray(True), "bool")}
    tensors = model(TOWERS) | {name: tensor(name, values) for name, values in others.items()} | counters
    assert bank(find(tensors, {})) == {}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"crit.k": 2.6592}, {"scale.global": "crit.k"}),
        (
            {"k": 4.605, "k_crop": 2.66, "k_neg": 3.1},
            {"scale.global": "k", "scale.region": "k_crop", "scale.hard": "k_neg"},
        ),
        ({"k": 2.6, "m": 2.7}, {}),  # which?
        ({"k": 0.5}, {}),  # a gate, a margin
        ({"k_bias": 2.66}, {}),
        ({"g.k": 2.66}, {}),  # inside of a tower
    ],
)
def test_scales(values: dict[str, float], expected: dict[str, str]) -> None:
    found = find(model(TOWERS, values), {})
    assert {role: name for role, name in found.items() if role.startswith("scale")} == expected


def test_a_number_in_a_model_of_one_tower_is_no_scale() -> None:
    assert find(model(looking("g", 32), {"k": 2.66}), {}) == {}


def test_a_model_of_very_many_parts_costs_little() -> None:
    assert find({f"m{i}.w": tensor(f"m{i}.w", np.zeros((2, 2))) for i in range(5000)}, {}) == {}


def test_what_no_name_told_is_said(tmp_path: Path) -> None:
    save_file({name: np.zeros(shape, np.float32) for name, shape in TOWERS.items()}, tmp_path / "model.safetensors")
    run = load([tmp_path])
    assert [note for note in run.notes if "head.image is g.l2.weight" in note and "as no name told" in note]
    told = load([tmp_path], roles=run.roles)
    assert not [note for note in told.notes if "as no name told" in note]


@pytest.mark.parametrize(
    ("tensors", "logged", "told"),
    [
        ({"t": 2.3, "b": -9.7}, [], "b"),
        ({"crit.scale": 4.7, "crit.bias": -12.9}, [], "crit.bias"),
        ({"logit_bias": 0.0}, [], "logit_bias"),
        ({"t": 2.3, "head.bias": -0.2}, [], ""),
        ({}, ["sigmoid_loss"], "sigmoid_loss"),
        ({}, ["loss"], ""),
    ],
)
def test_the_loss_of_siglip(tensors: dict[str, float], logged: list[str], told: str) -> None:
    assert sigmoid(model({}, tensors), {name: series(name, [1.0, 2.0]) for name in logged}) == told


def test_of_several_counters_the_one_that_is_named_after_the_store_points_into_it() -> None:
    counters = {name: tensor(name, np.asarray(5), "int64") for name in ("attic_at", "updates", "seen")}
    tensors = model(TOWERS) | {"attic": tensor("attic", unit(64, 32)), **counters}
    assert bank(find(tensors, {})) == {"bank.image_keys": "attic", "bank.pointer": "attic_at"}


def test_rows_that_only_an_earlier_look_of_a_recording_saw(tmp_path: Path) -> None:
    def unseen() -> NoReturn:
        raise Missing("not seen")

    rows, later = tensor("attic", unit(64, 32)), copy(tensor("attic", unit(64, 32)))
    later._measure = unseen
    looks = checkpoint({"attic": rows}, 10), checkpoint({"attic": later, "at": np.asarray(1)}, 20)
    assert _with_rows(looks)["attic"] is rows
    assert set(_with_rows(looks)) == {"attic", "at"}
