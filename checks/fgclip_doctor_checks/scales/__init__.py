"""Checks of logit scales."""
