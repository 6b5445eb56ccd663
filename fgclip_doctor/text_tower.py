"""What the text tower of a checkpoint can read: whether its words are CLIP's, and how many tokens it takes."""

from __future__ import annotations

import re

from fgclip_doctor.run import Run

CLIP_WORDS = 49_408  # rows of CLIP's token embedding
WORDS = re.compile(r"(?:token|word)_embeddings?\.weight$|embed_tokens\.weight$|wte\.weight$")
POSITIONS = re.compile(r"(?:^|[._])(?:text|transformer).*position|^positional_embedding")
SHORT, LONG = 77, 248  # tokens: CLIP's, and those of long captions in FG-CLIP and Long-CLIP


def reads_as_clip(run: Run) -> bool | None:
    """Whether it has CLIP's vocabulary, of lower-case words and Latin script; None where no checkpoint tells."""
    tensors = run.checkpoints[-1].tensors if run.checkpoints else {}
    words = [one.shape[0] for name, one in tensors.items() if len(one.shape) == 2 and WORDS.search(name)]
    return CLIP_WORDS in words if words else None


def context(run: Run) -> int:
    """The tokens of a long caption that it reads: 248, but for a checkpoint that has only positions for fewer."""
    tensors = run.checkpoints[-1].tensors if run.checkpoints else {}
    tables = [one.shape[0] for name, one in tensors.items() if len(one.shape) == 2 and POSITIONS.search(name)]
    return SHORT if tables and max(tables) < LONG else LONG
