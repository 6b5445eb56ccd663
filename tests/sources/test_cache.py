"""The cache changes no result, knows a changed file from an unchanged one, and is never in the way."""

from __future__ import annotations

import json
import os
import pickle
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save_file
from typer.testing import CliRunner

import fgclip_doctor
import fgclip_doctor_checks
from fgclip_doctor.cli import app
from fgclip_doctor.provenance import Randomness, randomness_of
from fgclip_doctor.run import Source, Statistics
from fgclip_doctor.sources import cache, measure, safetensors_file
from fgclip_doctor.sources.pieces import in_a_row
from tests.test_architecture import imports

ROWS, COLUMNS = 4000, 80  # of float32: over `cache.WORTH_BYTES`
Seen = tuple[Statistics, str, Randomness | None]


def matrix(seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(ROWS, COLUMNS)).astype(np.float32)


def write(path: Path, values: NDArray[np.float32]) -> Path:
    save_file({"visual.weight": values}, path)
    return path


def look(path: Path, directory: Path | None) -> Seen:
    """All that is kept of a tensor, as an audit with the cache in `directory` gets it."""
    with cache.kept_in(directory):
        tensor = safetensors_file.read(path)["visual.weight"]
        return tensor.statistics, tensor.digest, randomness_of(tensor)


def entries(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else []


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write(tmp_path / "model.safetensors", matrix())


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps what was written just now."""
    monkeypatch.setattr(cache, "SETTLED_NS", -1 << 60)


@pytest.fixture
def kept(tmp_path: Path, weights: Path, at_once: None) -> Path:
    """A cache that knows the weights."""
    look(weights, tmp_path / "cache")
    return tmp_path / "cache"


def test_what_is_kept_is_not_read_again(weights: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = look(weights, None)

    def unread(*_: object) -> None:
        raise AssertionError("the tensor was read")

    monkeypatch.setattr(measure, "_fill", unread)
    assert look(weights, kept) == fresh
    with pytest.raises(AssertionError, match="was read"):
        look(weights, None)


def test_numbers_of_all_kinds_come_back_as_they_were(tmp_path: Path, at_once: None) -> None:
    values = matrix()
    values[0, :4] = np.nan, np.inf, -np.inf, -0.0
    for path in (write(tmp_path / "a", values), write(tmp_path / "b", np.full_like(values, 3e38))):
        fresh, cold, warm = (look(path, directory) for directory in (None, tmp_path / "cache", tmp_path / "cache"))
        assert repr(fresh) == repr(cold) == repr(warm)  # NaN is no NaN's equal


def test_a_tensor_in_several_files_is_known_by_all_of_them(tmp_path: Path, at_once: None) -> None:
    paths = [write(tmp_path / name, matrix(seed)) for seed, name in enumerate(("rank0", "rank1"))]

    def joined(directory: Path | None) -> tuple[Statistics, str]:
        with cache.kept_in(directory):
            stored = [safetensors_file.read(path)["visual.weight"] for path in paths]
            parts = [one.stored.cut(0, one.size) for one in stored if isinstance(one, measure.StoredTensor)]
            tensor = in_a_row("flat", (2 * ROWS * COLUMNS,), Source(str(tmp_path)), parts)
            return tensor.statistics, tensor.digest

    first = joined(tmp_path / "cache")
    assert joined(tmp_path / "cache") == first == joined(None)
    write(paths[1], matrix(5))
    assert joined(tmp_path / "cache") == joined(None) != first


# Changed files --------------------------------------------------------------------------------------------------------


def in_place(path: Path) -> None:
    """One byte far from all sampled pages."""
    with path.open("r+b") as file:
        file.seek(600_001)
        file.write(b"\x3f")


def replaced(path: Path) -> None:
    write(path.with_suffix(".new"), matrix(1)).replace(path)


@pytest.mark.parametrize("change", [in_place, replaced])
@pytest.mark.parametrize("times", ["as they come", "set back"])
def test_a_changed_file_of_the_same_size_is_measured_again(
    change: Callable[[Path], None], times: str, weights: Path, kept: Path
) -> None:
    before = weights.stat()
    known = look(weights, kept)
    while True:  # until the file system's clock has moved on
        change(weights)
        if times == "set back":  # as rsync and cp -p do
            os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
        if weights.stat().st_ctime_ns != before.st_ctime_ns:
            break
    assert look(weights, kept) == look(weights, None) != known


@pytest.mark.parametrize("place", [0, 0.3, 0.5, 0.8, 1])
def test_pages_tell_files_apart_whose_times_are_the_same(
    place: float, weights: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network file system whose clock stands still, and another training that wrote as many bytes."""
    monkeypatch.setattr(cache, "_stamp", lambda path: (path.stat().st_size, 1, 2, 3))
    known = look(weights, kept)
    content = bytearray(weights.read_bytes())
    begin = int(place * (len(content) - 60_000))
    content[begin + 2_000 : begin + 60_000] = bytes(58_000)
    weights.write_bytes(content)
    assert look(weights, kept) == look(weights, None) != known


def test_a_moved_file_is_never_taken_for_the_one_that_was_there(weights: Path, kept: Path) -> None:
    other = write(weights.with_name("other.safetensors"), matrix(2))
    fresh = look(other, None)
    weights.rename(weights.with_name("away"))
    other.rename(weights)
    assert look(weights, kept) == fresh


def test_what_was_written_just_now_is_not_kept(tmp_path: Path, weights: Path) -> None:
    look(weights, tmp_path / "cache")
    assert entries(tmp_path / "cache") == []


def test_what_changes_while_it_is_measured_is_not_kept(
    tmp_path: Path, weights: Path, at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = measure._chunks

    def growing(stored: measure.Stored) -> object:
        yield from chunks(stored)
        os.utime(weights, ns=(1, 1))

    monkeypatch.setattr(measure, "_chunks", growing)
    with cache.kept_in(tmp_path / "cache"):
        assert safetensors_file.read(weights)["visual.weight"].statistics.count == ROWS * COLUMNS
    assert entries(tmp_path / "cache") == []


def test_other_code_measures_again(weights: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_version", lambda: "another")
    look(weights, kept)
    assert len(entries(kept)) == 2


# Damaged entries ------------------------------------------------------------------------------------------------------


def sealed(path: Path, body: bytes) -> bytes:
    return cache._seal(path.stem, body) + b"\n" + body


def every_value(path: Path, value: object) -> bytes:
    entry = json.loads(path.read_bytes().partition(b"\n")[2])
    return sealed(path, json.dumps(dict.fromkeys(entry, value)).encode())


DAMAGES: dict[str, Callable[[Path], bytes]] = {
    "empty": lambda path: b"",
    "zeros": lambda path: bytes(path.stat().st_size),
    "torn": lambda path: path.read_bytes()[:-9],
    "longer": lambda path: path.read_bytes() + b" ",
    "of another file": lambda path: cache._seal("0" * 64, b"{}") + b"\n{}",
    "a pickle": lambda path: pickle.dumps(print),
    "not JSON": lambda path: sealed(path, b"{"),
    "nested deeply": lambda path: sealed(path, b"[" * 100_000),
    "not an object": lambda path: sealed(path, b"[1, 2]"),
    "texts": lambda path: every_value(path, "x"),
    "a number": lambda path: every_value(path, 1),
    "too few numbers": lambda path: every_value(path, [1]),
    "other numbers": lambda path: every_value(path, [1.5] * len(fields(Statistics))),
    "objects": lambda path: every_value(path, {"count": 1}),
    "nothing": lambda path: every_value(path, None),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_entry_is_measured_and_written_again(
    damage: Callable[[Path], bytes], weights: Path, kept: Path
) -> None:
    fresh = look(weights, None)
    (path,) = entries(kept)
    good = path.read_bytes()
    path.write_bytes(damage(path))
    assert look(weights, kept) == fresh
    assert entries(kept) == [path]
    assert path.read_bytes() == good


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_flipped_bit_changes_a_result(weights: Path, kept: Path, data: st.DataObject) -> None:
    (path,) = entries(kept)
    good = bytearray(path.read_bytes())
    bit = data.draw(st.integers(0, 8 * len(good) - 1))
    good[bit // 8] ^= 1 << bit % 8
    path.write_bytes(good)
    assert look(weights, kept) == look(weights, None)


def test_what_stands_in_place_of_an_entry_is_neither_waited_for_nor_followed(weights: Path, kept: Path) -> None:
    fresh = look(weights, None)
    (path,) = entries(kept)
    outside = weights.with_name("outside")
    outside.write_bytes(b"mine")
    for put in (os.mkfifo, lambda place: place.symlink_to(outside), Path.mkdir):
        path.unlink()
        put(path)
        assert look(weights, kept) == fresh
        if put is not Path.mkdir:
            assert stat.S_ISREG(path.lstat().st_mode)
    assert outside.read_bytes() == b"mine"


# The directory --------------------------------------------------------------------------------------------------------


def test_only_the_user_may_look_into_it(kept: Path) -> None:
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in entries(kept)] == [0o600]


def test_one_that_others_may_write_to_is_not_used(weights: Path, kept: Path) -> None:
    (path,) = entries(kept)
    path.unlink()
    kept.chmod(0o777)
    assert look(weights, kept) == look(weights, None)
    assert entries(kept) == []


def test_one_of_another_user_is_not_used(weights: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries(kept)[0].unlink()
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    look(weights, kept)
    assert entries(kept) == []


def test_one_that_can_not_be_written_is_done_without(
    tmp_path: Path, weights: Path, at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = look(weights, None)
    assert look(weights, weights / "in a file") == fresh
    assert look(weights, Path("/proc/nowhere")) == fresh
    assert look(weights, tmp_path / ("long" * 100)) == fresh

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkstemp", full)
    assert look(weights, tmp_path / "cache") == fresh
    assert entries(tmp_path / "cache") == []


def test_it_may_be_deleted_at_any_time(weights: Path, kept: Path) -> None:
    fresh = look(weights, None)
    with cache.kept_in(kept):
        tensor = safetensors_file.read(weights)["visual.weight"]
        assert tensor.statistics == fresh[0]
        for path in entries(kept):
            path.unlink()
        kept.rmdir()
        assert tensor.digest == fresh[1]
    assert look(weights, kept) == fresh


def test_the_oldest_entries_go_first_and_nothing_else(
    tmp_path: Path, at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "cache"
    monkeypatch.setattr(cache, "TOTAL_LIMIT", 3 * cache.BLOCK_BYTES)
    directory.mkdir(mode=0o700)
    (directory / "notes.json").write_text("mine" * 10_000)
    os.utime(directory / "notes.json", (0, 0))
    paths = [write(tmp_path / str(seed), matrix(seed)) for seed in range(5)]
    first: list[Path] = []
    for age, path in enumerate(paths):
        before = set(entries(directory))
        if age == 3:
            look(paths[0], directory)  # in use: younger than those after it
        look(path, directory)
        (new,) = set(entries(directory)) - before
        first.append(new)
        os.utime(new, (1000 + age, 1000 + age))
    assert first[0] in entries(directory)
    assert set(entries(directory)) == {first[0], *first[3:], directory / "notes.json"}


def test_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FGCLIP_DOCTOR_CACHE", str(tmp_path))
    assert cache.place() == cache.place("configured") == cache.place(False) == tmp_path
    monkeypatch.setenv("FGCLIP_DOCTOR_CACHE", "")
    assert cache.place() is None
    monkeypatch.delenv("FGCLIP_DOCTOR_CACHE")
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache.place() == Path("/home/someone/.cache/fgclip-doctor")
    assert cache.place("~/fast") == Path("/home/someone/fast")
    assert cache.place(False) is None
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache.place() == Path("/home/someone/.cache/fgclip-doctor")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/someone")
    assert cache.place() == Path("/var/cache/someone/fgclip-doctor")


# The command ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two checkpoints with an optimizer."""
    for step in (10, 20):
        directory = tmp_path / "run" / f"checkpoint-{step}"
        directory.mkdir(parents=True)
        tensors = {"visual_projection.weight": torch.from_numpy(matrix(step)), "logit_scale": torch.tensor(5.0)}
        save_file({name: tensor.numpy() for name, tensor in tensors.items()}, directory / "model.safetensors")
        state = {
            index: {"step": torch.tensor(float(step)), "exp_avg": one / 9, "exp_avg_sq": one.square()}
            for index, one in enumerate(tensors.values())
        }
        groups = [{"lr": 1e-3, "weight_decay": 0.1, "params": [0, 1], "param_names": list(tensors)}]
        torch.save({"state": state, "param_groups": groups}, directory / "optimizer.pt")
    return tmp_path / "run"


def audit(*arguments: object) -> bytes:
    result = CliRunner().invoke(app, ["audit", *map(str, arguments), "--format", "json"])
    assert result.exit_code == 0, result.output
    return result.stdout_bytes


def test_reports_are_the_same_without_before_and_with_it(
    run: Path, at_once: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FGCLIP_DOCTOR_CACHE", str(tmp_path / "cache"))
    before = sorted(run.rglob("*"))
    without = audit(run, "--no-cache")
    assert not (tmp_path / "cache").exists()
    assert audit(run) == without
    made = entries(tmp_path / "cache")
    assert len(made) >= 3
    assert audit(run) == without
    assert entries(tmp_path / "cache") == made
    assert sorted(run.rglob("*")) == before


def test_the_configuration_says_where_or_that_there_is_none(
    run: Path, at_once: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FGCLIP_DOCTOR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "usual"))
    file = tmp_path / "settings.toml"
    file.write_text("cache = false")
    audit(run, "--config", file)
    file.write_text(f"cache = {json.dumps(str(tmp_path / 'here'))}")
    audit(run, "--config", file)
    assert entries(tmp_path / "here")
    assert not (tmp_path / "usual").exists()
    file.write_text("cache = 3")
    result = CliRunner().invoke(app, ["audit", str(run), "--config", str(file)])
    assert result.exit_code == 2
    assert "cache must be a directory, or false for none" in result.stderr


def test_audits_at_the_same_time_share_it(run: Path, tmp_path: Path) -> None:
    program = """
import sys
from fgclip_doctor.cli import app
from fgclip_doctor.sources import cache
cache.SETTLED_NS = -1 << 60
app(sys.argv[1:])
"""
    command = [sys.executable, "-c", program, "audit", str(run), "--format", "json"]
    environment = os.environ | {"FGCLIP_DOCTOR_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    several = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) for _ in range(3)
    ]
    outputs = [process.communicate() for process in several]
    assert outputs == [(audit(run, "--no-cache"), b"")] * 3
    assert all(path.suffix == ".json" for path in entries(tmp_path / "cache"))


# What it relies on ----------------------------------------------------------------------------------------------------


def test_the_version_covers_all_code_whose_results_are_kept() -> None:
    package = Path(fgclip_doctor.__file__).parent
    covered = {package / name for name in cache.MEASURING}
    modules = {path.relative_to(package.parent).with_suffix("").as_posix().replace("/", ".") for path in covered}
    used = {name for name in imports(package / "sources/measure.py") if name.startswith("fgclip_doctor.sources.")}
    rest = {name for name in used if not any(f"{name}.".startswith(f"{module}.") for module in modules)}
    assert {name.split(".")[2] for name in rest} == {"files"}
    for file in [*package.rglob("*.py"), *Path(fgclip_doctor_checks.__file__).parent.rglob("*.py")]:
        text = file.read_text("utf-8")
        assert file in covered or not (".remembered(" in text or "@kept(" in text or "recalled(" in text), file


def test_every_part_of_a_place_counts() -> None:
    assert {*cache.PLACE, "path", "file_size"} == {one.name for one in fields(measure.Stored)}


def test_a_small_file_is_not_worth_an_entry(tmp_path: Path, at_once: None) -> None:
    path = write(tmp_path / "small", matrix()[:8])
    look(path, tmp_path / "cache")
    assert entries(tmp_path / "cache") == []


def test_what_was_measured_is_kept_when_the_audit_is_interrupted(tmp_path: Path, weights: Path, at_once: None) -> None:
    with suppress(KeyboardInterrupt), cache.kept_in(tmp_path / "cache"):
        assert safetensors_file.read(weights)["visual.weight"].digest
        raise KeyboardInterrupt
    assert len(entries(tmp_path / "cache")) == 1
