"""Every file that is understood, cut and with flipped bits: clear lines, what was whole before the cut, no traceback.

A sample of the places is taken; with ``FGCLIP_DOCTOR_TORN=full`` every byte of files up to 3,000 bytes, and 2,000
places of longer ones.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fgclip_doctor.run import Run
from fgclip_doctor.sources.files import Unreadable
from tests.safety.artefacts import FORMATS, write
from tests.safety.audited import audited

FULL = os.environ.get("FGCLIP_DOCTOR_TORN") == "full"
SMALL = 3_000  # bytes
PLACES = 2_000 if FULL else 24  # of a file
FILES = 100 if FULL else 6  # of an artefact
MERGED = ("W&B",)  # formats whose series lie in several files
GROWS = ("TensorBoard", "CSV", "JSON lines")  # formats of one record after the other


def places(path: Path) -> list[int]:
    """Lengths to cut `path` at, or bytes to change: ascending, the ends among them."""
    size = path.stat().st_size
    if FULL and size <= SMALL:
        return list(range(size))
    chosen = random.Random(path.name).sample(range(size), min(PLACES, size))
    return sorted({*chosen, 0, 1, size // 2, size - 1} & set(range(size)))


def some(paths: list[Path]) -> list[Path]:
    """The files of an artefact that are damaged in turn."""
    return random.Random(0).sample(paths, min(FILES, len(paths)))


def damaged(path: Path, contents: Iterator[bytes]) -> Iterator[Run | None]:
    """What is read of the folder of an artefact while `path` in it has each of `contents`; None for one clear line."""
    folder, whole = path, path.read_bytes()
    while folder.name != "run":
        folder = folder.parent
    for content in contents:
        path.write_bytes(content)
        try:
            run, report = audited(folder)
        except Unreadable as error:
            assert_clear([str(error)], folder)
            yield None
        else:
            assert_clear(report.problems, folder)
            yield run
    path.write_bytes(whole)


def assert_clear(lines: list[str] | tuple[str, ...], folder: Path) -> None:
    """Each is one line that begins with the path of what it is about."""
    for line in lines:
        where, _, why = line.partition(": ")
        assert where.startswith(str(folder))
        assert why
        assert "\n" not in line
        assert "Traceback" not in line


@pytest.mark.timeout(3600 if FULL else 120)
@pytest.mark.parametrize("name", FORMATS)
def test_cut_anywhere(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "run"
    for path in some(write(name, folder)):
        data, (whole, _) = path.read_bytes(), audited(folder)
        count = 0
        for run in damaged(path, (data[:length] for length in places(path))):
            if run is not None:
                if name not in MERGED:
                    assert_rest_is_whole(run, whole, path)
                count = assert_goes_on(run, count) if name in GROWS else 0


def assert_rest_is_whole(run: Run, whole: Run, path: Path) -> None:
    """What other files say is as it was; a series of the file that was cut is the beginning of what it was."""
    for name, series in whole.series.items():
        if not path.is_relative_to(series.source.path):
            assert np.array_equal(run.series[name].values, series.values, equal_nan=True)
        elif name in run.series and series.source.path == str(path):
            kept = run.series[name].values[:-1]  # a number that was cut is still one
            assert np.array_equal(kept, series.values[: len(kept)], equal_nan=True), name
    if whole.checkpoints and run.checkpoints:
        now = run.checkpoints[-1].tensors
        for tensor in whole.checkpoints[-1].tensors.values():
            if tensor.source.path not in (str(path), str(path.parent)) and tensor.name in now:
                assert now[tensor.name].digest == tensor.digest


def assert_goes_on(run: Run, before: int) -> int:
    """The longer the part that is there, the more is read of it. Returns how much."""
    count = sum(len(series.values) for series in run.series.values())
    assert count >= before
    return count


@pytest.mark.timeout(3600 if FULL else 120)
@pytest.mark.parametrize("name", FORMATS)
def test_flipped_bits(tmp_path: Path, name: str) -> None:
    for path in some(write(name, tmp_path / "run")):
        data, chance = path.read_bytes(), random.Random(name)
        flips = (data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :] for at in places(path))
        for _ in damaged(path, flips):
            pass


@pytest.mark.timeout(3600 if FULL else 120)
@pytest.mark.parametrize("name", FORMATS)
def test_stretches_of_zeros_and_of_other_files(tmp_path: Path, name: str) -> None:
    """As a full disk, a crash of the machine or a mixed-up download leaves them."""
    paths = write(name, tmp_path / "run")
    other = paths[-1].read_bytes()
    for path in some(paths):
        data = path.read_bytes()
        middles = [(at, min(at + 1 + at % 97, len(data))) for at in places(path)[::4]]
        spoilt = (
            data[:start] + fill[: end - start] + data[end:] for start, end in middles for fill in (bytes(97), other)
        )
        for _ in damaged(path, spoilt):
            pass


def test_a_piece_that_is_gone_costs_no_more_than_itself(tmp_path: Path) -> None:
    for name in FORMATS:
        folder = tmp_path / name.replace(" ", "-") / "run"
        for path in some(write(name, folder)):
            content = path.read_bytes()
            path.unlink()
            try:
                assert_clear(audited(folder)[1].problems, folder)
            except Unreadable as error:
                assert_clear([str(error)], folder)
            path.write_bytes(content)
        shutil.rmtree(folder)
