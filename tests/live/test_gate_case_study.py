"""The commands of the case study, as reported and corrected, judged as a job of CI would: in each format at once."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from junitparser import Failure, JUnitXml

from fgclip_doctor.training import case_study, settings_file
from fgclip_doctor.training.settings import TrainConfig
from tests.kept import Kept
from tests.reports.test_formats import ANNOTATION, validated

SETTINGS = Path(__file__).parents[2] / "examples" / "case_study"
DOCTOR = (sys.executable, "-m", "fgclip_doctor")
WARMUP = "model.memory_bank_warmup_steps=3"  # so that few steps are enough to see the bank come on, or not
FORMATS = {"json": "doctor.json", "junit": "doctor.xml", "sarif": "doctor.sarif", "markdown": "doctor.md",
           "html": "doctor.html", "text": "doctor.txt"}  # fmt: skip
PLANTED = {"FGD201", "FGD302", "FGD303"}  # of the faults, those that so few steps can show


@dataclass(frozen=True)
class Job:
    """A job that has run: its exit code, what it printed, and the directory with its files."""

    code: int
    printed: str
    files: Path

    def read(self, form: str) -> str:
        return (self.files / FORMATS[form]).read_text("utf-8")

    @property
    def found(self) -> set[str]:
        """The codes at warning or above, by the JSON."""
        return {one["code"] for one in json.loads(self.read("json"))["findings"] if one["severity"] != "info"}


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "GITHUB_STEP_SUMMARY": str(cwd / "summary.md"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*DOCTOR, *words], cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=200
    )


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Job]:
    own = tmp_path_factory.getbasetemp()
    kept = Kept((own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "gated")

    def base(path: Path) -> None:
        trained = run("train", str(SETTINGS / "base.toml"), "--set", "max_steps=80", cwd=path.parent)
        assert trained.returncode == 0, trained.stderr
        (path.parent / "runs" / "base").rename(path)

    def gate(name: str, path: Path) -> None:
        path.mkdir()
        (path / "runs").mkdir()
        (path / "runs" / "base").symlink_to(kept.once("base", base))
        also = [word for form, file in FORMATS.items() for word in ("--also", f"{form}={file}")]
        train = [*DOCTOR, "train", str(SETTINGS / f"{name}.toml"), "--set", WARMUP]
        judge = ["gate", "--steps", "10", "--record", "rec", "--base", "runs/base", "--format", "github", *also]
        done = run(*judge, "--", *train, cwd=path)
        (path / "code").write_text(str(done.returncode))
        (path / "printed").write_text(done.stdout)

    def judged(name: str) -> Job:
        path = kept.once(name, lambda path: gate(name, path))
        return Job(int((path / "code").read_text()), (path / "printed").read_text(), path)

    return judged


@pytest.mark.slow
def test_the_job_fails_as_reported_and_passes_corrected(job: Callable[[str], Job]) -> None:
    reported, corrected = job("as_reported"), job("corrected")
    assert (reported.code, corrected.code) == (1, 0), reported.printed + corrected.printed
    assert reported.found >= PLANTED
    assert corrected.found == set()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["as_reported", "corrected"])
def test_every_format_says_the_same(job: Callable[[str], Job], name: str) -> None:
    done = job(name)
    report = json.loads(done.read("json"))
    codes = sorted(one["code"] for one in report["findings"])

    annotations = [match for line in done.printed.splitlines() if (match := ANNOTATION.fullmatch(line))]
    assert {match["command"] for match in annotations} == {
        {"info": "notice"}.get(one["severity"], one["severity"]) for one in report["findings"]
    }
    assert {code for match in annotations for code in re.findall(r"title=(FGD\d+)", match[0])} == set(codes)

    (sarif,) = validated(done.read("sarif"))["runs"]
    assert sorted(result["ruleId"] for result in sarif["results"]) == codes

    (suite,) = JUnitXml.fromfile(str(done.files / FORMATS["junit"]))
    failed = {case.name.split()[0] for case in suite if any(isinstance(one, Failure) for one in case.result)}
    assert failed == {one["code"] for one in report["findings"] if one["severity"] == "error"}

    for form in ("markdown", "html", "text"):
        assert set(re.findall(r"\b(FGD\d{3}) [a-z-]+", done.read(form))) >= set(codes), form
    assert (done.files / "summary.md").read_text("utf-8") == done.read("markdown")
    assert done.read("html").count("<svg") >= 5


@pytest.mark.parametrize(
    ("name", "made"),
    [("as_reported", case_study.reported), ("corrected", case_study.fine_tuning)],
)
def test_the_settings_are_those_that_the_demo_trains(name: str, made: Callable[[Path, Path], TrainConfig]) -> None:
    config = settings_file.read(SETTINGS / f"{name}.toml")
    assert config == made(Path("runs/base"), Path("runs") / name.replace("_", "-"))
