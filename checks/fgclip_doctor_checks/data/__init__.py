"""Checks of annotations: captions, regions and hard negatives, and what they make of the candidates."""
