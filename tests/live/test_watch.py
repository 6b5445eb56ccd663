"""`fgclip-doctor watch`: the exit codes, signals and streams of a command, and paths that grow, turn and vanish."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from fgclip_doctor.diagnosis import diagnose
from fgclip_doctor.live import watch
from fgclip_doctor.live.follow import Follower
from fgclip_doctor.sources import recording
from fgclip_doctor.sources.files import Unreadable
from fgclip_doctor.sources.following import Following
from tests.live.test_recorder import train

WATCH = [sys.executable, "-m", "fgclip_doctor", "watch", "--interval", "0.2"]
PLAIN = [sys.executable, str(Path(__file__).parent / "programs" / "plain.py")]


def start(words: list[str], directory: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([*WATCH, *words], cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_commands_exit_code_output_and_input_are_its_own(tmp_path: Path) -> None:
    program = "import sys; print(sys.stdin.read().upper()); sys.exit(7)"
    watched = subprocess.Popen(
        [*WATCH, "--", sys.executable, "-c", program],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    output, said = watched.communicate("from the terminal")
    assert (output, watched.returncode) == ("FROM THE TERMINAL\n", 7)
    assert said.startswith("fgclip-doctor: nothing could be read of ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_reaches_the_command(number: signal.Signals, tmp_path: Path) -> None:
    program = (
        "import signal, sys, time\n"
        f"signal.signal({int(number)}, lambda *_: sys.exit(5))\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)"
    )
    watched = start(["--", sys.executable, "-c", program], tmp_path)
    assert watched.stdout is not None
    assert watched.stdout.readline() == "ready\n"
    watched.send_signal(number)
    watched.communicate(timeout=100)
    assert watched.returncode == 5


def test_ctrl_c_of_the_terminal_ends_the_command_and_says_what_was_seen(tmp_path: Path) -> None:
    watched = subprocess.Popen(
        [*WATCH, "--record", "seen", "--", *PLAIN, "--updates", "100000"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    _until(lambda: _kinds(tmp_path / "seen").count("step") > 3)
    os.killpg(watched.pid, signal.SIGINT)  # as a terminal does: the whole group
    _, said = watched.communicate(timeout=100)
    assert watched.returncode == 130
    assert "checks passed" in said
    assert _kinds(tmp_path / "seen")[-1] == "end"


def test_ctrl_c_of_a_path_leaves_a_summary(tmp_path: Path) -> None:
    train(tmp_path / "seen", steps=8)
    with (tmp_path / "seen" / "rank-0.000.jsonl").open("a") as file:
        file.write('{"kind":"start","version":1,"world_size":1}\n')  # it goes on
    watched = start(["seen"], tmp_path)
    time.sleep(3)
    watched.send_signal(signal.SIGINT)
    _, said = watched.communicate(timeout=100)
    assert watched.returncode == 130
    assert "checks passed" in said


@pytest.mark.parametrize("at_once", [True, False])
def test_a_run_is_ended_for_what_was_found(at_once: bool, tmp_path: Path) -> None:
    words = ["--stop-on", "error", *(["--stop-now"] if at_once else []), "--record", "seen"]
    save = [] if at_once else ["--save-every", "5"]
    watched = start([*words, "--", *PLAIN, "--fault", "detached", "--updates", "100000", *save], tmp_path)
    _, said = watched.communicate(timeout=90)
    assert watched.returncode == 1
    assert "FGD103" in said
    assert (tmp_path / "saved.pt").exists() == (not at_once)


def test_a_run_that_saves_nothing_is_not_ended_before_it_does(tmp_path: Path) -> None:
    words = ["--stop-on", "error", "--record", "seen", "--", *PLAIN, "--fault", "detached", "--updates", "300"]
    watched = start(words, tmp_path)
    watched.communicate(timeout=100)
    assert watched.returncode == 0


def test_a_path_is_looked_at_once(tmp_path: Path) -> None:
    train(tmp_path / "seen", steps=8)
    done = subprocess.run(
        [*WATCH, "--once", "seen"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0
    assert "checks passed" in done.stderr
    missing = subprocess.run(
        [*WATCH, "--once", "no"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=100
    )
    assert missing.returncode == 2
    assert len(missing.stderr.splitlines()) == 2
    assert "no: " in missing.stderr


def test_what_is_known_of_each_loss_is_written_for_tensorboard(tmp_path: Path) -> None:
    from fgclip_doctor.sources import tensorboard_events

    train(tmp_path / "seen", steps=8)
    command = [*WATCH, "--once", "--tensorboard", "board", "seen"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True, timeout=100)
    series = tensorboard_events.read(tmp_path / "board").series
    bits = [one for name, one in series.items() if name.startswith("doctor/bits/")]
    assert [len(one.values) for one in bits] == [7, 7]
    assert all(one.startswith(("doctor/bits/", "doctor/null/", "doctor/candidates/")) for one in series)


def log_line(step: int) -> str:
    return json.dumps({"step": step, "loss": 2.0, "learning_rate": 1e-4}) + "\n"


def test_a_log_is_followed_through_growth_rotation_and_truncation(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    following = Following([log], base=None, facts={}, roles={})

    def steps() -> list[int] | None:
        run = following.poll()
        return None if run is None else run.series["loss"].steps.tolist()

    assert steps() is None  # nothing is there yet
    assert following.problem.startswith(str(log))
    log.write_text("".join(map(log_line, range(1, 6))))
    assert steps() == [1, 2, 3, 4, 5]
    assert steps() is None
    with log.open("a") as file:
        file.write(log_line(6) + '{"step": 7, "lo')
    assert steps() == [1, 2, 3, 4, 5, 6]
    log.rename(tmp_path / "log.jsonl.1")
    log.write_text("".join(map(log_line, range(7, 12))))
    assert steps() == [7, 8, 9, 10, 11]
    log.write_text("".join(map(log_line, range(1, 4))))
    assert steps() == [1, 2, 3]


def test_event_files_are_followed_as_they_appear_and_grow(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    following = Following([tmp_path], base=None, facts={}, roles={})

    def steps() -> list[int] | None:
        run = following.poll()
        return None if run is None else run.series["train/loss"].steps.tolist()

    assert steps() is None  # nothing is there yet
    seen, first = [], SummaryWriter(str(tmp_path))
    for part in (range(3), range(3, 5), range(5, 8)):
        writer = SummaryWriter(str(tmp_path), filename_suffix=".2") if part.start == 5 else first  # a restarted process
        for step in part:
            writer.add_scalar("train/loss", 2.0, step)
        writer.flush()
        seen.append(steps())
    assert seen == [[0, 1, 2], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6, 7]]


def test_checkpoints_are_read_as_they_appear(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    following = Following([tmp_path], base=None, facts={}, roles={})
    seen = []
    for step in (5, 10):
        checkpoint = tmp_path / f"checkpoint-{step}"
        checkpoint.mkdir()
        save_file({"logit_scale": torch.tensor(2.0 + step / 10)}, checkpoint / "model.safetensors")
        state = {"global_step": step, "log_history": [{"step": one, "loss": 2.0} for one in range(1, step + 1)]}
        (checkpoint / "trainer_state.json").write_text(json.dumps(state))
        run = following.poll()
        assert run is not None
        seen.append((run.step, len(run.series["loss"].values), len(run.checkpoints)))
    assert seen == [(5, 5, 1), (10, 10, 2)]
    assert following.poll() is None


def test_a_line_a_minute_says_that_it_is_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text("".join(map(log_line, range(1, 6))))
    following = Following([log], base=None, facts={}, roles={})
    watcher = watch.Watcher(Follower(following.poll, lambda run: diagnose(run, [])), watch.Options(), subject="it")
    times = iter([10.0, 59.0, 61.0, 62.0, 130.0])
    monkeypatch.setattr(watch.time, "monotonic", lambda: now)
    watcher.beat = 0.0
    said = []
    for now in times:  # noqa: B007 - the clock reads it
        watcher.look()
        said.append(capsys.readouterr().err)
    line = "fgclip-doctor: step 5, 0 findings\n"
    assert said == ["", "", line, "", line]


def test_a_recording_is_read_on_and_anew_after_a_restart(tmp_path: Path) -> None:
    following = Following([tmp_path / "seen"], base=None, facts={}, roles={})
    train(tmp_path / "seen", steps=5)
    first = following.poll()
    train(tmp_path / "seen", steps=8)
    second = following.poll()
    assert first is not None
    assert second is not None
    assert [run.watched.step for run in (first, second)] == [5, 8]
    assert sorted(one.name for one in (tmp_path / "seen").iterdir()) == ["rank-0.000.jsonl", "rank-0.001.jsonl"]


def test_a_recording_goes_on_in_the_next_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fgclip_doctor.live import journal

    whole = recording_of(tmp_path / "whole")
    monkeypatch.setattr(journal.Journal.__init__, "__kwdefaults__", {"max_bytes": 4000})
    parts = recording_of(tmp_path / "parts")
    assert len(list((tmp_path / "parts").iterdir())) > 3
    assert [site.loss.tolist() for site in parts.watched.first.sites] == [
        site.loss.tolist() for site in whole.watched.first.sites
    ]


def recording_of(directory: Path) -> recording.Run:
    train(directory, steps=6)
    return recording.read(directory)


HOSTILE = [
    b"",
    b"{",
    b"null\n",
    b"[]\n",
    b'{"kind":"run"}\n',
    b'{"kind":"__init__","path":"x"}\n',
    b'{"kind":"model","parameters":[["a",[-1],"f",true,0]],"buffers":[],"groups":[]}\n',
    b'{"kind":"model","parameters":7,"buffers":[],"groups":[]}\n',
    b'{"kind":"loss","site":1e400,"name":"x"}\n',
    b'{"kind":"step","step":' + b"9" * 5000 + b',"lr":[],"evaluating":{},"gathers":[]}\n',
    b'{"kind":"rows","step":1,"name":"a","shape":[1000000000,1000000000],"dtype":"f","data":""}\n',
    b"[" * 100_000 + b"\n",
    b"\x00\xff\xfe\n",
]


@pytest.mark.parametrize("line", HOSTILE, ids=range(len(HOSTILE)))
def test_a_record_that_makes_no_sense_costs_itself(line: bytes, tmp_path: Path) -> None:
    train(tmp_path / "seen", steps=3)
    file = tmp_path / "seen" / "rank-0.000.jsonl"
    sound = recording.read(tmp_path / "seen").watched
    whole = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*whole[:2], line, *whole[2:]]))
    run = recording.read(tmp_path / "seen")
    assert run.watched.first.clocks["forwards"] == sound.first.clocks["forwards"]
    assert len(run.problems) <= 1
    file.write_bytes(b"".join(whole[:1]) + line)
    with pytest.raises(Unreadable, match="no recording of a run"):
        recording.read(tmp_path / "seen")


def test_a_recording_cut_or_garbled_anywhere_is_read_or_refused(tmp_path: Path) -> None:
    import random

    train(tmp_path / "seen", steps=3)
    file = tmp_path / "seen" / "rank-0.000.jsonl"
    whole, draw = file.read_bytes(), random.Random(0)
    for _ in range(150):
        data = bytearray(whole[: draw.randrange(len(whole))] if draw.random() < 0.3 else whole)
        for _ in range(draw.randrange(1, 20)):
            if data:
                data[draw.randrange(len(data))] = draw.randrange(256)
        file.write_bytes(bytes(data))
        with suppress(Unreadable):
            assert len(recording.read(tmp_path / "seen").problems) <= 2


def _kinds(directory: Path) -> list[str]:
    file = directory / "rank-0.000.jsonl"
    return [json.loads(line)["kind"] for line in file.read_text().splitlines()] if file.exists() else []


def _until(true: object) -> None:
    end = time.monotonic() + 60
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.05)
