"""CLIP's byte-pair tokenizer."""

from __future__ import annotations

import html
import re

# What the package would read as a control token, so that a caption could end itself. The reference has other names.
FORGED = re.compile(r"(?<=<)(?=(?:start|end)_of_text>)")


class ClipTokenizer:
    """The ids of OpenAI's released tokenizer (Radford et al. 2021), cut to the context as FG-CLIP cuts them.

    The vocabulary and the merging are those of the package `instant-clip-tokenizer`; the clean-up that the reference
    does first, and the package does not, is done here. One difference is meant: control tokens written in a text are
    text.
    """

    bos_token_id = 49406
    eos_token_id = 49407

    def __init__(self, *, context: int = 77, long_context: int = 248) -> None:
        try:
            from ftfy import fix_text
            from instant_clip_tokenizer import Tokenizer
        except ImportError as error:
            raise ModuleNotFoundError(f"{error}: CLIP's tokenizer needs pip install 'fgclip-doctor[data]'") from error
        self.context, self.long_context = context, long_context
        self.fix_text, self.pairs = fix_text, Tokenizer()

    def __reduce__(self) -> tuple[type[ClipTokenizer], tuple[()], dict[str, int]]:
        return type(self), (), {"context": self.context, "long_context": self.long_context}  # the package can't pickle

    def encode(self, text: str, *, long: bool = False) -> list[int]:
        ids = self.tokens(text)[: (self.long_context if long else self.context) - 2]
        return [self.bos_token_id, *ids, self.eos_token_id]

    def fits(self, text: str, *, long: bool = False) -> bool:
        """Whether `encode` keeps all of the text."""
        room = (self.long_context if long else self.context) - 2
        return (plain(text) and len(text) <= room) or len(self.tokens(text)) <= room

    def tokens(self, text: str) -> list[int]:
        """The ids of all of the text, without begin and end."""
        return [one for piece in FORGED.split(self.cleaned(text)) for one in self.pairs.encode(piece)]

    def cleaned(self, text: str) -> str:
        """Mojibake mended, HTML entities resolved (twice, as the reference does), single spaces, lower case."""
        if not plain(text):
            text = html.unescape(html.unescape(self.fix_text(text)))
        return " ".join(text.split()).lower()


def plain(text: str) -> bool:
    """Whether nothing in the text could need mending, which most don't and which is quickly seen."""
    return text.isascii() and text.isprintable() and "&" not in text
