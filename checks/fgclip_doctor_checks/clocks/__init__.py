"""Checks of clocks, steps and resumes."""
