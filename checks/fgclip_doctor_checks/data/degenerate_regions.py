"""FGD603."""

from collections.abc import Iterator

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check
from fgclip_doctor_checks.causes import explaining


@check("FGD603", "degenerate-regions", Severity.WARNING)
def degenerate_regions(run: Run, *, share: float = 0.001, outside: float = 0.02) -> Iterator[Finding]:
    """Boxes are malformed, inverted, of no area or outside of their image.

    Why: nothing can be pooled from them. An empty box gives a zero feature, which divided by its length is NaN; it
    gets through a check for inverted ones; one outside the image is pooled from padding. A replaced box teaches a
    wrong pair.
    Evidence: `--data`: the boxes of all regions, as x1, y1, x2, y2 normalised to the image: over a `share` that are
    not four finite numbers, that are inverted or have no area, or over a share `outside` that reach out by more than
    0.001.
    Benign: a detector's box that reaches a little over the edge is cut to it without harm. Boxes that are in another
    frame altogether are FGD604, and are judged here only for being numbers.
    Fix: drop these regions, not the image; clip boxes to the image first, then ask for a width and height over 0;
    divide features by max(length, 1e-6).
    Sources: 360CVGroup/FG-CLIP, whose loader refuses x1 > x2 and passes x1 = x2.
    """
    data = run.annotations
    boxes = data.boxes
    if not boxes.count:
        raise Missing(f"{data.path} has no boxes")
    kinds = {"not four finite numbers": (boxes.malformed, share)}
    if data.own_format and not boxes.layout:
        kinds |= {
            "inverted": (boxes.inverted, share),
            "of no area": (boxes.empty, share),
            "outside the image": (boxes.outside, outside),
        }
    for what, (count, allowed) in kinds.items():
        if count > allowed * boxes.count:
            yield Finding(
                message=f"{count:,} of {boxes.count:,} boxes ({count / boxes.count:.2%}) are {what}.",
                where=f"{data.path}: boxes {what}",
                evidence=(
                    Evidence(
                        name=f"boxes {what}",
                        value=count,
                        expected=f"at most {allowed:.1%} of {boxes.count:,}",
                        why="read as x1, y1, x2, y2, normalised",
                        source=data.path,
                    ),
                ),
                explained_by=explaining("FGD603", "frame" if max(boxes.large, boxes.turned) > share else ""),
            )
