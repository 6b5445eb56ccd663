"""Commands, exit codes and one-line errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from fgclip_doctor import __version__
from fgclip_doctor.cli import app
from fgclip_doctor.registry import installed_checks
from tests.test_architecture import loaded

LN_100 = float(np.log(100))


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint with one fault: a scale over its cap."""
    save_file({"logit_scale": np.array(LN_100 + 1, np.float32)}, tmp_path / "model.safetensors")
    return tmp_path


def test_version_and_help() -> None:
    assert run("--version")[1].strip() == f"fgclip-doctor {__version__}"
    code, out, _ = run("audit", "--help")
    assert code == 0
    assert "Examples:" in out


def test_rules_and_explain_speak_from_the_docstrings() -> None:
    code, out, _ = run("rules", "--select", "FGD301")
    assert code == 0
    assert out.startswith("FGD301  logit-scale-above-cap  ")
    for name in ("FGD301", "fgd301", "logit-scale-above-cap"):
        code, out, _ = run("explain", name)
        assert code == 0
        assert "What looks like it and is no fault" in out
        assert "cap = 4.6" in out
    assert run("explain", "FGD999")[0] == 2


def test_exit_codes_follow_fail_on(checkpoint: Path) -> None:
    severity = json.loads(run("audit", str(checkpoint), "--format", "json", "--select", "FGD301")[1])["findings"][0][
        "severity"
    ]
    arguments = ("audit", str(checkpoint), "--select", "FGD301", "--fail-on")
    assert run(*arguments, severity)[0] == 1
    assert run(*arguments, "never")[0] == 0
    code, _, err = run(*arguments, "fatal")
    assert code == 2
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["audit"], "Missing argument 'PATH...'. See fgclip-doctor audit --help."),
        (["audit", ""], "an empty word is given"),  # and no audit of this directory
        (["gate", ".", "--base", ""], "an empty word is given"),
        (["gate", "--nope"], "No such option: --nope"),
        (["gate", "--steps", "0", "--", "true", ""], "Invalid value for '--steps'"),
        (["audit", ".", "--format", "pdf"], "'pdf' is not one of 'text', 'json'"),
        (["diagnose"], "No such command 'diagnose'. See fgclip-doctor --help."),
        (["--nope"], "No such option: --nope"),
    ],
)
def test_words_that_make_no_sense_are_one_line(arguments: list[str], said: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("fgclip-doctor: ")
    assert said in err


def test_select_ignore_and_thresholds(checkpoint: Path, tmp_path: Path) -> None:
    assert run("audit", str(checkpoint), "--select", "FGD301,FGD302", "--ignore", "FGD301", "--fail-on", "info")[0] in (
        0,
        2,
    )
    config = tmp_path / "doctor.toml"
    config.write_text('select = ["FGD301"]\n[thresholds.FGD301]\ncap = 9.0\n')
    code, out, _ = run("audit", str(checkpoint), "--config", str(config), "--fail-on", "info")
    assert (code, "FGD301" in out) == (0, False)


def test_the_report_goes_to_a_file(checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    assert run("audit", str(checkpoint), "--format", "json", "-o", str(target))[1] == ""
    assert json.loads(target.read_text())["schema_version"] == 1
    code, _, err = run("audit", str(checkpoint), "-o", str(tmp_path / "no" / "such" / "folder.txt"))
    assert (code, err.count("\n")) == (2, 1)


def test_audit_imports_neither_torch_nor_pandas(checkpoint: Path) -> None:
    barred = "{'torch', 'pandas', 'matplotlib', 'transformers', 'tensorboard', 'scipy'}"
    assert loaded(["audit", str(checkpoint)], barred) == "set()"


@pytest.mark.parametrize(
    "option", [["--select", "NOPE"], ["--fact", "broken"], ["--config", "absent.toml"], ["--nope"]]
)
def test_a_usage_error_is_exit_2(checkpoint: Path, option: list[str]) -> None:
    code, out, err = run("audit", str(checkpoint), *option)
    assert code == 2
    assert "Traceback" not in out + err


def bad_inputs(folder: Path) -> dict[str, str]:
    """What people and strangers hand in instead of a checkpoint, by name, and the reason that they are told."""
    (folder / "empty").mkdir()
    (folder / "short.safetensors").write_bytes(b"\x10\0\0")
    (folder / "huge.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    (folder / "page.bin").write_text("<html>404 not found</html>")
    (folder / "pointer.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    os.mkfifo(folder / "pipe.safetensors")
    (folder / "evil.bin").write_bytes(b"cos\nsystem\n(S'touch " + str(folder / "owned").encode() + b"'\ntR.")
    (folder / "na\x1b[31mme.bin").write_bytes(b"junk")
    return {
        "absent": "does not exist",
        "empty": "holds no checkpoint",
        "short.safetensors": "is too short for a safetensors file",
        "huge.safetensors": "claims a safetensors header of 4,611,686,018,427,387,904 bytes",
        "page.bin": "is a web page",
        "pointer.pt": "is a Git LFS pointer",
        "pipe.safetensors": "is a named pipe",
        "evil.bin": "holds no state dict of weights",
        "na\x1b[31mme.bin": "is not a sound pickle",
    }


def test_bad_input_is_one_clear_line_with_its_path_and_exit_2(tmp_path: Path) -> None:
    for name, reason in bad_inputs(tmp_path).items():
        code, out, err = run("audit", str(tmp_path / name))
        assert (code, out) == (2, ""), name
        assert err.startswith(f"fgclip-doctor: {tmp_path}/{name}: {reason}".replace("\x1b", "\\x1b"))
        assert err.count("\n") == 1, f"{name}: {err!r}"
    assert not (tmp_path / "owned").exists()


def test_ctrl_c_is_130(tmp_path: Path) -> None:
    """A real process, interrupted while it starts up: whenever the signal comes, no traceback of ours is printed."""
    program = (
        "import fgclip_doctor.sources as sources, time\n"
        "sources.load = lambda *a, **k: (print('reading', flush=True), time.sleep(60))\n"
        "from fgclip_doctor.cli import app\napp(['audit', '.'])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "reading\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err


def test_a_third_party_pack_is_found_and_run(checkpoint: Path, tmp_path: Path) -> None:
    """Its own small distribution, installed by pip into a scratch folder."""
    project = tmp_path / "lab_pack"
    project.mkdir()
    (project / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "lab-checks"\nversion = "1"\n'
        '[project.entry-points."fgclip_doctor.checks"]\nlab = "lab_checks"\n'
    )
    (project / "lab_checks.py").write_text(
        "from fgclip_doctor import Evidence, Finding, Severity, check\n\n\n"
        '@check("LAB001", "too-few-tensors", Severity.WARNING)\n'
        "def too_few_tensors(run, *, least=2):\n"
        '    """The checkpoint holds hardly any tensor.\n\n    Fix: save the whole model.\n    """\n'
        "    count = len(run.tensors)\n"
        "    if count < least:\n"
        '        proof = Evidence(name="tensors", value=count, expected=least, why="the threshold")\n'
        '        yield Finding(message=f"Only {count} tensor.", where=run.subject, evidence=(proof,))\n\n\n'
        "CHECKS = [too_few_tensors]\n"
    )
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", site, project],
        check=True,
        capture_output=True,
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "fgclip_doctor",
            "audit",
            checkpoint,
            "--format=json",
            "--select=LAB",
            "--fail-on=warning",
        ],
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    (finding,) = json.loads(done.stdout)["findings"]
    assert (finding["code"], finding["fix"]) == ("LAB001", "save the whole model.")


def outcome(arguments: list[str], **streams: Any) -> tuple[int, str]:
    """Exit code and stderr of a real process, whose standard output is what `streams` say."""
    done = subprocess.run(
        [sys.executable, "-m", "fgclip_doctor", *arguments], stderr=subprocess.PIPE, text=True, check=False, **streams
    )
    return done.returncode, done.stderr


def test_a_reader_that_has_left_changes_nothing(checkpoint: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    assert outcome(["rules"], stdout=writer) == (0, "")
    assert outcome(["audit", str(checkpoint), "--fail-on", "warning"], stdout=writer) == (1, "")
    os.close(writer)


@pytest.mark.parametrize("command", [["rules"], ["explain", "FGD201"], ["audit", "."]])
def test_an_output_that_takes_nothing_is_one_line(checkpoint: Path, command: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        code, err = outcome(command, stdout=full, cwd=checkpoint)
    assert (code, err) == (2, "fgclip-doctor: standard output: No space left on device\n")
    closed = ["sh", "-c", f"{sys.executable} -m fgclip_doctor {' '.join(command)} >&-"]
    done = subprocess.run(closed, cwd=checkpoint, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "fgclip-doctor: standard output is closed\n")


def test_letters_that_the_terminal_lacks_are_escaped(tmp_path: Path) -> None:
    save_file({"logit_scale_大": np.array(LN_100 + 1, np.float32)}, tmp_path / "model.safetensors")
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    command = [sys.executable, "-m", "fgclip_doctor", "audit", str(tmp_path), "--fail-on", "never"]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert r"logit_scale_\u5927 is 5.6052" in out


def test_no_rule_is_listed_where_all_are_ignored() -> None:
    assert run("rules", "--ignore", "all") == (0, "", "")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("fgclip-doctor exp", ["explain"]),
        ("fgclip-doctor audit --form", ["--format"]),
        ("fgclip-doctor audit . --format j", ["json", "junit"]),
        ("fgclip-doctor explain FGD70", [one.code for one in installed_checks()[0] if one.code.startswith("FGD70")]),
        ("fgclip-doctor audit . --select FGD301", ["FGD301"]),
    ],
)
def test_the_shell_completes_commands_options_and_rules(words: str, expected: list[str]) -> None:
    asked = {"_FGCLIP_DOCTOR_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    command = [sys.executable, "-c", "from fgclip_doctor.cli import app; app(prog_name='fgclip-doctor')"]
    done = subprocess.run(command, env={**os.environ, **asked}, capture_output=True, text=True, check=False)
    assert done.stdout.split() == expected


def test_a_demo_that_can_not_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, _, err = run("demo", "--directory", str(tmp_path / "file"))
    assert (code, err.count("\n")) == (2, 1)
    assert f"{tmp_path}/file/" in err
