"""Checks of where weights came from."""
