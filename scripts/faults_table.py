"""Write the table of `docs/faults.md` from the faults' docstrings. With --check, only say whether it is current."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

from fgclip_doctor.training.faults import FAULTS

DOCUMENT = Path(__file__).parent.parent / "docs" / "faults.md"
BEGIN, END = "<!-- faults: begin (scripts/faults_table.py) -->\n", "<!-- faults: end -->"
SEEN = "Seen: "


def table() -> str:
    """The faults as a Markdown table: the docstring in two columns."""
    rows = []
    for name, plant in FAULTS.items():
        mechanism, _, seen = (inspect.getdoc(plant) or "").partition(SEEN)
        rows.append(f"| `{name}` | {' '.join(mechanism.split())} | {' '.join(seen.split())} |")
    return "\n".join(["| fault | what breaks | where it was seen |", "|---|---|---|", *rows]) + "\n"


def updated(text: str) -> str:
    """`text` with the table between the two markers renewed."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not rest or not after:
        raise SystemExit(f"{DOCUMENT.name} has lost its markers")
    return before + BEGIN + table() + END + after


def main() -> int:
    text = DOCUMENT.read_text("utf-8")
    new = updated(text)
    if "--check" in sys.argv[1:]:
        return int(text != new)
    DOCUMENT.write_text(new, "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
