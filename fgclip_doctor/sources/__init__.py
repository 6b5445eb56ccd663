"""Artefacts -> `Run`. Nothing that is read here is ever executed."""
