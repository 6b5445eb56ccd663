"""What a training printed -> series, facts and events: any text in which names stand before numbers.

One tokenizer reads every line, whoever wrote it: words, numbers and the marks between them. A number belongs to the
words before it (``Loss: 4.8 (4.9)``, ``'loss': '4.8'``, ``loss=4.8``, ``Loss 4.8e+00 (4.9e+00)``); one in brackets
right after a value is its running mean, and is left out. What the names mean is said by the dialect in `records`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from math import inf, nan
from pathlib import Path

from fgclip_doctor.run import Run
from fgclip_doctor.sources import lines, records, remarks, tables
from fgclip_doctor.sources.decimals import Number, parsed_number
from fgclip_doctor.sources.files import Unreadable, inside
from fgclip_doctor.sources.records import EPOCH, HELD_OUT, MEAN, METRIC, NO_CLOCK, RANK, Clock, Reading, Record
from fgclip_doctor.sources.skeletons import chunks, holds_text
from fgclip_doctor.sources.trainer import CUT_OFF

# In the skeleton of a line every run of digits is one "0". The first that fits wins.
TOKEN = re.compile(
    r"""
    (?P<escape>\x1b\[[0;:?]{0,20}\x1b)
  | (?P<date>(?<![\w.])0[-/.]0[-/.]0(?:[T_ ,]{1,2}0:0(?::0)?(?:[.,]0)?(?:Z\b|[+-]0(?::0)?)?)?(?![\w.])|^0/0[ ]0:0:0\b)
  | (?P<time>(?<![\w.])0:0(?::0)?(?:[.,]0)?(?:<(?:0:)?0:0|<\?)?(?![\w:]))
  | (?P<bar>0%\|[^|]{0,400}\|(?=\s{0,20}0/0))
  | (?P<count>(?<![\w.])0[ ]{0,8}/[ ]{0,8}0(?![\w/.]))
  | (?P<junk>0(?!e0\b|E0\b)[A-Za-z_]\w{2,})
  | (?P<number>[-+]?(?:0(?:,0)*(?:\.0?)?|\.0)(?:[eE][-+]?0)?)(?P<unit>%|[A-Za-z/µ][\w/]*)?
  | (?P<word>[^\W\d](?:[\w./@-]*\w)?)
  | (?P<mark>\S)
    """,
    re.VERBOSE,
)
ESCAPE = re.compile(r"(\x1b\[[0;:?]{0,20})[A-Za-z]")
NOT_FINITE = {"nan": nan, "inf": inf, "infinity": inf}
SAMPLES = re.compile(r" *\(0(?:\.0)?%\) *\]")  # open_clip: "[  512/10000 (5%)]"
FILLERS = {"is", "now", "was", "of", "the", "value", "equals"}
MEANS = {"avg", "mean", "average", "median", "ema", "global_avg", "smoothed"}
PROSE = 5  # words before a number that are no name any more
SUMMARY = re.compile(r"\| train \| epoch 0 \|")  # fairseq's, of a whole epoch; `train_inner` is what happens now
COUNTED = re.compile(r"(?:^|.*_)(?:step|steps|iter|iters|iteration|iterations|train|training|batch|it|progress)")
SOURCE_FILE = re.compile(r"\.(?:py|c|cc|cpp|cu|h|so)$")
LEVELS = {"info", "warning", "warn", "error", "debug", "root", "main", "critical"}

ARGUMENT = re.compile(
    r"(?:^|[\s,({\['\"|])(?:--)?([A-Za-z_][\w.-]{0,80})['\"]?\s{0,8}[=:]\s{0,8}['\"]?([^\s,'\"(){}\[\]]{1,80})"
)
OPTION = re.compile(r"(?:^|\s)--([A-Za-z_][\w.-]{0,80})[ =]['\"]?([^\s'\"-][^\s'\"]{0,80})")
ARGUMENTS = re.compile(r"Namespace\(|Arguments\(|Config\(|(?:^|\s)--[a-z]\w+[ =]")
HEADINGS = {  # what transformers' Trainer prints before it begins
    "Num examples": "dataset_size",
    "Num Epochs": "num_train_epochs",
    "Instantaneous batch size per device": "per_device_train_batch_size",
    "Gradient Accumulation steps": "gradient_accumulation_steps",
    "Total optimization steps": "max_steps",
    "Num update steps per epoch": "update_steps_per_epoch",
    "Total train batch size (w. parallel, distributed & accumulation)": "total_batch_size",
}
HEADING = re.compile(rf"({'|'.join(map(re.escape, HEADINGS))})\s*=\s*([\d,]+)")

BANK = re.compile(r"memory[ _-]?bank|\bbank\b|\bqueue\b|\bxbm\b", re.I)
BANK_WORD = re.compile(r"bank|queue|xbm|moco", re.I)
ON = re.compile(r"\b(?:enabled|activated|active|switched on|turned on|is on|now on|start(?:s|ed)|in use)\b", re.I)
NOT_ON = re.compile(
    r"\b(?:not|never|disabled|deactivated|inactive|off|will|until|warm(?:ing)?[ _-]?up|wait\w*|if|when|before|"
    r"enabled\W{0,4}(?:false|0\b)|active\W{0,4}(?:false|0\b))\b",
    re.I,
)
BANK_SIZE = re.compile(r"\b(?:size|rows|capacity|length)\W{0,3}(\d{1,9})\b", re.I)


BESIDE = re.compile(r".*\.(?:log|out|jsonl|csv|tsv)(?:\.\d{1,3})?|.*(?:log|train|output|stdout|stderr)[^/]*\.txt", re.I)
MAX_BESIDE = 64  # logs in one directory


def is_log(path: Path) -> bool:
    """True if `path` is text, whatever it is called."""
    return holds_text(path)


def logs(path: Path) -> list[Path]:
    """`path` itself where it is text, or the files in a directory that are called like logs and tables."""
    if not path.is_dir():
        return [path] if is_log(path) else []
    return [log for log in _inside(path) if isinstance(log, Path)]


def _inside(directory: Path) -> Iterator[Path | Unreadable]:
    """The logs in a directory, and why not those whose links lead out of it."""
    names = sorted(entry.name for entry in directory.iterdir() if entry.is_file() and BESIDE.fullmatch(entry.name))
    for name in names[:MAX_BESIDE]:
        try:
            yield inside(directory, name)
        except Unreadable as error:
            yield error


def beside(directory: Path) -> list[Run]:
    """What the logs and tables in a run directory say. Other text is left alone: a list of captions is a table too."""
    runs = []
    for log in _inside(directory):
        if isinstance(log, Unreadable):
            runs.append(Run(str(directory), problems=[str(log)]))
            continue
        with suppress(Unreadable):
            runs.append(read(log))
    return runs


def read(path: Path) -> Run:
    """The series, facts and events of a log or a table. Raises `Unreadable` if it has none."""
    if (document := tables.history(path, _head(path))) is not None:
        return document
    table = tables.recognise(_head(path))
    return lines.collect(path, table or understand).run


def explain(path: Path) -> Iterator[str]:
    """What is understood of a log or a table, line by line, and in all."""
    head = _head(path)
    if (document := tables.history(path, head)) is not None:
        yield from lines.summary(document)
    else:
        yield from lines.explain(path, tables.recognise(head) or understand)


def _head(path: str | os.PathLike[str]) -> str:
    return next(chunks(path), b"")[: tables.HEAD].decode("utf-8-sig", "replace")


def understand(skeleton: str, line: str) -> Reading:
    """What lines with this skeleton say; `line` is one of them."""
    if CUT_OFF in line:
        return Reading(facts={CUT_OFF: True}, stated=True)
    said = remarks.said(line)
    if said and not said.measures:
        return Reading(said=said, fixed=tuple(range(skeleton.count("0"))) if said.names else ())
    if "0" not in skeleton and not re.search(r"nan|inf", skeleton, re.I) and "=" not in line and ":" not in line:
        bank = BANK.search(line) and ON.search(line) and not NOT_ON.search(line)
        return Reading(bank_on=line.strip()[:200]) if bank else records.NOTHING
    if ARGUMENTS.search(line) or HEADING.search(line):
        return Reading(facts=_arguments(line), stated=True)
    tokens = _Tokens(skeleton, line)
    tokens.read()
    found = tuple(one.finished() for one in tokens.records if not one.empty)[: records.MAX_RECORDS]
    bank_on = line.strip()[:200] if BANK.search(line) and ON.search(line) and not NOT_ON.search(line) else ""
    facts = _arguments(line)
    if bank_on and (size := BANK_SIZE.search(line)):
        facts["memory_bank_size"] = int(size[1])
    return Reading(
        found,
        fixed=tuple(sorted(tokens.fixed)),
        bank_on=bank_on,
        facts=facts,
        stated=bool(bank_on),
        said=said,
        unfinished=skeleton.count("{") > skeleton.count("}"),
    )


def _arguments(line: str) -> dict[str, object]:
    facts = {match[1]: match[2] for match in ARGUMENT.finditer(line)}
    facts.update((match[1], match[2]) for match in OPTION.finditer(line))
    facts.update((HEADINGS[match[1]], match[2]) for match in HEADING.finditer(line))
    if BANK.search(line):  # "[Memory Bank] warmup: 50" is not the learning rate's
        facts = {key if BANK_WORD.search(key) else f"memory_bank_{key}": value for key, value in facts.items()}
    return records.plain(facts)


class _Tokens:
    """One line on its way through the tokenizer."""

    def __init__(self, skeleton: str, line: str) -> None:
        self._skeleton = ESCAPE.sub("\\1\x1b", skeleton)  # so that no letter of it stands before a number
        self._digits = re.findall(r"[0-9]+", line)
        self._run = 0  # runs of digits before the token at hand
        self._words: list[tuple[str, int]] = []  # each with the first run of digits in it
        self._part = False  # a ":" or "=" stood after the words
        self._minus = False
        self._bracket = False  # within brackets right after a value
        self._latest: str | None = None  # the value just read, which its mean may follow
        self._bar = False  # a progress bar was drawn just before
        self.records = [Record(heading="mean" if SUMMARY.search(skeleton) else "")]
        self.fixed: set[int] = set()

    def read(self) -> None:
        for token in TOKEN.finditer(self._skeleton):
            text, kind = token[0], token.lastgroup
            if token["number"]:
                self._number(token["number"], token["unit"])
            elif kind == "count":
                self._count(samples=SAMPLES.match(self._skeleton, token.end()) is not None)
            elif kind == "word":
                self._word(text)
            elif kind == "mark":
                self._mark(text)
            elif kind == "bar":
                self._bar = True
            elif kind != "escape":
                self._reset()
            self._run += text.count("0")

    @property
    def _record(self) -> Record:
        return self.records[-1]

    def _reset(self) -> None:
        self._words, self._part, self._minus, self._bracket, self._latest = [], False, False, False, None

    def _word(self, word: str) -> None:
        lower = word.lower()
        if lower in NOT_FINITE and self._bracket:
            return
        if lower in NOT_FINITE and self._words and (self._part or METRIC.search(self._words[-1][0])):
            constant = NOT_FINITE[lower]
            self._value(Number(constant=-constant if self._minus else constant), decimal=True)
            return
        if self._bracket and lower in MEANS:
            return
        if self._part:  # what stood before was a heading ("Test: loss 1.2") or had text for its value
            self._heading()
            self._reset()
        if re.fullmatch(r"(?:rank|default|local_rank|worker)_?0", lower):
            self._record.rank = Number((self._run,))
        self._latest, self._bracket = None, False
        self._words.append((word, self._run))

    def _heading(self) -> None:
        if HELD_OUT.search(" ".join(word for word, _ in self._words)):
            self._headed("eval")
        elif MEAN.search(" ".join(word for word, _ in self._words)):
            self._headed("mean")

    def _headed(self, heading: str) -> None:
        """From here on the line tells of something other than the training's current step."""
        if self._record.values:
            self.records.append(Record(rank=self._record.rank))
        self._record.heading = heading

    def _mark(self, mark: str) -> None:
        if mark in ":=：":
            self._part = bool(self._words)
        elif mark == "(":
            self._bracket = self._latest is not None
        elif mark == ")":
            self._bracket = False
        elif mark == "-" and (self._part or self._bracket):
            self._minus = True
        elif mark in "]|" and 0 < len(self._words) <= 2:
            self._heading()
            self._reset()
        elif mark not in "['\"`]%":
            self._reset()

    def _name(self) -> tuple[str, set[int]]:
        """The words before a number as a name, and the runs of digits in it."""
        name, runs = [], set()
        for word, run in self._words:
            if word.lower() in FILLERS:
                continue
            parts = word.split("0")
            own = range(run, run + len(parts) - 1)
            runs |= set(own)
            name.append(parts[0] + "".join(self._digits[one] + part for one, part in zip(own, parts[1:], strict=True)))
        return "_".join(name), runs

    def _count(self, samples: bool) -> None:
        """``n/total``: of epochs, of steps, or of whatever a progress bar with a name of its own counts."""
        name = self._name()[0].lower()
        count, total = Number((self._run,)), Number((self._run + 1,))
        record = self._record
        if EPOCH.fullmatch(name):
            record.epoch = record.epoch or count
        elif HELD_OUT.search(name):
            self._headed("eval")
        elif records.clock(name) is Clock.UPDATES:  # whatever epoch is named beside it
            self._step(count, Clock.UPDATES)
        elif record.step is None and (not name or COUNTED.fullmatch(name)):
            record.step, record.total, record.samples = count, total, samples
            record.clock = Clock.BAR if self._bar else Clock.COUNT
        self._bar = False
        self._reset()

    def _number(self, text: str, unit: str | None) -> None:
        number = parsed_number(text, self._run)
        if unit not in (None, "", "%"):
            self._reset()
        elif self._bracket and self._latest is not None:
            self._record.left_out[f"mean of {self._latest}"] = number
        elif self._words:
            self._value(number, decimal="." in text or "e" in text.lower())
        else:
            self._reset()

    def _value(self, number: Number, *, decimal: bool) -> None:
        (name, runs), explicit = self._name(), self._part
        prose = len(self._words) > PROSE
        self._reset()
        if not name or prose or name.lower() in LEVELS or SOURCE_FILE.search(name):
            return
        if RANK.fullmatch(name.lower()) and not decimal:
            self._record.rank = number
        elif EPOCH.fullmatch(name.lower()) and not NO_CLOCK.search(name.lower()):
            if HELD_OUT.search(name):
                self._headed("eval")
            elif decimal:
                self._record.share, self._record.clock = number, max(self._record.clock, Clock.SHARE)
            else:
                self._record.epoch = self._record.epoch or number
        elif (known := records.clock(name)) and not decimal:
            self._step(number, known)
        elif explicit or decimal or METRIC.search(name):
            if name in self._record.values:
                self.records.append(Record(heading=self._record.heading, rank=self._record.rank))
            self._record.values[name] = number
            self._latest = name
            self.fixed |= runs
        elif HELD_OUT.search(name):  # "Validation DataLoader 0:  50%|", which Lightning draws
            self._headed("eval")

    def _step(self, number: Number, known: Clock) -> None:
        record = self._record
        if record.step is not None and record.clock is known and record.values:
            record = Record(heading=record.heading, rank=record.rank)
            self.records.append(record)
        if record.step is None or known > record.clock:
            record.step, record.clock, record.total, record.samples = number, known, None, False
