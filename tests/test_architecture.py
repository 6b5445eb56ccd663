"""The arrows between the parts of the house, and what each command may import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fgclip_doctor
import fgclip_doctor_checks

PACKAGE = Path(fgclip_doctor.__file__).parent
PACK = Path(fgclip_doctor_checks.__file__).parent

# Each part may import the parts before it. A part is a module or a sub-package of fgclip_doctor.
ORDER = (
    "findings",
    "annotations",
    "recorded",
    "run",
    "theory",
    "dynamics",
    "loss_names",
    "scale_forms",
    "events",
    "schedule",
    "bank",
    "ranks",
    "ring",
    "terms",
    "duplicates",
    "progress",
    "chance",
    "sums",
    "factors",
    "swings",
    "rises",
    "parts",
    "momentum",
    "text_tower",
    "moments",
    "provenance",
    "untrained",
    "registry",
    "explanations",
    "observations",
    "diagnosis",
    "config",
)
AFTER = {
    "comparison",
    "gating",
    "policy",
    "sources",
    "reports",
    "live",
    "cli",
    "__main__",
    "demo",
    "forecast",
    "train_command",
}
OWN_WORLD = {"core", "training"}  # the model: `core` sees only itself, `training` only core


def imports(file: Path) -> set[str]:
    """Every module of ours that `file` imports anywhere, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in {"fgclip_doctor", "fgclip_doctor_checks"}}


def part(module: str) -> str:
    return [*module.split("."), ""][1]


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", files(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_follow_the_one_way_through(file: Path) -> None:
    own = file.relative_to(PACKAGE).with_suffix("").parts[0]
    used = {part(name) for name in imports(file)} & {*ORDER, *AFTER, *OWN_WORLD}
    assert not any(name.startswith("fgclip_doctor_checks") for name in imports(file)), (
        "the package never imports a pack"
    )
    if own in ORDER:
        assert used <= set(ORDER[: ORDER.index(own)]) | {own}
    elif own == "core":
        assert used <= {"core"}
    elif own == "training":
        assert used <= {"core", "training", "theory"}
    elif own in {"sources", "reports"}:
        assert used <= {*ORDER, own}


@pytest.mark.parametrize("file", sorted(PACK.rglob("*.py")), ids=lambda file: file.stem)
def test_checks_import_only_what_the_package_offers_them(file: Path) -> None:
    allowed = {
        "",
        "annotations",
        "text_tower",
        "theory",
        "recorded",
        "dynamics",
        "scale_forms",
        "events",
        "schedule",
        "bank",
        "duplicates",
        "ranks",
        "ring",
        "terms",
        "progress",
        "chance",
        "factors",
        "swings",
        "rises",
        "sums",
        "untrained",
        "moments",
        "momentum",
        "parts",
        "provenance",
        "run",
    }
    names = {name for name in imports(file) if name.startswith("fgclip_doctor.") or name == "fgclip_doctor"}
    public = {f"fgclip_doctor.{name}" for name in fgclip_doctor.__all__}
    assert all(part(name) in allowed for name in names - public), names


HEAVY = "{'torch', 'pandas', 'matplotlib', 'transformers', 'tensorboard'}"


@pytest.mark.parametrize(
    ("arguments", "barred"),
    [
        (["--help"], HEAVY),
        (["audit", "--help"], HEAVY),
        (["rules"], HEAVY),
        (["explain", "FGD301"], HEAVY),
        (["--help"], "{'numpy', 'rich.console'}"),
        (["rules"], "{'numpy', 'rich.console'}"),
        (["explain", "FGD301"], "{'numpy', 'rich.console'}"),
    ],
)
def test_light_commands_import_nothing_heavy(arguments: list[str], barred: str) -> None:
    assert loaded(arguments, barred) == "set()"


def loaded(arguments: list[str], barred: str) -> str:
    """What of `barred` a fresh interpreter has imported after one command."""
    program = f"""
import sys
from fgclip_doctor.cli import app
try:
    app({arguments!r})
except SystemExit as leaving:
    assert leaving.code in (0, 1), leaving.code
print({barred} & set(sys.modules), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr.strip().splitlines()[-1]
