"""2xx: the memory bank: is it used, is it real, does it survive a resume."""
