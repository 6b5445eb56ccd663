"""``python -m fgclip_doctor``: the same as the console script."""

from fgclip_doctor.cli import app

app(prog_name="fgclip-doctor")
