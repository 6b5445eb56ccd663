"""Text from a run made safe to print: names of tensors, files and keys come from strangers."""


def inert(text: str) -> str:
    """`text` with every control and formatting character (escapes, newlines, bidi marks) replaced by its code."""
    return "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in text)
