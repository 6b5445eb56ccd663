"""What the README says is true."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import rules_table  # noqa: E402

README = (ROOT / "README.md").read_text("utf-8")


def test_the_table_of_rules_is_current() -> None:
    assert rules_table.updated(README) == README, "run `make docs`"


def test_the_pictures_and_files_it_names_exist() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).is_file(), target


def test_the_check_in_ten_lines_works() -> None:
    """The code block under its heading, run as it stands."""
    section = README.split("## Add a check in ten lines")[1].split("\n## ")[0]
    code = "\n".join(line[4:] for line in section.splitlines() if line.startswith("    "))
    namespace: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), namespace)  # our own text
    (check,) = namespace["CHECKS"]  # type: ignore[misc]
    assert (check.code, list(check.thresholds)) == ("LAB001", ["least"])
