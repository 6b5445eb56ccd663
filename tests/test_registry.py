"""Checks are declared, found and selected; and every installed one keeps the contract."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

from fgclip_doctor import Check, Finding, Run, Severity, check
from fgclip_doctor.registry import SECTIONS, RegistryError, installed_checks, selected

INSTALLED, PROBLEMS = installed_checks()


def declare(code: str, name: str = "a-rule") -> Check:
    @check(code, name, Severity.INFO)
    def rule(run: Run, *, limit: float = 2.0) -> Iterator[Finding]:
        """Something is off.

        Why: because
            it is.
        Fix: mend it.
        """
        yield from ()

    return rule


def test_the_docstring_is_the_explanation() -> None:
    rule = declare("LAB001")
    assert rule.defect == "Something is off."
    assert rule.sections == {"Why": "because it is.", "Fix": "mend it."}
    assert rule.thresholds == {"limit": 2.0}


def test_the_guide_is_the_markdown_file_beside_the_check(tmp_path: Path) -> None:
    file = tmp_path / "lab_checks.py"
    lines = ["from fgclip_doctor import Severity, check", "@check('LAB001', 'a-rule', Severity.INFO)", "def f(run):"]
    file.write_text("\n".join([*lines, "    'Something is off.'"]), "utf-8")
    namespace: dict[str, Check] = {}
    exec(compile(file.read_text("utf-8"), str(file), "exec"), namespace)  # type: ignore[arg-type]
    assert namespace["f"].guide == {}
    (tmp_path / "a_rule.md").write_text("## Formula\n\nx > 1\n\n## PyTorch\n\n```python\nx = 1\n```\n", "utf-8")
    again = Check("LAB001", "a-rule", Severity.INFO, namespace["f"].function)
    assert again.guide == {"Formula": "x > 1", "PyTorch": "```python\nx = 1\n```"}


@pytest.mark.parametrize(("code", "name"), [("lab1", "x"), ("LAB1", "x"), ("LAB001", "No Spaces"), ("LAB001", "")])
def test_a_malformed_code_or_name_is_refused(code: str, name: str) -> None:
    with pytest.raises(RegistryError):
        declare(code, name)


def test_a_check_without_a_docstring_is_refused() -> None:
    def silent(run: Run) -> Iterator[Finding]:
        yield from ()

    with pytest.raises(RegistryError, match="no docstring"):
        check("LAB001", "silent", Severity.INFO)(silent)


def test_selecting_by_code_prefix_and_name() -> None:
    rules = [declare("FGD101", "one"), declare("FGD102", "two"), declare("FGD201", "three"), declare("FGD901", "maybe")]
    assert [rule.name for rule in selected(rules, [], [])] == ["one", "two", "three"]  # previews are off
    assert [rule.name for rule in selected(rules, ["FGD1"], [])] == ["one", "two"]
    assert [rule.name for rule in selected(rules, ["maybe", "fgd201"], [])] == ["three", "maybe"]
    assert [rule.name for rule in selected(rules, ["all"], ["two"])] == ["one", "three", "maybe"]
    with pytest.raises(RegistryError, match="FGD7"):
        selected(rules, ["FGD7"], [])


def test_every_installed_pack_loads() -> None:
    assert PROBLEMS == []
    assert INSTALLED


@pytest.mark.parametrize("rule", INSTALLED, ids=lambda rule: rule.code)
def test_every_installed_check_keeps_the_contract(rule: Check) -> None:
    file = Path(inspect.getsourcefile(rule.function) or "")
    assert file.stem == rule.name.replace("-", "_"), "one check a file, named after it"
    assert tuple(rule.sections) == SECTIONS, f"{rule.code}: the sections of its docstring, in order"
    assert all(rule.sections.values())
    assert rule.defect.endswith(".")
    assert len(rule.defect) <= 120
    parameters = list(inspect.signature(rule.function).parameters.values())
    assert [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY] == ["run"]
    assert all(isinstance(default, (int, float)) for default in rule.thresholds.values())


def test_every_file_of_the_builtin_pack_is_listed() -> None:
    import fgclip_doctor_checks

    folder = Path(fgclip_doctor_checks.__file__).parent
    files = {path.stem for path in folder.glob("*/*.py") if path.stem != "__init__"}
    assert files == {check.name.replace("-", "_") for check in fgclip_doctor_checks.CHECKS}
