"""Write the picture of the dashboard, as a terminal shows a recording. Usage: dashboard_picture.py RECORDING SVG"""

from __future__ import annotations

import sys
from io import StringIO
from pathlib import Path

from rich.console import Console

from fgclip_doctor.diagnosis import diagnose
from fgclip_doctor.live import dashboard
from fgclip_doctor.live.follow import Told, step_of
from fgclip_doctor.registry import installed_checks
from fgclip_doctor.sources import load

WIDTH, HEIGHT = 132, 34


def main() -> None:
    path, target = Path(sys.argv[1]), Path(sys.argv[2])
    run = load([path])
    report = diagnose(run, installed_checks()[0])
    told = [Told(finding, step_of(run)) for finding in report.findings]
    console = Console(record=True, width=WIDTH, height=HEIGHT, force_terminal=True, file=StringIO())
    console.print(
        dashboard.screen(run, report, told, state="python train.py", width=WIDTH, height=HEIGHT), height=HEIGHT
    )
    target.write_text(console.export_svg(title="fgclip-doctor watch -- python train.py"), "utf-8")


if __name__ == "__main__":
    main()
