"""Write what is generated from the checks: docs/rules/, a page a rule, and the README's table.

With --check, only say whether they are current.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from fgclip_doctor.explanations import markdown
from fgclip_doctor.registry import Cause, Check, installed_causes, installed_checks

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
RULES = ROOT / "docs" / "rules"
BEGIN, END = "<!-- rules: begin (scripts/rule_pages.py) -->\n", "<!-- rules: end -->"
FAMILIES = {
    "1": "gradients and the optimizer",
    "2": "the memory bank",
    "3": "logit scales",
    "4": "clocks, steps and resumes",
    "5": "losses",
    "6": "data and candidates",
    "7": "where the weights come from",
    "8": "several ranks",
}
INDEX = """# The rules

Each page says what a rule finds, why it hurts, how it is measured with its formula, what looks like it and is no
fault, the fix in code, and the sources. `fgclip-doctor explain CODE` prints the same. What no rule can see, and why,
is in [not-detected.md](../not-detected.md); which failure of the literature is which rule, in
[mechanisms.md](../mechanisms.md).
"""
GRAPH = """
## What explains what

A report leads with causes and files under them what they explain. This is the whole graph
(`checks/fgclip_doctor_checks/causes.py`): the symptom's rule names a cause, and the report keeps it if it was found
too; where a condition is given, only at the same tensor or series, or if the symptom's own evidence shows the case.

| symptom | cause | condition | because |
|---|---|---|---|
"""


def pages() -> dict[Path, str]:
    """Every generated file with its text."""
    checks, problems = installed_checks()
    if problems:
        raise SystemExit("\n".join(problems))
    causes = installed_causes()
    names = {check.code: check.name for check in checks}
    index = INDEX + "".join(_families(checks)) + GRAPH + "".join(_edges(causes, names))
    written = {RULES / f"{check.code}.md": markdown(check, causes, names) for check in checks}
    return written | {RULES / "README.md": index, README: updated(README.read_text("utf-8"), checks)}


def updated(readme: str, checks: list[Check]) -> str:
    """`readme` with the table between the two markers renewed."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not rest or not after:
        raise SystemExit(f"{README.name} has lost its markers")
    rows = [
        f"| {_hundred(digit)} | {FAMILIES[digit]} | {', '.join(_link(one, 'docs/rules/') for one in family)} |\n"
        for digit, family in _by_family(checks)
    ]
    return before + BEGIN + "| codes | about | rules |\n|---|---|---|\n" + "".join(rows) + END + after


def _families(checks: list[Check]) -> Iterator[str]:
    for digit, family in _by_family(checks):
        yield f"\n## {_hundred(digit)}: {FAMILIES[digit]}\n\n"
        yield "| code | name | severity | the defect |\n|---|---|---|---|\n"
        for check in family:
            yield f"| [{check.code}]({check.code}.md) | {check.name} | {check.severity} | {check.defect} |\n"


def _edges(causes: list[Cause], names: dict[str, str]) -> Iterator[str]:
    for one in sorted(causes, key=lambda one: (one.symptom, one.code)):
        condition = f"case {one.case}" if one.case else "same place" if one.same_place else ""
        yield (
            f"| [{one.symptom}]({one.symptom}.md) {names[one.symptom]} | [{one.code}]({one.code}.md) "
            f"{names[one.code]} | {condition} | {one.when} |\n"
        )


def _by_family(checks: list[Check]) -> list[tuple[str, list[Check]]]:
    return [(digit, list(family)) for digit, family in groupby(checks, key=lambda check: check.code[3])]


def _hundred(digit: str) -> str:
    return f"FGD{digit}xx"


def _link(check: Check, folder: str) -> str:
    return f"[{check.name}]({folder}{check.code}.md)"


def main() -> int:
    wanted = pages()
    stale = [path for path in RULES.glob("FGD*.md") if path not in wanted]
    current = not stale and all(path.is_file() and path.read_text("utf-8") == text for path, text in wanted.items())
    if "--check" in sys.argv[1:]:
        return int(not current)
    RULES.mkdir(parents=True, exist_ok=True)
    for path in stale:
        path.unlink()
    for path, text in wanted.items():
        path.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
