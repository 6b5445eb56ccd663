"""What the README says is true."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import rule_pages  # noqa: E402

import fgclip_doctor_checks  # noqa: E402

README = (ROOT / "README.md").read_text("utf-8")


def test_the_table_and_the_pages_of_the_rules_are_current() -> None:
    wanted = rule_pages.pages()
    stale = [path for path, text in wanted.items() if not path.is_file() or path.read_text("utf-8") != text]
    stale += {*rule_pages.RULES.glob("*.md")} - {*wanted}
    assert not stale, "run `make docs`"


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


def test_the_mechanisms_lead_to_rules_that_exist_and_to_each_of_them() -> None:
    codes = {check.code for check in fgclip_doctor_checks.CHECKS}
    mechanisms, missed = ((ROOT / "docs" / name).read_text("utf-8") for name in ("mechanisms.md", "not-detected.md"))
    assert set(re.findall(r"rules/(FGD\d{3})\.md", mechanisms)) == codes
    assert set(re.findall(r"FGD\d{3}", missed)) <= codes
