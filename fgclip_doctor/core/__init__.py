"""The FG-CLIP model. Imports nothing of ours but itself."""
