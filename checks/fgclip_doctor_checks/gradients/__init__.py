"""Checks of gradients, optimizer membership and updates."""
