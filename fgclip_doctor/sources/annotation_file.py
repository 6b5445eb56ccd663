"""Files of image and region captions -> `Annotations`: one pass over JSON of any size, in bounded memory.

An array of objects or an object a line, as FineHARD's (Xie et al. 2025): `f_path`, `caption`, `short_caption`, and in
`bbox_info` the regions with `bbox`, `short_expr`, `long_expr`, and `short_expr_negs` where `flag_short_neg` is 1. Other
names for the same are understood too. Images are not opened.
"""

from __future__ import annotations

import json
import os
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import unescape
from itertools import chain
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Generic, TypeGuard, TypeVar

from fgclip_doctor.annotations import (
    NEGATIVES,
    REGIONS_USED,
    ROUNDING,
    Annotations,
    Boxes,
    Groups,
    Repeats,
    Texts,
)
from fgclip_doctor.inert import inert
from fgclip_doctor.run import Fact, Run, Source
from fgclip_doctor.sources.facts import valid
from fgclip_doctor.sources.files import Unreadable, inside, open_regular, reason

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")

HEAD = 64 << 10  # bytes that show whether a file holds annotations
CHUNK = 1 << 20
MAX_RECORD = 4 << 20  # characters of one record
MAX_REGIONS = 10_000  # of one record that are looked at
MAX_FILES = 10_000  # of a directory
SHOWN = 80  # characters of a text that are kept to show it
LONGEST = 8192  # characters of a text whose tokens are counted

# FineHARD's own name comes first
IMAGE = ("f_path", "image", "image_path", "img_path", "file_name", "filename", "filepath", "img", "path")
TEXTS = {
    "caption": ("caption", "long_caption", "detailed_caption", "captions", "text"),
    "short_caption": ("short_caption", "brief_caption", "title"),
    "short_expr": ("short_expr", "caption", "phrase", "expression", "description", "text", "label"),
    "long_expr": ("long_expr", "long_caption", "detailed_caption"),
}
REGIONS = ("bbox_info", "regions", "boxes", "objects", "bboxes")
BOX = ("bbox", "box", "bbox_xyxy", "xyxy")
HARD = ("short_expr_negs", "hard_negatives", "negatives", "negative_captions", "neg_captions")
OWN = re.compile(r'"(?:bbox_info|short_expr|short_caption)"\s*:')  # in the head of a record that is longer than it
LOGGED = {"step", "global_step", "epoch", "loss"}  # of a log that shows samples
CONTEXTS = (77, 248)  # tokens, start and end among them: CLIP's, and that of FG-CLIP's and Long-CLIP's long captions

# CLIP's pattern takes words apart from digits and marks, and each piece is at least one token
PIECE = re.compile(r"'(?:[stmd]|re|ve|ll)|[^\W\d_]+|\d|(?:[^\s\w]|_)+")
MARK = re.compile(r"[^\w\s]")
NOT_ASCII_LATIN = re.compile(r"[\u00aa-\u024f\u1e00-\u1eff\u0300-\u036f\uff21-\uff5a]")
GARBLED = re.compile(
    "\ufffd|[ÂÃ][\u0080-\u00bf€‚ƒ„†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]|â€|ï»¿|ðŸ"
)  # UTF-8 taken for Latin-1 or cp1252

_watch: Callable[[int, int], object] = lambda done, total: None  # noqa: E731 - what happens where nobody watches


@contextmanager
def watched(watch: Callable[[int, int], object]) -> Iterator[None]:
    """While this lasts, `watch` is told how many bytes of how many are read."""
    global _watch
    before, _watch = _watch, watch
    try:
        yield
    finally:
        _watch = before


def is_annotations(path: Path) -> bool:
    """True if `path` begins with the record of an image with its caption. Raises `Unreadable`."""
    with open_regular(path) as descriptor:
        text = os.pread(descriptor, HEAD, 0).decode("utf-8-sig", "replace")
    start = re.match(r"\s*\[?\s*(?=\{)", text)
    if start is None:
        return False
    try:
        record, _ = json.JSONDecoder(parse_int=float).raw_decode(text, start.end())
    except (ValueError, RecursionError):
        return len(text) > HEAD // 2 and OWN.search(text) is not None
    if not _is_record(record) or LOGGED & record.keys():
        return False
    return bool(_first(record, IMAGE) or _first(record, REGIONS))


def read(path: Path) -> Run:
    """What a file holds, or all the *.json and *.jsonl in a directory; the size of the data set as facts.

    Raises `Unreadable` where there is no record.
    """
    import numpy as np

    census = _Census(np)
    problems: list[str] = []
    files, sizes = _files(path)
    done = 0
    for file, size in zip(files, sizes, strict=True):
        with open_regular(file) as descriptor, os.fdopen(os.dup(descriptor), "rb") as opened:
            try:
                for record in _records(file, _Watched(opened, done, sum(sizes))):
                    census.add(record)
            except Unreadable as error:
                if len(files) == 1 and not census.records:
                    raise
                problems.append(f"{error} (the records before were read)")
        done += size
    if census.malformed == census.records:
        raise Unreadable(path, "holds no image with a caption")
    found = census.annotations(str(path))
    facts = {fact.name: fact for fact in _facts(found)}
    return Run(str(path), facts=facts, data=found, problems=problems)


def _files(path: Path) -> tuple[list[Path], list[int]]:
    """The files at `path`, and their sizes."""
    try:
        files = [path]
        if path.is_dir():
            names = sorted(one.name for one in path.iterdir() if one.suffix in (".json", ".jsonl"))
            files = [inside(path, name) for name in names]
        sizes = [file.stat().st_size for file in files]
    except (OSError, ValueError) as error:
        raise Unreadable(path, reason(error)) from error
    if not 0 < len(files) <= MAX_FILES:
        raise Unreadable(path, f"holds {len(files):,} *.json and *.jsonl, where 1 to {MAX_FILES:,} are read")
    return files, sizes


def _facts(found: Annotations) -> Iterator[Fact]:
    yield Fact("dataset_size", found.records - found.malformed, Source(found.path, "records"))
    if valid("regions_per_sample", found.regions_per_sample) is not None:
        source = Source(found.path, f"regions, at most {REGIONS_USED} of an image")
        yield Fact("regions_per_sample", found.regions_per_sample, source)


class _Watched:
    """The text of a file, as it is read."""

    def __init__(self, file: BinaryIO, before: int, total: int) -> None:
        self._file, self._done, self._total = file, before, total

    def __iter__(self) -> Iterator[str]:
        import codecs

        decode = codecs.getincrementaldecoder("utf-8-sig")("replace").decode
        while chunk := self._file.read(CHUNK):
            self._done += len(chunk)
            _watch(self._done, self._total)
            yield decode(chunk)
        yield decode(b"", final=True)


def _records(path: Path, chunks: _Watched) -> Iterator[object]:
    """Every record; None for a line that isn't JSON. Raises `Unreadable` where an array goes wrong."""
    text = ""
    chunks_left = iter(chunks)
    for chunk in chunks_left:
        text += chunk
        if text.strip() or len(text) > MAX_RECORD:
            break
    rest = chain([text.lstrip()], chunks_left)
    return _array_items(path, rest) if text.lstrip().startswith("[") else _lines(path, rest)


def _array_items(path: Path, chunks: Iterator[str]) -> Iterator[object]:
    decode = json.JSONDecoder(parse_int=float).raw_decode
    gap = re.compile(r"[\s,]*")
    text, at = "", 1
    for chunk in chain(chunks, [None]):
        text, at = (text[at:] + (chunk or ""), 0) if text else (chunk or "", at)
        while True:
            at = _end(gap, text, at)
            if text.startswith("]", at):
                return
            try:
                record, end = decode(text, at)
            except (ValueError, RecursionError) as error:
                if chunk is not None and len(text) - at <= MAX_RECORD and not isinstance(error, RecursionError):
                    break  # a record that goes on in the next chunk
                raise Unreadable(path, f"is no JSON array to its end: {error}") from None
            yield record
            at = end


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return at if match is None else match.end()


def _lines(path: Path, chunks: Iterator[str]) -> Iterator[object]:
    decode = json.JSONDecoder(parse_int=float).decode
    rest = ""
    for chunk in chain(chunks, ["\n"]):
        lines = (rest + chunk).split("\n")
        rest = lines.pop()
        if len(rest) > MAX_RECORD:
            raise Unreadable(path, f"has a line of more than {MAX_RECORD:,} characters")
        for line in lines:
            if line and not line.isspace():
                try:
                    yield decode(line)
                except (ValueError, RecursionError):
                    yield None


class _Sample(Generic[T]):
    """Every k-th of what is offered; k doubles whenever `limit` are held."""

    def __init__(self, limit: int, kept: Any = None) -> None:
        self.kept = [] if kept is None else kept
        self.seen, self.stride, self._limit = 0, 1, limit

    def wanted(self) -> bool:
        self.seen += 1
        return (self.seen - 1) % self.stride == 0

    def add(self, item: T) -> None:
        self.kept.append(item)
        if len(self.kept) >= self._limit:
            del self.kept[1::2]
            self.stride *= 2


class _TextCensus:
    """What is counted of the texts under one key. Their length is told by a sample: it is most of the work."""

    HASHES = 4 << 20  # 8 bytes each
    EXAMPLES = 1 << 12

    def __init__(self) -> None:
        self.count = self.empty = self.foreign = self.garbled = 0
        self.hashes: _Sample[int] = _Sample(self.HASHES, array("q"))
        self.examples: _Sample[tuple[int, str, int]] = _Sample(self.EXAMPLES)  # hash, beginning, pieces
        self.siblings: Counter[int] = Counter()

    def add(self, text: str, *, any_script: bool = False) -> int | None:
        """Count a text; what tells it from others as CLIP reads it, None where it says nothing."""
        self.count += 1
        if not (text[:1].isalnum() or _says_something(text)):  # the first is nearly always enough, and a call costs
            self.empty += 1
            return None
        if not text.isascii():
            self.garbled += GARBLED.search(text) is not None
            self.foreign += not any_script and _foreign(text)
        number = hash(text.strip().lower())
        if self.hashes.wanted():
            self.hashes.add(number)
        if self.examples.wanted():
            short = len(text) <= CONTEXTS[0] - 2  # no token is shorter than a character
            self.examples.add((number, text[:SHOWN], 0 if short else _pieces(text[:LONGEST])))
        return number

    def beside(self, numbers: Sequence[int]) -> None:
        """Count the anchors of one image by how many of its other texts say the same."""
        if len(set(numbers)) == len(numbers):
            self.siblings[0] += len(numbers)
            return
        for times in Counter(numbers).values():
            self.siblings[times - 1] += times

    def texts(self, name: str, expected: int, numpy: Any) -> Texts:
        """Those under `name`; where most of the `expected` ones are there, the others count as empty."""
        absent = max(expected - self.count, 0) if 2 * self.count > expected and name != "long_expr" else 0
        return Texts(
            name,
            self.count + absent,
            self.empty + absent,
            self.foreign,
            self.garbled,
            {context: self._over(context) for context in CONTEXTS},
            self.repeats(numpy),
        )

    def _over(self, context: int) -> float:
        """Share of the examples with more pieces than tokens between start and end."""
        pieces: list[int] = [one[2] for one in self.examples.kept]
        return sum(one > context - 2 for one in pieces) / max(len(pieces), 1)

    def repeats(self, numpy: Any) -> Repeats:
        counts = numpy.unique(numpy.frombuffer(self.hashes.kept, dtype=numpy.int64), return_counts=True)[1]
        times, distinct = numpy.unique(counts, return_counts=True)
        siblings = dict(self.siblings) if self.siblings.total() else {0: 1}
        texts = {number: text for number, text, _ in self.examples.kept}
        shown = Counter(number for number, _, _ in self.examples.kept).most_common(1)
        commonest = [(inert(texts[number]), count / len(self.examples.kept)) for number, count in shown]
        return Repeats(times.astype("int64"), distinct.astype("int64"), siblings, *commonest)


def _says_something(text: str) -> bool:
    return any(map(str.isalnum, text))


def _pieces(text: str) -> int:
    """Tokens that the text has at least, without start and end. Of English prose, four fifths of them or more."""
    return len(PIECE.findall(unescape(text) if "&" in text else text))


def _foreign(text: str) -> bool:
    letters = sum(map(str.isalpha, text))
    latin = sum(one.isascii() and one.isalpha() for one in text) + len(NOT_ASCII_LATIN.findall(text))
    return 2 * latin < letters


# What may give an answer away, of a caption and of its negatives alike
TELLS: dict[str, Callable[[str], int]] = {
    "capital letters": lambda text: 0 if text.islower() else sum(map(str.isupper, text)),
    "characters": len,
    "words": lambda text: len(text.split()),
    "punctuation marks": lambda text: len(MARK.findall(text)),
    "a full stop": lambda text: text.rstrip().endswith((".", "!", "?", "。")),
    "blanks around it": lambda text: len(text) - len(text.strip()),
    "characters beyond ASCII": lambda text: 0 if text.isascii() else sum(not one.isascii() for one in text),
}


class _GroupCensus:
    """What is counted of the groups of hard negatives."""

    GROUPS = 1 << 11
    MOST = 64  # negatives of a group that are looked at

    def __init__(self) -> None:
        self.sizes: Counter[int] = Counter()
        self.own_format = False
        self.judged: _Sample[tuple[float, ...]] = _Sample(self.GROUPS)  # chance, contained, then two for each tell

    def add(self, caption: str, negatives: Sequence[object]) -> None:
        listed = negatives[: self.MOST]
        texts = [one for one in listed if isinstance(one, str) and (one[:1].isalnum() or _says_something(one))]
        self.sizes[len(texts) if len(negatives) <= self.MOST else len(negatives)] += 1
        if not texts or not self.judged.wanted():
            return
        row = [1 / (len(texts) + 1), float(caption.strip().lower() in [text.strip().lower() for text in texts])]
        for tell in TELLS.values():
            own, others = tell(caption), [tell(text) for text in texts]
            ties = 1 / (1 + others.count(own))
            row += [ties * (own >= max(others)), ties * (own <= min(others))]
        self.judged.add(tuple(row))

    def groups(self, numpy: Any) -> Groups:
        rows = numpy.array(self.judged.kept, dtype=numpy.float64).reshape(-1, 2 + 2 * len(TELLS))
        mean = rows.mean(axis=0).tolist() if len(rows) else []
        names = chain.from_iterable((f"the most {name}", f"the fewest {name}") for name in TELLS)
        commonest = self.sizes.most_common(1)
        return Groups(
            sizes=dict(self.sizes),
            expected=NEGATIVES if self.own_format or not commonest else commonest[0][0],
            judged=len(rows),
            chance=mean[0] if mean else 0.0,
            contained=int(rows[:, 1].sum()) if mean else 0,
            told=dict(zip(names, mean[2:], strict=False)),
        )


class _Census:
    """Everything that is counted, record by record."""

    BOXES = 1 << 16

    def __init__(self, numpy: Any) -> None:
        self._numpy = numpy
        self.records = self.malformed = self.regions = self.used = 0
        self.own_format = False
        self.images = _TextCensus()
        self.texts = {name: _TextCensus() for name in TEXTS}
        self.groups = _GroupCensus()
        self.boxes: _Sample[tuple[float, ...]] = _Sample(self.BOXES)
        self.odd: Counter[str] = Counter()

    def add(self, record: object) -> None:
        self.records += 1
        if not _is_record(record):
            self.malformed += 1
            return
        image = _first(record, IMAGE)
        if isinstance(image, str) and image and self.images.hashes.wanted():
            self.images.hashes.add(hash(image))
        any_script = record.get("is_cn") in (True, 1)  # FG-CLIP 2 marks what is meant for its other vocabulary
        for name in ("caption", "short_caption"):
            text = _text(record, TEXTS[name])
            if text is not None:
                self.texts[name].add(text, any_script=any_script)
        listed = _first(record, REGIONS)
        if isinstance(listed, list):
            self.own_format |= "bbox_info" in record
            self._add_regions([info for info in listed[:MAX_REGIONS] if info is not None])

    def _add_regions(self, listed: Sequence[object]) -> None:
        said: dict[str, list[int]] = {"short_expr": [], "long_expr": []}
        for place, info in enumerate(listed):
            self.regions += 1
            self.used += place < REGIONS_USED
            if not isinstance(info, Mapping):
                self._add_box(info)  # a list of boxes without captions
                continue
            self._add_box(_first(info, BOX))
            for name, numbers in said.items():
                text = _text(info, TEXTS[name])
                number = None if text is None else self.texts[name].add(text)
                if number is not None and place < REGIONS_USED:
                    numbers.append(number)
            self._add_group(info)
        for name, numbers in said.items():
            self.texts[name].beside(numbers)

    def _add_box(self, value: object) -> None:
        self.odd["boxes"] += 1
        box = value[:4] if isinstance(value, list) else []
        if len(box) < 4 or not all(type(at) is float and -inf < at < inf for at in box):
            self.odd["malformed"] += 1
            return
        left, top, right, bottom = box
        if right < left or bottom < top:
            self.odd["inverted"] += 1
        elif right == left or bottom == top:
            self.odd["empty"] += 1
        elif min(left, top) < -ROUNDING or max(right, bottom) > 1 + ROUNDING:
            self.odd["outside"] += 1
        if self.boxes.wanted():
            self.boxes.add((left, top, right, bottom))

    def _add_group(self, info: Mapping[str, Any]) -> None:
        negatives = _first(info, HARD)
        listed = [*negatives.values()] if isinstance(negatives, Mapping) else negatives
        flag = info.get("flag_short_neg")
        if flag != 1 if flag is not None else not listed:
            return
        self.groups.own_format |= HARD[0] in info or flag is not None
        self.groups.add(_text(info, TEXTS["short_expr"]) or "", listed if isinstance(listed, list) else [])

    def annotations(self, path: str) -> Annotations:
        numpy = self._numpy
        kept: NDArray[np.float64] = numpy.array(self.boxes.kept, dtype=numpy.float64).reshape(-1, 4)
        return Annotations(
            path=inert(path),
            records=self.records,
            malformed=self.malformed,
            regions=self.regions,
            used=self.used,
            own_format=self.own_format,
            images=self.images.repeats(numpy),
            texts={
                name: one.texts(name, self.regions if name in ("short_expr", "long_expr") else self.records, numpy)
                for name, one in self.texts.items()
                if one.count
            },
            boxes=Boxes(
                self.odd["boxes"],
                self.odd["malformed"],
                self.odd["inverted"],
                self.odd["empty"],
                self.odd["outside"],
                kept,
            ),
            groups=self.groups.groups(numpy),
        )


def _is_record(record: object) -> TypeGuard[Mapping[str, Any]]:
    """Whether it is an object with a caption, or with regions."""
    if not isinstance(record, Mapping):
        return False
    return isinstance(_first(record, REGIONS), list) or any(
        _text(record, TEXTS[name]) is not None for name in ("caption", "short_caption")
    )


def _first(record: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The value under the first of several names that is there."""
    for name in names:
        if name in record:
            return record[name]
    return None


def _text(record: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The text under the first of several names that has one, or the first of several texts there.

    None where there is none; "" where FineHARD's own name, the first, stands for something else than a text.
    """
    for name in names:
        value = record.get(name)
        if isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, str):
            return value
    return "" if names[0] in record else None
