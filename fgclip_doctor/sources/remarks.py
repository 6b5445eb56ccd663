"""What programs of a training say in words: known lines of a log, whoever printed them, and what they name."""

from __future__ import annotations

import re
from dataclasses import dataclass

MOST = 16 << 10  # characters of a line that are looked at
WORDS = re.compile(  # every remark has one: most lines are done with at once
    r"quickgelu|newly initialized|missing|unexpected|not used when|dataparallel|overflow|image", re.IGNORECASE
)
QUOTED = re.compile(r"['\"]([^'\"]{1,500})['\"]")
ESCAPE = re.compile(r"\x1b\[[0-9;]{0,20}m")

# Kind -> the lines that say it. What a group holds is what they name.
REMARKS: dict[str, tuple[str, ...]] = {
    "activation": (  # open_clip, in its words now and earlier
        r"QuickGELU mismatch between .{0,80}\(quick_gelu=(\w+)\).{0,200}\(quick_gelu=(\w+)\)",
        r"pretrained weights were (?:not )?trained with QuickGELU",
    ),
    "new-weights": (  # transformers 4, and 5
        r"Some weights of .{1,200} were not initialized from .{1,500} newly initialized: \[(.*)\]",
        r"^\s{0,200}(\S.{0,400}?)\s{1,200}\|\s{1,9}MISSING\s{1,9}\|",
    ),
    "not-taken": (  # transformers 4, 5; torch's load_state_dict, and the text of its error
        r"Some weights of the model checkpoint .{1,500} were not used when initializing .{1,200}: \[(.*)\]",
        r"^\s{0,200}(\S.{0,400}?)\s{1,200}\|\s{1,9}UNEXPECTED\s{1,9}\|",
        r"unexpected[_ ]keys?(?:\(s\))?[^\[\"':=]{0,40}[:=]\s*\[?(.*)\]?",
    ),
    "data-parallel": (r"Training with DataParallel so batch size has been adjusted to: ([\d,]+)",),  # transformers
    "step-skipped": (  # DeepSpeed and apex; fairseq
        r"overflow\b.{0,80}\bskipping step",
        r"overflow detected.{0,40}\b(?:ignoring|skipping)",
    ),
    "image-replaced": (  # FG-CLIP 2's collator; loaders that say what they do
        r"\bget fail image\b",
        r"^.{0,300}?(?:fail|error|corrupt|broken|unreadable|could ?n[o']t|cannot|can't|unable).{0,200}"
        r"\b(?:us(?:e|ed|ing)|replac\w+|return\w*|substitut\w+|fall\w* back)\b.{0,60}"
        r"\b(?:black|blank|empty|dummy|zeros?|placeholder|gr[ae]y|white) image",
    ),
}
MEASURES = {"step-skipped"}  # their lines have numbers of the training, too
PATTERNS = {kind: tuple(re.compile(one, re.IGNORECASE) for one in lines) for kind, lines in REMARKS.items()}


@dataclass(frozen=True, slots=True)
class Said:
    """What a line says."""

    kind: str
    names: tuple[str, ...] = ()

    @property
    def measures(self) -> bool:
        return self.kind in MEASURES


def said(line: str) -> Said | None:
    """The remark that a line is, if it is one."""
    if not WORDS.search(line, 0, MOST):
        return None
    line = ESCAPE.sub("", line[:MOST])
    for kind, patterns in PATTERNS.items():
        for pattern in patterns:
            if found := pattern.search(line):
                return Said(kind, tuple(name for group in found.groups() for name in _names(group)))
    return None


def _names(text: str | None) -> list[str]:
    """What is quoted in `text`, or else all of it."""
    if not text:
        return []
    return QUOTED.findall(text) or [text.strip()]
