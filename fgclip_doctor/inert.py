"""Text from a run made safe to print: names of tensors, files and keys come from strangers."""


def inert(text: str) -> str:
    """`text` on one line, with every control, formatting, bidi and undecodable character replaced by its escape."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
