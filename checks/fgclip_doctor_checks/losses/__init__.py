"""5xx: what the loss curves say, read with the yardstick of their candidates and scale."""
