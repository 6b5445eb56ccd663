"""How pictures are drawn: SVG that takes its colours from the page around it, the same bytes every time."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator

from fgclip_doctor.inert import inert

COLOURS = {  # what matplotlib draws with, and what the page puts in its place
    "#010203": "var(--ink)",
    "#040506": "var(--muted)",
    "#070809": "var(--one)",
    "#0a0b0c": "var(--two)",
    "#0d0e0f": "var(--band)",
    "#101112": "var(--mark)",
}
INK, MUTED, ONE, TWO, BAND, MARK = COLOURS
LINES = ((ONE, "-"), (TWO, "--"), (MARK, "-."), (INK, ":"), (ONE, ":"), (TWO, ":"))  # told apart without colour, too


@contextmanager
def drawing() -> Iterator[None]:
    """What is drawn in here is drawn as everything is."""
    with mpl.rc_context(
        {
            "font.family": "sans-serif",
            "svg.fonttype": "none",
            "svg.hashsalt": "fgclip-doctor",
            "text.parse_math": False,  # a name may have dollar signs in it
        }
    ):
        yield


def figure_of(rows: int, *, height: float = 2.2, columns: int = 1) -> tuple[Figure, list[Any]]:
    """A figure with nothing behind it, and its axes in reading order; `height` is that of a row in inches."""
    figure = Figure(figsize=(8, height * rows), layout="constrained")
    figure.patch.set_alpha(0)
    axes = list(np.atleast_1d(figure.subplots(rows, columns, sharex=rows > 1)).ravel())
    for one in axes:
        one.patch.set_alpha(0)
        one.xaxis.set_major_locator(MaxNLocator(integer=True))
        one.tick_params(colors=INK, labelsize=8)
        one.yaxis.get_offset_text().set(size=8, color=INK)
        for spine in one.spines.values():
            spine.set_color(MUTED)
        one.xaxis.label.set_color(INK)
        one.yaxis.label.set_color(INK)
    return figure, axes


def legend(axes: Any, *, above: float = 1.0) -> None:
    """A row above the picture, where no data are."""
    place = {"loc": "lower left", "bbox_to_anchor": (0, above), "borderaxespad": 0.2, "ncols": 4}
    for text in axes.legend(fontsize=8, frameon=False, handlelength=2.5, **place).get_texts():
        text.set_color(INK)


def logarithmic(axes: Any, direction: str) -> None:
    """A logarithmic axis ("x" or "y") whose numbers are plain, as mathematics is not set."""
    axes.set(**{f"{direction}scale": "log"})
    axis = axes.xaxis if direction == "x" else axes.yaxis
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))


def svg(figure: Figure) -> str:
    """The figure without anything that a page doesn't need, and with the page's colours. The same bytes every time."""
    out = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the page's own font draws what matplotlib's lacks
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    for drawn, meant in COLOURS.items():
        svg = svg.replace(drawn, meant)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", svg))
    mine = sha256(svg.encode()).hexdigest()[:8]  # several pictures share a page, and none may use another's parts

    def own(match: re.Match[str]) -> str:
        return f' id="{mine}-{match[1]}"' if match[1] in used else ""

    svg = re.sub(r' id="([^"]+)"', own, svg)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{mine}-", svg)


def plain(text: str) -> str:
    """`text` short enough for an axis."""
    safe = inert(text)
    return safe if len(safe) <= 60 else f"{safe[:28]}…{safe[-28:]}"
