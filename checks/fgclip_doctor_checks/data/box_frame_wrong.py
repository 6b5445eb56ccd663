"""FGD604."""

from collections.abc import Iterator

from fgclip_doctor import Evidence, Finding, Missing, Run, Severity, check


@check("FGD604", "box-frame-wrong", Severity.ERROR)
def box_frame_wrong(run: Run, *, share: float = 0.005) -> Iterator[Finding]:
    """Boxes aren't what the training takes them for: pixels or percent for shares of the image, sizes for corners.

    Why: every region is pooled from another place than its caption describes, so the region loss learns from pairs
    that don't belong together, or from none. Nothing fails: boxes beyond the map are cut, swapped corners are pooled
    empty.
    Evidence: `--data` in FineHARD's format, whose boxes are x1, y1, x2, y2 normalised to the image, by a sample of
    65,536: a `share` with values over 1.5; where 5 % have x2 < x1 or y2 < y1, a convention in which 99 % lie in the
    image.
    Benign: boxes a little over the edge; a few inverted ones (FGD603). Data under other names than FineHARD's has its
    own convention, and is judged only where it mixes two. A loader that converts what it reads should say so in the
    format.
    Fix: convert once, when the annotations are written, and look at ten boxes drawn on their images. Normalised boxes
    survive a resize of the whole image; a crop, a pad or a flip has to change them too. x and y exchanged can't be
    told without the images.
    Sources: 360CVGroup/FG-CLIP, whose loader multiplies boxes with the size of the image or of the feature map.
    """
    data = run.annotations
    boxes = data.boxes
    if not len(boxes.sample):
        raise Missing(f"{data.path} has no boxes")
    mixed = share < boxes.large < 1 - share
    layout = boxes.layout
    if not (mixed or (layout and data.own_format)):
        return
    yield Finding(
        message=f"{boxes.large:.1%} of the boxes have values far over 1, the others don't: two frames are mixed, "
        "and one of them teaches wrong pairs."
        if mixed
        else f"The boxes are {layout}, where x1, y1, x2, y2 normalised to the image are expected: regions are pooled "
        "from elsewhere than their captions describe, and every step of the region loss is wasted.",
        where=f"{data.path}: boxes",
        evidence=(
            Evidence(
                name="boxes with a value over 1.5",
                value=round(boxes.large, 4),
                expected=f"at most {share:.1%}",
                why=f"of {len(boxes.sample):,} boxes; the largest value is {boxes.sample.max():.5g}",
                source=data.path,
            ),
            Evidence(
                name="boxes with x2 < x1 or y2 < y1",
                value=round(boxes.turned, 4),
                expected=0.0,
                why="corners are never in this order; the convention is the one in which the boxes lie in the image",
                source=data.path,
            ),
        ),
    )
