"""What a file of image and region captions holds, in the format of FineHARD (Xie et al. 2025) or near it.

Counted by `sources.annotation_file` in one pass. Counts are of everything; boxes, repeats and groups of hard negatives
are judged by samples, evenly spaced, so that a file of any size takes the same memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

REGIONS_USED = 4  # of one image: FG-CLIP's released code takes the first four
ROUNDING = 1e-3  # what a box may reach out of its image
BEYOND = 1.5  # no normalised box reaches this far, however careless its detector
NEGATIVES = 10  # of a region, in FineHARD
FITS = 0.99  # share of the boxes that must make sense in a convention
TELLING = 20  # boxes from which a convention can be told


@dataclass(frozen=True, slots=True)
class Clash:
    """What repeats among the candidates cost an anchor whose target is its own column alone."""

    share: float  # of the anchors that meet their own caption as a negative
    floor: float  # nats under which the loss can't go


@dataclass(frozen=True)
class Repeats:
    """How often texts (or images) occur: `distinct[i]` of them `times[i]` times, as CLIP's lower case has them.

    `siblings` counts anchors by how many others of their own image say the same: those always meet. What is drawn
    without replacement from an even sample is drawn from the whole, so a sample of a large set tells the same as all.
    """

    times: NDArray[np.int64]
    distinct: NDArray[np.int64]
    siblings: Mapping[int, int] = field(default_factory=lambda: {0: 1})
    commonest: tuple[str, float] = ("", 0.0)  # the text, and its share

    @cached_property
    def total(self) -> int:
        return int(self.times @ self.distinct)

    def among(self, others: float, shown: float = 1.0) -> Clash:
        """What an anchor meets among `others` candidates, drawn at random beside those of its own image.

        Every other candidate shows its text under this key with the probability `shown`.

        With k - 1 copies among the other M - 1, X of `others` drawn are copies: about Binomial(others, (k-1) / (M-1)).
        The loss of identical columns is at least ln(1 + copies); its mean is Frullani's integral,
        ``E ln(1 + X) = integral of exp(-t) (1 - E exp(-t X)) dt/t``, here over u = ln t.
        """
        import numpy as np

        if self.total < 2:
            return Clash(0.0, 0.0)
        chance = (self.times - 1) / (self.total - 1)  # of a draw being a copy
        weight = self.times * self.distinct / self.total  # of the anchors
        draws = min(others * shown, self.total - 1.0)
        u = np.linspace(-30.0, 4.0, 681)
        t = np.exp(u)
        none, copies = 0.0, np.zeros_like(t)  # P(X = 0) and E exp(-t X), over the anchors
        for start in range(0, len(chance), 256):
            part = slice(start, start + 256)
            none += float(weight[part] @ (1 - chance[part]) ** draws)
            copies += weight[part] @ (1 - chance[part, None] * -np.expm1(-t)) ** draws
        own = np.array([(count, share) for count, share in self.siblings.items()], dtype=np.float64)
        own[:, 1] /= own[:, 1].sum()
        copies *= own[:, 1] @ (1 - shown * -np.expm1(-t)) ** own[:, :1]
        share = 1 - none * float(own[:, 1] @ (1 - shown) ** own[:, 0])
        floor = float((np.exp(-t) * (1 - copies)).sum() * (u[1] - u[0]))
        return Clash(max(share, 0.0), max(floor, 0.0))


@dataclass(frozen=True, slots=True)
class Texts:
    """The texts under one key."""

    name: str  # the key
    count: int
    empty: int  # neither letter nor digit
    foreign: int  # most letters aren't Latin
    garbled: int  # UTF-8 that was read as something else
    over: Mapping[int, float]  # by context in tokens: share of a sample that surely doesn't fit it
    repeats: Repeats


@dataclass(frozen=True)
class Boxes:
    """The boxes of all regions; what is wrong with each is said in x1, y1, x2, y2, normalised to the image."""

    count: int
    malformed: int  # not four finite numbers
    inverted: int
    empty: int  # of no area
    outside: int  # of the image, by more than `ROUNDING`
    sample: NDArray[np.float64]  # (n, 4), as written

    @cached_property
    def layout(self) -> str:
        """The convention that the boxes are in, "" where nothing speaks against x1, y1, x2, y2 normalised.

        A pair is never inverted in xyxy, so where many are, the convention is the one in which nearly all boxes lie
        inside the image. That x and y are exchanged throughout can't be told without the images.
        """
        scale, order = self._scale(), self._order()
        return ", ".join(word for word in (order, scale) if word)

    @cached_property
    def large(self) -> float:
        """Share of the boxes with a value that is far from normalised."""
        return float((self.sample.max(axis=1) > BEYOND).mean()) if len(self.sample) else 0.0

    @cached_property
    def turned(self) -> float:
        """Share of the boxes whose second corner is left of or above the first."""
        b = self.sample
        return float(((b[:, 2] < b[:, 0]) | (b[:, 3] < b[:, 1])).mean()) if len(b) else 0.0

    def _scale(self) -> str:
        import numpy as np

        if self.large < 0.5:
            return ""
        reach = self.sample.max(axis=1)
        top, most = float(reach.max()), float(np.quantile(reach, 0.99))
        whole = bool((self.sample == np.floor(self.sample)).mean() > FITS)
        if top <= 100.5 and most > 90:
            return "in percent"
        if top <= 1024 and most > 950 and whole:
            return "in thousandths, or pixels of images of that size"
        return "in pixels"

    def _order(self) -> str:
        if len(self.sample) < TELLING or self.turned < 0.05:
            return ""
        a0, a1, a2, a3 = self.sample.T
        if self.large >= 0.5:  # then the frame, which parts corners from centres, isn't known
            return "x1, x2, y1, y2" if ((a0 <= a1) & (a2 <= a3)).mean() >= FITS else "with width, height"
        low, high = -ROUNDING, 1 + ROUNDING
        fits = {
            "x, y, width, height": (a0 + a2 <= high) & (a1 + a3 <= high),
            "centre, width, height": (a0 - a2 / 2 >= low)
            & (a0 + a2 / 2 <= high)
            & (a1 - a3 / 2 >= low)
            & (a1 + a3 / 2 <= high),
            "x1, x2, y1, y2": (a0 <= a1) & (a2 <= a3),
        }
        return " or ".join(name for name, fit in fits.items() if float(fit.mean()) >= FITS)


@dataclass(frozen=True)
class Groups:
    """Regions with hard negatives. The last three are of a sample of `judged` groups of at least one negative."""

    sizes: Mapping[int, int]  # groups by their number of negatives
    expected: int  # negatives of a group: ten in FineHARD's own format, else the commonest number
    judged: int
    chance: float  # of picking the caption among its negatives blindly
    contained: int  # groups whose negatives hold the caption itself
    told: Mapping[str, float]  # share of the captions that a rule ("the longest") picks out, ties drawn

    @cached_property
    def count(self) -> int:
        return sum(self.sizes.values())

    @cached_property
    def misaligned(self) -> int:
        return self.count - self.sizes.get(self.expected, 0)


@dataclass(frozen=True, slots=True)
class Annotations:
    """What was counted in a file of annotations, or in all those of a directory."""

    path: str
    records: int
    malformed: int  # records that aren't objects with a caption
    regions: int
    used: int  # regions, at most `REGIONS_USED` of an image
    own_format: bool  # under FineHARD's own names, which settle what a box and a group of negatives are
    images: Repeats
    texts: Mapping[str, Texts]  # by "caption", "short_caption", "short_expr", "long_expr", where there are any
    boxes: Boxes
    groups: Groups

    @property
    def regions_per_sample(self) -> float:
        """Of the regions that are used."""
        return self.used / self.records if self.records else 0.0
