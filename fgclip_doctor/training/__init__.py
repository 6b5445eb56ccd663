"""Training FG-CLIP: data, loop, checkpoints."""
