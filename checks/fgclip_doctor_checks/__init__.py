"""The built-in checks: one family a folder, one check a file, all of them listed in `CHECKS`."""

from fgclip_doctor import Check

CHECKS: tuple[Check, ...] = ()
