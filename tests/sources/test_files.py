"""What is refused before it is read, and how that is said."""

from __future__ import annotations

import json
import math
import os
import socket
from pathlib import Path

import pytest

from fgclip_doctor.sources.files import Unreadable, inside, open_regular, read_json


def refused(path: Path) -> str:
    """The one line with which `path` is refused, less the path that it begins with."""
    with pytest.raises(Unreadable) as caught:
        read_json(path)
    line = str(caught.value)
    assert line.isprintable()
    assert line.startswith(f"{path}: ")
    return line.removeprefix(f"{path}: ")


def test_missing_file(tmp_path: Path) -> None:
    assert refused(tmp_path / "absent") == "does not exist"


def test_directory(tmp_path: Path) -> None:
    assert refused(tmp_path) == "is a directory, not a file"


@pytest.mark.timeout(10)  # opening a pipe that nobody writes to would wait for ever
def test_named_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert refused(tmp_path / "pipe") == "is a named pipe, not a file"


def test_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket may not be long
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        with pytest.raises(Unreadable, match=r"^socket: "), open_regular(Path("socket")):
            pass


def test_device() -> None:
    assert refused(Path(os.devnull)) == "is a device, not a file"


def test_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.json"
    path.write_text("{}")
    path.chmod(0)
    if os.access(path, os.R_OK):  # the superuser may read everything: let the system's answer stand in

        def deny(*args: object) -> int:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "open", deny)
    assert refused(path) == "may not be read (permission denied)"


def test_null_byte_and_terminal_escape_in_a_path() -> None:
    with pytest.raises(Unreadable) as caught:
        read_json("a\0b\x1b[31m\u202e\n")
    assert str(caught.value).startswith(r"a\x00b\x1b[31m\u202e\n: ")


def test_descriptor_is_closed_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("")
    with pytest.raises(Unreadable, match="went away"), open_regular(path) as descriptor:
        raise OSError(5, "went away")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_json_with_what_python_writes_for_floats(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text(json.dumps({"loss": math.nan, "high": math.inf, "low": -math.inf}))
    content = read_json(path)
    assert math.isnan(content["loss"])
    assert (content["high"], content["low"]) == (math.inf, -math.inf)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b'{"a": 1} x', "is not JSON"),
        (b'{"a": "\xff"}', "is not UTF-8 (byte 7)"),
        (b"[" * 100_000 + b"]" * 100_000, "is nested too deeply"),
        (b"[" + b"[]," * 3_000_000 + b"0]", "holds more than 4,000,000 JSON values"),
    ],
)
def test_what_is_not_json(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    assert refused(path).startswith(why)


def test_every_number_in_json_is_one_that_a_float_can_hold(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(f"[{2**64}, {'1' * 5000}, -{'1' * 400}]")
    assert read_json(path) == [2**64, math.inf, -math.inf]


def test_byte_order_mark_is_not_part_of_json(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b"\xef\xbb\xbf[1]")
    assert read_json(path) == [1]


def test_json_over_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.touch()
    os.truncate(path, 1 << 40)
    assert refused(path).startswith("is too large for JSON")


def test_inside_a_snapshot_of_the_hub(tmp_path: Path) -> None:
    snapshot, blobs, other = (tmp_path / name for name in ("snapshots/0a1b", "blobs", "other"))
    for folder in (snapshot, blobs, other):
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(b"x")
    (snapshot / "model.safetensors").symlink_to("../../blobs/file")
    (snapshot / "outside").symlink_to("../../other/file")
    (other / "model.safetensors").symlink_to("../blobs/file")
    assert inside(snapshot, "model.safetensors") == snapshot / "model.safetensors"
    for directory, name in ((snapshot, "outside"), (other, "model.safetensors")):
        with pytest.raises(Unreadable, match="points outside"):
            inside(directory, name)
    blobs.rename(tmp_path / "moved")
    blobs.symlink_to(tmp_path / "moved")
    with pytest.raises(Unreadable, match="points outside"):
        inside(snapshot, "model.safetensors")


def test_inside(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / "link").symlink_to(tmp_path / "outside")
    (directory / "loop").symlink_to(directory / "loop")
    (directory / "near").symlink_to(directory / "model.safetensors")
    assert inside(directory, "a/b.safetensors") == directory / "a/b.safetensors"
    assert inside(directory, "near") == directory / "near"
    for name in ("../outside/x", "link/x", str(tmp_path / "outside"), "a/../../outside", "nul\0l", "loop/x"):
        with pytest.raises(Unreadable, match=f"^{directory}: "):
            inside(directory, name)
