"""Images with long and short captions, regions and hard negatives, in the format of FineHARD (Xie et al. 2025).

A record is a JSON object: `f_path` of the image, `caption` (long), `short_caption`, and under `bbox_info` the regions,
each with `bbox` (xyxy, normalised; more values may follow), `short_expr`, `long_expr` and, where `flag_short_neg` is 1,
ten `short_expr_negs`. What is wrong with them is counted, and no sample ever stands in for another.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fgclip_doctor.training.data import NEGATIVES, Region, Sample
from fgclip_doctor.training.tokenizer import ClipTokenizer

PATH_PREFIX = "grit-20m/data-12m/"  # of every `f_path` in FineHARD; FG-CLIP's released code takes it off, too
SHORT_PREFIX = "a photo of "  # before every short caption: the released code
MAX_REGIONS = 4  # of one image: the released code
SEPARATORS = {*" \t\r\n,"}
ROUNDING = 1e-3  # what a box may reach out of its image, and is then cut to it

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # those that Pillow reads by itself
UNREADABLE = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

SAMPLE, REGION, NEGATIVE, KEPT = "sample rejected", "region dropped", "hard negatives dropped", "kept"
PROBLEMS = {  # and what each costs
    "record-malformed": SAMPLE,
    "image-missing": SAMPLE,
    "image-outside-folder": SAMPLE,
    "image-unreadable": SAMPLE,
    "caption-empty": SAMPLE,
    "caption-not-latin": SAMPLE,
    "box-malformed": REGION,
    "box-inverted": REGION,
    "box-out-of-range": REGION,
    "box-zero-area": REGION,
    "region-caption-empty": REGION,
    "region-caption-not-latin": REGION,
    "negatives-not-ten": NEGATIVE,
    "negative-is-caption": NEGATIVE,
    "caption-truncated": KEPT,  # longer than the context, so its end is not read
    "region-caption-truncated": KEPT,
    "caption-duplicate": KEPT,  # of long captions: in one batch, each is the other's negative
}


class Rejected(ValueError):  # noqa: N818 - names what happens to the sample
    """A sample can't be used: one of `PROBLEMS`, then what exactly."""

    def __init__(self, problem: str, detail: str) -> None:
        super().__init__(f"{problem}: {detail}")
        self.problem, self.detail = problem, detail


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What a record says, without the pixels; `problems` names what was left out of it."""

    image: Path
    long_caption: str
    short_caption: str
    regions: tuple[Region, ...]
    problems: tuple[str, ...]


@dataclass(slots=True)
class Census:
    """What a data set holds, and what is wrong with it."""

    records: int = 0
    samples: int = 0  # kept
    regions: int = 0  # kept
    groups: int = 0  # regions with hard negatives
    problems: Counter[str] = field(default_factory=Counter)
    rejected: list[tuple[str, str]] = field(default_factory=list)  # name, and why

    def __str__(self) -> str:
        """One line: what is kept, then every problem with its number."""
        kept = (
            f"{self.samples} of {self.records} samples with {self.regions} regions, {self.groups} with hard negatives"
        )
        wrong = [f"{self.problems[name]} {name} ({cost})" for name, cost in PROBLEMS.items() if self.problems[name]]
        return "; ".join([kept, *wrong])

    def save(self, path: Path) -> None:
        values = {
            "records": self.records,
            "samples": self.samples,
            "regions": self.regions,
            "hard_negative_groups": self.groups,
            "problems": {name: self.problems[name] for name in PROBLEMS},
            "rejected": [{"name": name, "reason": reason} for name, reason in self.rejected],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


class Records:
    """The records of a JSON file (an array, or an object a line) or of all such files in a directory, by number.

    Only their places are held, 20 bytes each, which worker processes share. An array is read as a whole to find them,
    and takes memory of twice its size for that while; lines take none.
    """

    def __init__(self, path: Path) -> None:
        self.files = sorted(found for kind in ("*.json", "*.jsonl") for found in path.glob(kind))
        if not path.is_dir():
            self.files = [path]
        self.file, self.start, self.length = array("i"), array("q"), array("q")
        for number, file in enumerate(self.files):
            if not file.is_file():
                raise FileNotFoundError(f"{file}: no such file")
            for start, length in places(file):
                self.file.append(number)
                self.start.append(start)
                self.length.append(length)

    def __len__(self) -> int:
        return len(self.start)

    def name(self, number: int) -> str:
        return f"{self.files[self.file[number]].name}, byte {self.start[number]}"

    def __getitem__(self, number: int) -> Any:
        with self.files[self.file[number]].open("rb") as file:
            file.seek(self.start[number])
            data = file.read(self.length[number])
        try:
            record = json.loads(data.decode("utf-8-sig"))
            if rb"\ud" in data.lower():
                json.dumps(record, ensure_ascii=False).encode()  # half a character is no text
            return record
        except (ValueError, RecursionError) as error:
            raise Rejected("record-malformed", f"not JSON: {error}") from error


def places(file: Path) -> Iterator[tuple[int, int]]:
    """Where each record of a file starts, and how many bytes it has."""
    with file.open("rb") as lines:
        if not re.match(rb"(?:\xef\xbb\xbf)?\s*\[", lines.read(64)):
            lines.seek(0)
            start = 0
            for line in lines:
                if line.strip():
                    yield start, len(line)
                start += len(line)
            return
    text = file.read_bytes().decode("latin-1")  # a character a byte, so that positions are those of the bytes
    decode = json.JSONDecoder().raw_decode
    at = text.index("[") + 1
    while True:
        while text[at : at + 1] in SEPARATORS:
            at += 1
        if text.startswith("]", at):
            return
        try:
            end = decode(text, at)[1]
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file}: not JSON: {error}") from error
        yield at, end - at
        at = end


class FineHard:
    """The samples that `survey` kept; images are read when they are asked for."""

    def __init__(self, records: Records, kept: array[int], images: Path, *, side: int, max_regions: int) -> None:
        self.records, self.kept, self.images = records, kept, images
        self.side, self.max_regions = side, max_regions

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: int) -> Sample:
        """Raises `Rejected` for an image that has become unreadable since."""
        entry = entry_of(self.records[self.kept[index]], self.images, self.max_regions)
        return Sample(
            image=read_image(entry.image, self.side),
            long_caption=entry.long_caption,
            short_caption=entry.short_caption,
            regions=entry.regions,
        )


def survey(
    path: Path,
    images: Path,
    *,
    side: int,
    tokenizer: ClipTokenizer,
    max_regions: int = MAX_REGIONS,
    decode_images: bool = True,
) -> tuple[FineHard, Census]:
    """Reads every record once and keeps the good ones; raises `ValueError` when there are none.

    Without `decode_images` only the header of an image is looked at, and a torn one stops the run that comes upon it.
    """
    records, census = Records(path), Census()
    kept, captions = array("q"), array("q")
    for number in range(len(records)):
        census.records += 1
        name = records.name(number)
        try:
            record = records[number]
            if isinstance(record, Mapping) and isinstance(record.get("f_path"), str):
                name = record["f_path"]
            entry = entry_of(record, images, max_regions)
            if decode_images:
                read_image(entry.image, side)
            else:
                open_image(entry.image).close()
        except Rejected as rejected:
            census.problems[rejected.problem] += 1
            census.rejected.append((name, str(rejected)))
            continue
        census.samples += 1
        census.regions += len(entry.regions)
        census.groups += sum(bool(region.negatives) for region in entry.regions)
        census.problems.update([*entry.problems, *truncated(entry, tokenizer)])
        kept.append(number)
        captions.append(hash(entry.long_caption))
    if not kept:
        raise ValueError(f"{path}: no sample can be used: {census}")
    census.problems["caption-duplicate"] = len(captions) - len(np.unique(np.frombuffer(captions, dtype=np.int64)))
    return FineHard(records, kept, images, side=side, max_regions=max_regions), census


def truncated(entry: Entry, tokenizer: ClipTokenizer) -> Iterator[str]:
    """The problems of texts that don't fit their context."""
    if not (tokenizer.fits(entry.long_caption, long=True) and tokenizer.fits(entry.short_caption)):
        yield "caption-truncated"
    for region in entry.regions:
        if not all(map(tokenizer.fits, (region.caption, region.long_caption, *region.negatives))):
            yield "region-caption-truncated"


def entry_of(record: Any, images: Path, max_regions: int) -> Entry:
    """Checks one record; raises `Rejected` if the sample can't be used."""
    if not isinstance(record, Mapping) or not isinstance(name := record.get("f_path"), str):
        raise Rejected("record-malformed", "not an object with an f_path")
    for key in ("caption", "short_caption"):
        if problem := text_problem(record.get(key)):
            raise Rejected(f"caption-{problem}", key)
    listed = record.get("bbox_info") or []
    if not isinstance(listed, list):
        raise Rejected("record-malformed", "bbox_info is not a list")
    regions: list[Region] = []
    problems: list[str] = []
    for info in listed:
        try:
            regions.append(region_of(info))
            regions[-1] = replace(regions[-1], negatives=negatives_of(info))  # if these are wrong, the region stays
        except Rejected as rejected:
            problems.append(rejected.problem)
    return Entry(
        image=image_path(images, name.removeprefix(PATH_PREFIX)),
        long_caption=record["caption"],
        short_caption=SHORT_PREFIX + record["short_caption"],
        regions=tuple(regions[:max_regions]),
        problems=tuple(problems),
    )


def region_of(info: Any) -> Region:
    """The region without its hard negatives; raises `Rejected` if it can't be used."""
    if not isinstance(info, Mapping):
        raise Rejected("box-malformed", "not an object")
    box = box_of(info.get("bbox"))
    caption, long_caption = info.get("short_expr"), info.get("long_expr")
    if problem := text_problem(caption):
        raise Rejected(f"region-caption-{problem}", "short_expr")
    return Region(box=box, caption=str(caption), long_caption="" if text_problem(long_caption) else str(long_caption))


def box_of(value: Any) -> tuple[float, float, float, float]:
    """The box, cut to the image."""
    box = value[:4] if isinstance(value, list) else []
    if len(box) < 4 or not all(type(at) in (int, float) and at == at for at in box):  # NaN is not itself
        raise Rejected("box-malformed", str(box))
    if min(box) < -ROUNDING or max(box) > 1 + ROUNDING:
        raise Rejected("box-out-of-range", str(box))
    left, top, right, bottom = (min(max(float(at), 0.0), 1.0) for at in box)
    if left > right or top > bottom:
        raise Rejected("box-inverted", str(box))
    if left == right or top == bottom:
        raise Rejected("box-zero-area", str(box))
    return left, top, right, bottom


def negatives_of(info: Mapping[str, Any]) -> tuple[str, ...]:
    """The hard negatives of a region; raises `Rejected` if they aren't ten.

    FineHARD has them as the values of an object; a list will do.
    """
    if info.get("flag_short_neg") != 1:
        return ()
    listed = info.get("short_expr_negs")
    texts = [*listed.values()] if isinstance(listed, Mapping) else listed
    if not isinstance(texts, list) or len(texts) != NEGATIVES or any(map(text_problem, texts)):
        raise Rejected("negatives-not-ten", "short_expr_negs")
    if info["short_expr"].strip().lower() in {text.strip().lower() for text in texts}:
        raise Rejected("negative-is-caption", info["short_expr"])
    return tuple(texts)


def text_problem(text: Any) -> str | None:
    """Why CLIP's text tower can't learn from a text: it says nothing, or most of its letters aren't Latin."""
    if not isinstance(text, str) or not any(map(str.isalnum, text)):
        return "empty"
    letters = [one for one in text if one.isalpha()]
    latin = sum(one < "\u0250" or "\u1e00" <= one < "\u1f00" or "\uff21" <= one <= "\uff5a" for one in letters)
    return "not-latin" if 2 * latin < len(letters) else None


def image_path(folder: Path, name: str) -> Path:
    """The image's path in its folder, which it may not leave, through a symbolic link neither."""
    path = folder / name
    try:
        inside, found = path.resolve().is_relative_to(folder.resolve()), path.is_file()  # a pipe would be waited for
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, a loop of links, a null byte
        raise Rejected("image-missing", f"{path}: {error}") from error
    if not inside:
        raise Rejected("image-outside-folder", str(path))
    if not found:
        raise Rejected("image-missing", str(path))
    return path


def open_image(path: Path) -> Image.Image:
    try:
        return Image.open(path, formats=FORMATS)
    except UNREADABLE as error:
        raise Rejected("image-unreadable", f"{path}: {error}") from error


def read_image(path: Path, side: int) -> Tensor:
    """The image squeezed to a square, so that normalised boxes stay right, (3, side, side) in 0..255."""
    with open_image(path) as image:
        try:
            square = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
        except UNREADABLE as error:
            raise Rejected("image-unreadable", f"{path}: {error}") from error
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)  # (3, side, side)
