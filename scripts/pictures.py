"""Draw the pictures of the documentation, each an SVG of its own that is light or dark as its reader is.

pictures.py yardstick DIRECTORY          what a loss means, from theory and simulation
pictures.py run RUN DIRECTORY [PREFIX]   those of a run's report: PREFIX-1.svg, ...; prints what each shows
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgclip_doctor import theory
from fgclip_doctor.reports.drawing import BAND, MARK, MUTED, ONE, TWO, drawing, figure_of, legend, svg
from fgclip_doctor.reports.plots import pictures
from fgclip_doctor.sources import load

DIMENSION, ANCHORS, BATCHES = 512, 4, 8  # of the case study: 4 pairs a forward, 8 forwards a step
SCALE, BANK, ON, STEPS = 14.24, 128, 50, 160


def main() -> None:
    what, *rest = sys.argv[1:]
    with drawing():
        if what == "yardstick":
            directory = Path(rest[0])
            drawn = dict(_yardstick())
        else:
            directory, prefix = Path(rest[1]), rest[2] if len(rest) > 2 else "run"
            shown = list(pictures(load([Path(rest[0])])))
            drawn = {f"{prefix}-{number}": one.svg for number, one in enumerate(shown, 1)}
            for name, one in zip(drawn, shown, strict=True):
                print(f"{name}.svg: {one.title}. {one.text}")
    for name, picture in drawn.items():
        (directory / f"{name}.svg").write_text(standalone(picture), "utf-8")


def standalone(picture: str) -> str:
    """An SVG with the colours of the report in it, and its paper behind it."""
    css = files("fgclip_doctor.reports").joinpath("report.css").read_text("utf-8")
    colours = css[css.index(":root") : css.index("* {")]
    style = f"<style>{colours}svg {{ background: var(--paper); }} image {{ image-rendering: pixelated; }}</style>"
    lines = (line.rstrip() for line in re.sub(r"(<svg[^>]*>)", rf"\1{style}", picture, count=1).splitlines())
    return "\n".join(lines) + "\n"


def losses(learnt: NDArray[Any], candidates: NDArray[Any]) -> NDArray[Any]:
    """Simulated losses of `BATCHES` forwards a step, where the positive's cosine is `learnt`, beside random ones."""
    random = np.random.default_rng(0)
    values = []
    for cosine, count in zip(learnt, candidates.astype(int), strict=True):
        logits = random.standard_normal((BATCHES, ANCHORS, count)) / np.sqrt(DIMENSION)
        logits[..., 0] = logits[..., 0] * np.sqrt(1 - cosine**2) + cosine
        logits *= SCALE
        values.append(float((np.log(np.exp(logits).sum(-1)) - logits[..., 0]).mean()))
    return np.array(values)


def _yardstick() -> Iterator[tuple[str, str]]:
    yield "yardstick-levels", _levels()
    steps = np.arange(1, STEPS + 1)
    candidates = np.where(steps < ON, ANCHORS, ANCHORS + BANK)
    yield "yardstick-moves", _course(steps, candidates, np.zeros(STEPS))
    yield "yardstick-learnt", _course(steps, candidates, 0.45 * (1 - np.exp(-steps / 60)))


def _levels() -> str:
    """The null level over the number of candidates, at two scales."""
    figure, (axes,) = figure_of(1, height=3.0)
    counts = np.unique(np.geomspace(2, 4096, 40).astype(int))
    axes.plot(counts, np.log(counts), color=MUTED, linestyle=":", label="chance, ln N")
    for scale, colour, style in ((SCALE, ONE, "-"), (100.0, TWO, "--")):
        nulls = [theory.null(anchors=ANCHORS, candidates=int(one), scale=scale, dimension=DIMENSION) for one in counts]
        level, noise = np.array([(one.level, one.noise) for one in nulls]).T
        axes.fill_between(counts, level - noise, level + noise, color=BAND, linewidth=0)
        axes.plot(counts, level, color=colour, linestyle=style, label=f"unaligned features, scale {scale:g}")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("candidates per anchor (N)")
    axes.set_ylabel("loss (nats)")
    legend(axes)
    return svg(figure)


def _course(steps: NDArray[Any], candidates: NDArray[Any], learnt: NDArray[Any]) -> str:
    """A loss whose bank comes on, over its yardstick, and the bits that it has learnt."""
    figure, (above, below) = figure_of(2)
    nulls = [
        theory.null(
            anchors=ANCHORS, candidates=int(one), scale=SCALE, dimension=DIMENSION, accumulation=BATCHES, directions=1
        )
        for one in candidates
    ]
    level, noise = np.array([(one.level, one.noise) for one in nulls]).T
    values = losses(learnt, candidates)
    above.fill_between(steps, level - 2 * noise, level + 2 * noise, color=BAND, linewidth=0)
    above.plot(steps, level, color=MUTED, linestyle="--", label="unaligned features, +- 2 standard deviations")
    above.plot(steps, values, color=ONE, label="the logged loss")
    above.set_ylabel("loss (nats)")
    legend(above)
    below.plot(steps, (level - values) / theory.LN2, color=TWO)
    below.axhline(0, color=MUTED, linewidth=0.8)
    below.set_ylabel("bits learnt")
    below.set_xlabel("optimizer step")
    for one in (above, below):
        one.axvline(ON, color=MARK, linewidth=0.8)
    return svg(figure)


if __name__ == "__main__":
    main()
