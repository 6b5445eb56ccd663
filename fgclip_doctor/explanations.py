"""What a rule means, as one text: the check's docstring, its guide and its place among the causes.

`explain` prints it, and the pages in docs/rules/ hold it.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Collection, Iterable, Iterator

from fgclip_doctor.registry import Cause, Check

WIDTH = 100  # columns of what `explain` prints
FIRST_WORD = re.compile(r"^[a-z](?=[a-z]*[ ,:;])")  # of a sentence, and no identifier
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def sections(check: Check, causes: Iterable[Cause], names: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Title and Markdown of each section, in reading order. `names` gives the rules' names by code."""
    causes = list(causes)
    docstring, guide = check.sections, check.guide
    measured = "\n\n".join(filter(None, [docstring.get("Evidence", ""), guide.get("Formula", "")]))
    above = [(one.code, one) for one in causes if one.symptom == check.code]
    below = [(one.symptom, one) for one in causes if one.code == check.code]
    thresholds = [f"- `{name} = {default!r}`" for name, default in check.thresholds.items()]
    if thresholds:
        thresholds.insert(0, f"Under `[tool.fgclip-doctor.thresholds.{check.name}]`:\n")
    for title, text in (
        ("Why it hurts", docstring.get("Why", "")),
        ("How it is measured", measured),
        ("What looks like it and is no fault", docstring.get("Benign", "")),
        ("The fix", docstring.get("Fix", "")),
        ("With transformers' Trainer", guide.get("Trainer", "")),
        ("In plain PyTorch", guide.get("PyTorch", "")),
        ("What may explain it", "\n".join(_edges(above, names))),
        ("What it may explain", "\n".join(_edges(below, names))),
        ("Thresholds", "\n".join(thresholds)),
        ("Sources", docstring.get("Sources", "")),
    ):
        if text:
            yield title, text if title == "Sources" else FIRST_WORD.sub(lambda first: first[0].upper(), text)


def markdown(check: Check, causes: Iterable[Cause], names: dict[str, str]) -> str:
    """The page of a rule. Codes become links to their pages, and issues links to GitHub."""
    lines = [f"# {check.code} {check.name}", "", f"*{check.severity}* · {check.defect}", ""]
    for title, text in sections(check, causes, names):
        lines += [f"## {title}", "", _linked(text, {*names} - {check.code}), ""]
    return "\n".join(lines)


def plain(check: Check, causes: Iterable[Cause], names: dict[str, str]) -> str:
    """The same for a terminal or a pipe."""
    lines = [f"{check.code} {check.name} ({check.severity})", "", *textwrap.wrap(check.defect, WIDTH), ""]
    found = list(sections(check, causes, names))
    if not found:
        lines += [check.explanation.partition("\n")[2].strip()]
    for title, text in found:
        lines += [title, *_plain(text), ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def _edges(edges: Iterable[tuple[str, Cause]], names: dict[str, str]) -> Iterator[str]:
    for code, edge in edges:
        case = f" (case {edge.case})" if edge.case else " (at the same place)" if edge.same_place else ""
        yield f"- {code} {names.get(code, '')}{case}: {edge.when}"


def _plain(text: str) -> Iterator[str]:
    """Markdown as indented lines: paragraphs and items wrapped, code as it stands."""
    for index, part in enumerate(FENCE.split(text)):
        if index % 3 == 1:  # the fence's language
            continue
        if index % 3 == 2:
            yield from ("", textwrap.indent(part.rstrip(), " " * 6), "")
            continue
        for paragraph in filter(None, (one.strip("\n") for one in re.split(r"\n{2,}|\n(?=- )", part))):
            hang = "    " if paragraph.startswith("- ") else "  "
            words = paragraph.replace("`", "")
            yield from textwrap.wrap(words, WIDTH, initial_indent="  ", subsequent_indent=hang)


def _linked(text: str, codes: Collection[str]) -> str:
    """`text` with links, outside of code."""
    parts = FENCE.split(text)
    for index in range(0, len(parts), 3):
        part = re.sub(r"\b[A-Z]{3}\d{3}\b", lambda m: f"[{m[0]}]({m[0]}.md)" if m[0] in codes else m[0], parts[index])
        parts[index] = re.sub(r"(?<![\w/.-])([\w.-]+/[\w.-]+)#(\d+)", r"[\1#\2](https://github.com/\1/issues/\2)", part)
    whole = parts[0]
    for language, code, after in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        whole += f"```{language}\n{code}```{after}"
    return whole
