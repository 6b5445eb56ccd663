"""The site builds without a warning, and what its pages tell the reader to type is a command."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command

from fgclip_doctor.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
COMMAND = re.compile(
    r"^(?:    |- )?(?:\$ )?(fgclip-doctor (?:[a-z]+)\b[^\n`]*)|`(fgclip-doctor [^`\n]+)`", re.MULTILINE
)


def commands(page: Path) -> list[str]:
    """What the page says to type; what stands behind a # or a pipe is for the reader or the shell."""
    text = page.read_text("utf-8").replace("\\\n", " ")
    found = (block or inline for block, inline in COMMAND.findall(text))
    return [re.split(r"\s#\s|\s\|\s|&&|;", one)[0].strip() for one in found if "…" not in one and "..." not in one]


def test_it_builds_in_strict_mode(tmp_path: Path) -> None:
    build = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-n",
        "-q",
        "-b",
        "html",
        "-d",
        str(tmp_path / "cache"),
    ]
    done = subprocess.run(
        [*build, "docs", str(tmp_path / "site")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    built = {path.relative_to(tmp_path / "site").with_suffix("").as_posix() for path in tmp_path.glob("site/**/*.html")}
    written = {path.relative_to(ROOT / "docs").with_suffix("").as_posix() for path in ROOT.glob("docs/**/*.md")}
    assert written <= built


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_every_command_of_a_page_is_one(page: Path) -> None:
    """Parsed as the shell and the command line would; nothing is run."""
    root: Any = get_command(app)
    for line in commands(page):
        words = shlex.split(line)[1:]
        if words[0].isupper() or words[0].startswith("-"):
            continue
        with root.make_context("fgclip-doctor", [words[0]]) as context:
            name, command, _ = root.resolve_command(context, words)
            try:
                command.make_context(name, words[1:], parent=context)
            except typer.Exit:
                continue  # --help and the like


def test_there_are_commands_to_check() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 40


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_tests_and_scripts_that_a_page_names_exist(page: Path) -> None:
    named = re.findall(
        r"\b((?:tests|benchmarks|examples|fgclip_doctor)/[\w/.-]*\w|scripts/\w+\.py)", page.read_text("utf-8")
    )
    assert [one for one in named if not (ROOT / one).exists()] == []


def test_the_readme_stays_under_two_screens_and_leads_with_a_picture() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 100
    assert text.index("![") < text.index("## ")


def test_pictures_say_in_words_what_they_show() -> None:
    for page in PAGES:
        for words in re.findall(r"!\[([^\]]*)\]", page.read_text("utf-8")):
            assert len(words) > 20, f"{page.name}: {words!r}"
