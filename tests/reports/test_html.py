"""The page in a real browser and through Python's own parser: it draws, asks for nothing, and runs nothing."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from fgclip_doctor.diagnosis import Comparison, Difference, Report, diagnose
from fgclip_doctor.findings import Evidence
from fgclip_doctor.registry import installed_checks
from fgclip_doctor.reports import html
from fgclip_doctor.reports.plots import PARTS, thinned
from fgclip_doctor.run import Event, Run, Series, Source
from tests import runs
from tests.reports.browser import Browser, executable
from tests.reports.test_reports import FINDING

HOSTILE = "</style></svg></table><script>document.title='owned'</script><img src=http://evil.test/x onerror=alert(1)>"
NAMES = (HOSTILE, "$\\frac{a}$ & \"quoted\" 'single'", "\u202eevil\x1b[2J\x00\ud800", "http://evil.test/" + "x" * 300)
PHONE, PAPER, DESK = 390, 794, 1280  # CSS pixels


def eventful() -> Run:
    """A run that has every picture, and in which whatever can be named is named by somebody hostile."""
    random = np.random.default_rng(0)
    tensors = {f"{name}.{layer}.weight": random.normal(size=(4, 4)) for name in NAMES for layer in range(3)}
    rows = random.normal(size=(32, 16))
    bank = {"queue_image": rows / np.linalg.norm(rows, axis=1, keepdims=True), "logit_scale": np.array(4.6)}
    before = runs.checkpoint({**tensors, **bank}, 50)
    after = runs.checkpoint({**{name: value * 1.01 for name, value in tensors.items()}, **bank}, 300)
    held = runs.adam(after.tensors, step=300, dead=[next(iter(tensors))])
    loss = np.concatenate([random.normal(1.4, 0.1, 150), random.normal(4.4, 0.1, 150)])
    run = runs.run(
        before,
        replace(after, optimizer=held),
        facts={"micro_batch": 4, "candidates": 4, "bank_size": 32, "scale": 14.24, "dimension": 16},
        roles={"bank.image_keys": "queue_image", "scale.global": "logit_scale", "loss.region": HOSTILE},
        logged=(
            runs.series(HOSTILE, loss),
            runs.series(f"{HOSTILE}/logit_scale", np.full(300, 4.6)),
            runs.series("learning_rate", np.linspace(1e-3, 0, 300)),
            *(runs.series(f"gradient norm/{name}", random.lognormal(size=300)) for name in NAMES),
        ),
    )
    run.subject = HOSTILE
    run.events.append(Event("bank-on", 150, HOSTILE, Source(HOSTILE)))
    run.events.append(Event(HOSTILE, 250, HOSTILE, Source(HOSTILE)))
    return run


def judged(run: Run) -> Report:
    """A report in which every field that can hold text from a run holds some."""
    found = diagnose(run, installed_checks()[0])
    hostile = [
        replace(
            FINDING, code=f"FGD9{number:02}", message=name, where=name, fix=name, explained_by=(),
            evidence=(Evidence(name=name, value=name, expected=name, why=name, source=name, step=3),),
        )
        for number, name in enumerate(NAMES)
    ]  # fmt: skip
    symptom = replace(FINDING, explained_by=(hostile[0].code,))
    difference = Difference("fact", HOSTILE, HOSTILE, HOSTILE, HOSTILE)
    return replace(
        found,
        findings=(*hostile, symptom, *found.findings),
        observations=(*found.observations, *hostile[0].evidence),
        suppressed=((hostile[0], HOSTILE),),
        stale=(HOSTILE,),
        notes=(HOSTILE,),
        problems=(HOSTILE,),
        crashed=(("FGD999", HOSTILE),),
        comparison=Comparison(HOSTILE, (difference,), tuple(hostile), tuple(hostile), tuple(hostile)),
    )


@pytest.fixture(scope="module")
def page() -> str:
    run = eventful()
    return html.render(judged(run), run, version="1.0.0")


class Tags(HTMLParser):
    """Names and attributes of what is opened, the text of the page, and whether all that is opened is closed."""

    VOID = ("meta",)

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_only_the_tags_of_the_page_itself_are_in_it(page: str) -> None:
    parsed = Tags(page)
    assert parsed.open == [], "every tag is closed, in order"
    own = {
        "html", "head", "meta", "title", "style", "body", "header", "main", "h1", "h2", "h3", "p", "ol", "ul", "li",
        "a", "article", "span", "code", "strong", "small", "table", "thead", "tbody", "tr", "th", "td", "div",
        "details", "summary", "figure", "figcaption",
        "svg", "defs", "g", "path", "use", "text", "clippath", "rect", "image", "tspan",
    }  # fmt: skip
    assert {tag for tag, _ in parsed.tags} <= own
    assert parsed.text.count("<script>document.title='owned'</script>") > 20, "hostile names are there as text"
    for tag, attributes in parsed.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "srcdoc", "action")], tag
        for name in ("href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,"))


def test_it_is_one_file_of_the_same_bytes_with_nothing_invisible_in_it(page: str) -> None:
    run = eventful()
    assert html.render(judged(run), run, version="1.0.0") == page
    page.encode("utf-8")
    assert not set(page) & {"\x1b", "\x00", "\u202e"}
    assert "default-src 'none'" in page
    assert "mathdefault" not in page, "mathematics is not set, on no axis"


def test_every_picture_says_in_words_what_it_shows(page: str) -> None:
    parsed = Tags(page)
    pictures = [attributes for tag, attributes in parsed.tags if tag == "svg"]
    titles = [
        "loss on its yardstick", "Learning rate", "Logit scales", "Gradient norm", "bank's rows", "What changed"
    ]  # fmt: skip
    labels = [attributes["aria-label"] or "" for attributes in pictures]
    assert all(attributes["role"] == "img" for attributes in pictures)
    assert all(any(title in label for label in labels) for title in titles), labels
    assert all(len(label) > 30 for label in labels)


def test_ids_of_several_pictures_stay_apart(page: str) -> None:
    ids = re.findall(r' id="([^"]+)"', page) + re.findall(r" id='([^']+)'", page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=[\'"])#([^\'")]+)', page)) <= set(ids)


def test_findings_of_one_rule_share_a_card_and_fold_what_they_explain() -> None:
    cause = replace(FINDING, code="FGD106", explained_by=(), where="a")
    symptom = replace(FINDING, code="FGD303", explained_by=("FGD106",), where="b")
    next_one = replace(FINDING, code="FGD304", explained_by=("FGD303",), where="c")
    run = Run("runs/exp")
    found = Report("runs/exp", {}, (cause, replace(cause, where="d"), symptom, next_one), ("FGD301",), (), (), ())
    shown = html.render(found, run, version="1")
    assert shown.count("<article") == 3
    assert "2 symptoms that this explains" in shown
    assert shown.index("FGD303") < shown.index("FGD304")


def test_files_are_named_from_the_run_on() -> None:
    proof = Evidence(name="n", value=1, source="/data/runs/exp/checkpoint-9/model.safetensors: x")
    finding = replace(FINDING, explained_by=(), where="x", evidence=(proof,))
    found = Report("/data/runs/exp", {}, (finding,), (), (), (), ())
    assert "<small>checkpoint-9/model.safetensors: x</small>" in html.render(found, Run("/data/runs/exp"), version="1")


def test_thinning_keeps_spikes_and_where_a_series_was_not_finite() -> None:
    values = np.zeros(1_000_000)
    values[123_456], values[654_321], values[777_777] = 50.0, -50.0, math.nan
    steps, kept = thinned(np.arange(1_000_000), values)
    assert len(kept) <= 600
    assert {123_456, 654_321, 777_777} <= set(steps.tolist())
    assert np.nanmax(kept) == 50
    assert np.nanmin(kept) == -50


def test_a_long_run_is_a_small_page() -> None:
    """A million steps, two hundred checkpoints and five hundred modules: what is left out is told."""
    random = np.random.default_rng(0)
    weights = {f"blocks.{layer}.weight": random.normal(size=(2, 2)) for layer in range(500)}
    saved = [runs.checkpoint({**weights, "logit_scale": np.array(4.0 + step / 1e4)}, step) for step in range(200)]
    loss = runs.series("region_loss", random.normal(1.4, 0.1, 1_000_000))
    run = runs.run(
        *saved, facts={"candidates": 4, "scale": 14.24, "dimension": 64, "micro_batch": 4},
        roles={"loss.region": "region_loss", "scale.global": "logit_scale"}, logged=(loss,),
    )  # fmt: skip
    shown = html.render(diagnose(run, installed_checks()[0]), run, version="1")
    assert len(shown) < 5_000_000 / 4
    assert f"{501 - PARTS:,} more are not shown" in shown
    assert "logit_scale 4.0000 to 4.0199" in shown, "the scale of each checkpoint, as none was logged"


def test_an_audit_of_two_hundred_checkpoints_stays_small(tmp_path: Path) -> None:
    """Real files, each checkpoint with its log so far; how long it takes is in docs/speed.md."""
    random = np.random.default_rng(0)
    names = [f"vision_model.encoder.layers.{layer}.mlp.fc1.weight" for layer in range(12)]
    weights = {name: random.normal(0, 0.05, (16, 16)).astype(np.float32) for name in names}
    history = [{"step": n, "loss_region": random.normal(1.5, 0.3), "learning_rate": 1e-4} for n in range(20_000)]
    for number in range(1, 201):
        saved = tmp_path / "run" / f"checkpoint-{number * 100}"
        saved.mkdir(parents=True)
        weights = {name: value + np.float32(1e-4) for name, value in weights.items()}
        save_file(weights | {"logit_scale": np.array(4.6, np.float32)}, saved / "model.safetensors")
        log = {"global_step": number * 100, "log_history": history[max(0, number - 10) * 100 : number * 100]}
        (saved / "trainer_state.json").write_text(json.dumps(log))
    page = tmp_path / "report.html"
    words = ["audit", str(tmp_path / "run"), "--fact", "micro_batch=4", "--format", "html", "-o", str(page)]
    done = subprocess.run(
        [sys.executable, "-m", "fgclip_doctor", *words], capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode in (0, 1), done.stderr
    assert page.stat().st_size < 5_000_000 / 4
    assert "checkpoint-100" in page.read_text("utf-8")


def test_a_loss_without_a_yardstick_is_drawn_and_says_what_is_missing() -> None:
    run = runs.run(roles={"loss.region": "region_loss"}, logged=(runs.series("region_loss", np.linspace(4, 1, 50)),))
    shown = html.render(diagnose(run, installed_checks()[0]), run, version="1")
    assert "The region loss, without its yardstick" in shown
    assert "is not known" in Tags(shown).text


def test_a_series_of_nothing_finite_is_no_reason_to_fail() -> None:
    for values in (np.full(30, math.nan), np.full(30, math.inf), np.zeros(30), np.array([1.0])):
        run = runs.run(
            runs.checkpoint({"logit_scale": np.array(4.0)}, 30),
            facts={"candidates": 4, "scale": 14.24, "dimension": 64, "micro_batch": 4},
            roles={"loss.region": "region_loss", "scale.global": "logit_scale"},
            logged=(Series("region_loss", np.arange(len(values)), values, Source("log")),),
        )
        assert "</html>" in html.render(diagnose(run, installed_checks()[0]), run, version="1")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    executable()
    with Browser(tmp_path_factory.mktemp("profile")) as one:
        yield one


@pytest.fixture(scope="module")
def file(page: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page, "utf-8")
    return path


SIGHTS = [(look, width) for look in ("light", "dark") for width in (PHONE, DESK)] + [("print", PAPER)]


def test_a_page_that_asks_and_complains_is_seen_to(browser: Browser, tmp_path: Path) -> None:
    """Or the tests below would pass whatever the page did."""
    path = tmp_path / "bad.html"
    path.write_text("<title>x</title><img src=http://127.0.0.1:9/x><script>document.title = 'ran'; fail()</script>")
    browser.open(path)
    assert "http://127.0.0.1:9/x" in browser.requested
    assert "fail is not defined" in str(browser.said)
    assert browser.run("document.title") == "ran"


@pytest.mark.parametrize(("look", "width"), SIGHTS)
def test_it_draws_and_asks_for_nothing(browser: Browser, file: Path, look: str, width: int) -> None:
    browser.open(file, look=look, width=width)
    assert browser.said == []
    assert [one for one in browser.requested if not one.startswith("data:image/png")] == [file.as_uri()]
    assert browser.run("document.title").startswith("fgclip-doctor: </style>"), "no script has run"
    wider = browser.run(
        """[...document.querySelectorAll('body *')]
            .filter(one => !one.closest('.scroll') && !one.closest('thead'))
            .filter(one => one.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
            .map(one => one.outerHTML)"""
    )
    assert wider == [], "only boxes that scroll are wider than the screen"
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    assert browser.run(
        "[...document.querySelectorAll('figure svg')].every(one => one.getBoundingClientRect().height > 99)"
    )


@pytest.mark.parametrize("look", ["light", "dark"])
def test_text_and_lines_stand_out_from_the_paper(browser: Browser, file: Path, look: str) -> None:
    """A contrast of 4.5 to 1 for whatever is written, 3 to 1 for what is drawn: WCAG 2.2, 1.4.3 and 1.4.11."""
    browser.open(file, look=look)
    shades = browser.run(
        """Object.fromEntries(['paper', 'card', 'ink', 'muted', 'one', 'two', 'mark', 'error', 'warning', 'info'].map(
            name => [name, getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim()]))"""
    )
    for name in ("ink", "muted", "one", "mark", "error", "warning", "info"):
        assert min(contrast(shades[name], shades["paper"]), contrast(shades[name], shades["card"])) >= 4.5, name
    assert contrast(shades["two"], shades["paper"]) >= 3
    dark = browser.run("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (look == "dark")


def contrast(one: str, other: str) -> float:
    """WCAG's ratio of the luminances of two colours as #rgb or #rrggbb."""
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    digits = colour.removeprefix("#")
    digits = "".join(digit * 2 for digit in digits) if len(digits) == 3 else digits
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_keyboard_reaches_what_opens_and_what_scrolls(browser: Browser, file: Path) -> None:
    browser.open(file)
    wanted = browser.run("document.querySelectorAll('main > article > details > summary, .causes a').length")
    reached: list[str] = []
    for _ in range(300):
        browser.press("Tab")
        here = browser.run("document.activeElement.tagName + '.' + document.activeElement.className")
        if here == "SUMMARY." and not browser.run("document.activeElement.parentNode.open"):
            browser.press("Enter")
            assert browser.run("document.activeElement.parentNode.open"), "Enter opens it"
        if here.startswith("BODY"):
            break
        reached.append(here)
    assert sum(one in ("SUMMARY.", "A.") for one in reached) >= wanted
    assert any(one == "DIV.scroll" for one in reached)
    assert browser.run("[...document.querySelectorAll('details')].every(one => one.open)")


def test_it_prints_with_its_symptoms_unfolded(browser: Browser, file: Path) -> None:
    browser.open(file, look="print", width=PAPER)
    printed = browser.pdf()
    assert printed.startswith(b"%PDF-")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 40
    heights = browser.run(
        "[...document.querySelectorAll('article details article')].map(one => one.getBoundingClientRect().height)"
    )
    assert heights
    assert min(heights) > 20, "what is folded on the screen is on paper"
