"""Write the README's picture: what a terminal shows of an audit. Usage: terminal_picture.py PATH SVG"""

from __future__ import annotations

import sys
from pathlib import Path

from fgclip_doctor.diagnosis import diagnose
from fgclip_doctor.registry import installed_checks
from fgclip_doctor.reports import terminal
from fgclip_doctor.sources import load


def main() -> None:
    path, target = Path(sys.argv[1]), Path(sys.argv[2])
    report = diagnose(load([path]), installed_checks()[0])
    target.write_text(terminal.to_svg(terminal.render(report), title=f"fgclip-doctor audit {path}", width=120), "utf-8")


if __name__ == "__main__":
    main()
