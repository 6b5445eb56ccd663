"""The graph of causes: whole, acyclic, in words, and the only place that checks take their causes from."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import fgclip_doctor_checks
from fgclip_doctor import Check, Severity
from fgclip_doctor.registry import Cause, installed_causes
from fgclip_doctor_checks.causes import CAUSES, explaining

PACK = Path(fgclip_doctor_checks.__file__).parent
CODES = {check.code for check in fgclip_doctor_checks.CHECKS}
ERRORS = [check for check in fgclip_doctor_checks.CHECKS if check.severity is Severity.ERROR]
COST = re.compile(
    r"wasted|\blost\b|learnt bits|usable|teach|don't train|can't move|never (?:updated|had a gradient)|"
    r"no gradient has reached|stay as they were loaded|nothing can be learnt|never counted|gets random|"
    r"trained anything",
    re.IGNORECASE,
)
FIRST_THING = re.compile(
    r"(add|assert|build|call|compare|convert|divide|enqueue|follow|gather|go|gradient_checkpointing_kwargs|halve|"
    r"interpolate|keep|look|pair|print|raise|run|save|set|switch|transpose)\b"
)


def test_the_graph_has_no_circle() -> None:
    graph: dict[str, set[str]] = {}
    for edge in CAUSES:
        graph.setdefault(edge.symptom, set()).add(edge.code)
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError


@pytest.mark.parametrize("edge", CAUSES, ids=lambda edge: f"{edge.code}-{edge.symptom}")
def test_every_edge_joins_two_rules_in_words(edge: Cause) -> None:
    assert {edge.code, edge.symptom} <= CODES
    assert len(edge.when.split()) >= 4
    assert not (edge.case and edge.same_place)


def test_no_edge_is_there_twice() -> None:
    assert len({(edge.code, edge.symptom) for edge in CAUSES}) == len(CAUSES)


def test_the_installed_graph_is_this_one() -> None:
    assert set(CAUSES) <= set(installed_causes())


def test_causes_by_case_and_by_place() -> None:
    assert "FGD106" not in explaining("FGD303", "no-gradient")
    assert "FGD106" in explaining("FGD303", "rounding")
    assert explaining("FGD504", where="region_loss") == ("FGD501@region_loss",)
    assert "FGD604" in explaining("FGD501", "region", "unaligned")
    assert "FGD604" not in explaining("FGD501", "global", "unaligned")


def calls(file: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("check", fgclip_doctor_checks.CHECKS, ids=lambda check: check.code)
def test_a_check_takes_its_causes_from_the_graph_and_all_of_them(check: Check) -> None:
    asked: set[str] = set()
    for call in calls(source(check)):
        if ast.unparse(call.func) == "explaining":
            asked.add(ast.literal_eval(call.args[0]))
        for keyword in call.keywords:
            if keyword.arg == "explained_by" and ast.unparse(call.func) == "Finding":
                assert "explaining(" in ast.unparse(keyword.value)
    assert asked == {check.code} & {edge.symptom for edge in CAUSES}


@pytest.mark.parametrize("check", ERRORS, ids=lambda check: check.code)
def test_an_error_says_what_it_costs_and_the_first_thing_to_do(check: Check) -> None:
    tree = ast.parse(source(check).read_text("utf-8"))
    doc = check.explanation
    words = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    said = " ".join(word for word in words if " ".join(word.split()) != " ".join(doc.split()) and len(word) < 400)
    assert COST.search(said), "its message says what the fault costs"
    assert FIRST_THING.match(check.sections["Fix"].lower()), "its fix begins with what to do"


def source(check: Check) -> Path:
    return next(PACK.glob(f"*/{check.name.replace('-', '_')}.py"))
