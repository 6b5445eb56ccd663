"""Write the README's table of rules from the docstrings of the checks. With --check, only say whether it is current."""

from __future__ import annotations

import sys
from pathlib import Path

from fgclip_doctor.registry import installed_checks

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- rules: begin (scripts/rules_table.py) -->\n", "<!-- rules: end -->"


def table() -> str:
    """The rules as a Markdown table."""
    checks, problems = installed_checks()
    if problems:
        raise SystemExit("\n".join(problems))
    rows = [f"| {check.code} | {check.name} | {check.severity} | {check.defect} |" for check in checks]
    return "\n".join(["| code | name | severity | the defect |", "|---|---|---|---|", *rows]) + "\n"


def updated(text: str) -> str:
    """`text` with the table between the two markers renewed."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not rest or not after:
        raise SystemExit(f"{README.name} has lost its markers")
    return before + BEGIN + table() + END + after


def main() -> int:
    text = README.read_text("utf-8")
    new = updated(text)
    if "--check" in sys.argv[1:]:
        return int(text != new)
    README.write_text(new, "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
