"""Write the picture of the dashboard, as a terminal shows a recording. Usage: dashboard_picture.py RECORDING SVG"""

from __future__ import annotations

import sys
from io import StringIO
from pathlib import Path

from rich.console import Console

from fgclip_doctor.diagnosis import diagnose
from fgclip_doctor.live import dashboard
from fgclip_doctor.live.follow import Follower
from fgclip_doctor.registry import installed_checks
from fgclip_doctor.sources.following import Following

WIDTH, HEIGHT = 132, 34
COMMAND = "fgclip-doctor train settings.toml"


def main() -> None:
    path, target = Path(sys.argv[1]), Path(sys.argv[2])
    following, checks = Following([path], base=None, facts={}, roles={}), installed_checks()[0]
    follower = Follower(following.poll, lambda run: diagnose(run, checks), following.until)
    follower.look(last=True)
    told = list(follower.told.values())
    screen = dashboard.screen(follower.run, follower.report, told, state=COMMAND, width=WIDTH, height=HEIGHT)
    console = Console(record=True, width=WIDTH, height=HEIGHT, force_terminal=True, file=StringIO())
    console.print(screen, height=HEIGHT)
    target.write_text(console.export_svg(title=f"fgclip-doctor watch -- {COMMAND}"), "utf-8")


if __name__ == "__main__":
    main()
