"""A headless Chromium, driven through its own DevTools protocol over a pipe: no port is opened, no driver needed.

https://chromedevtools.github.io/devtools-protocol/: JSON messages that end in a zero byte, to descriptor 3, from 4.
"""

from __future__ import annotations

import base64
import json
import os
import selectors
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import pytest

VARIABLE = "FGCLIP_DOCTOR_BROWSER"  # names the browser, and demands it
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE = 60.0  # seconds that one answer may take, on a machine with much else to do
FLAGS = (
    "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
    "--no-first-run", "--disable-extensions", "--disable-background-networking", "--hide-scrollbars",
)  # fmt: skip
MEDIA = {"light": ("screen", "light"), "dark": ("screen", "dark"), "print": ("print", "light")}


def executable() -> str:
    """The browser to use. Skips the test where there is none, unless one is demanded."""
    if named := os.environ.get(VARIABLE):
        found = shutil.which(named)
        assert found, f"{VARIABLE}={named}: no such program"
        return found
    found = next(filter(None, map(shutil.which, NAMES)), None)
    return found or pytest.skip(f"no Chromium here (apt install chromium); {VARIABLE}=PROGRAM demands one")


class Browser:
    """One process with one page. `said` is what it complained of, `requested` every address that it asked for."""

    def __init__(self, profile: Path) -> None:
        outward, ours_in = self._pipe()
        ours_out, inward = self._pipe()
        program = executable()
        self.process = os.posix_spawn(
            program,
            [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            {**os.environ, "DISPLAY": "", "DBUS_SESSION_BUS_ADDRESS": "disabled:"},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_DUP2, outward, 3),
                (os.POSIX_SPAWN_DUP2, inward, 4),
            ],
            setpgroup=0,
        )
        os.close(outward)
        os.close(inward)
        self.out, self.into = ours_out, ours_in
        self.rest = b""
        self.number = 0
        self.session: str | None = None
        self.events: list[dict[str, Any]] = []
        (target,) = [one for one in self.call("Target.getTargets")["targetInfos"] if one["type"] == "page"]
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    @staticmethod
    def _pipe() -> tuple[int, int]:
        """A pipe far from the descriptors 3 and 4, which the browser wants."""
        import fcntl

        ends = os.pipe()
        far = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 20) for end in ends]
        for end in ends:
            os.close(end)
        return far[0], far[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        os.close(self.out)
        os.close(self.into)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """What the browser answers to one message. What it says besides is kept in `events`."""
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        text = json.dumps(message).encode() + b"\0"
        while text:
            text = text[os.write(self.into, text) :]
        for answer in self._messages(method):
            if answer.get("id") == self.number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)
        raise AssertionError(f"{method}: the browser left")

    def _messages(self, waiting_for: str) -> Iterator[dict[str, Any]]:
        with selectors.DefaultSelector() as selector:
            selector.register(self.out, selectors.EVENT_READ)
            until = time.monotonic() + PATIENCE
            while True:
                while b"\0" in self.rest:
                    message, _, self.rest = self.rest.partition(b"\0")
                    yield json.loads(message)
                assert selector.select(max(0.0, until - time.monotonic())), f"{waiting_for}: no answer"
                read = os.read(self.out, 1 << 20)
                if not read:
                    return
                self.rest += read

    def open(self, page: Path, *, width: int = 1280, look: str = "light") -> None:
        """Show a file, and wait until it is drawn."""
        self.events.clear()
        self.look(look, width=width)
        self.call("Page.navigate", url=page.as_uri())
        self.run("new Promise(done => document.readyState === 'complete' ? done() : addEventListener('load', done))")

    def look(self, look: str, *, width: int) -> None:
        """Light, dark or print, at a width in CSS pixels; a narrow one is a phone's."""
        media, scheme = MEDIA[look]
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)

    def run(self, expression: str) -> Any:
        """The value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        code = {"Tab": 9, "Enter": 13}[key]
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    def picture(self) -> bytes:
        """The whole page as PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 16_000), "scale": 1}
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(shot["data"])

    def pdf(self) -> bytes:
        return base64.b64decode(self.call("Page.printToPDF", printBackground=False)["data"])

    @property
    def requested(self) -> list[str]:
        sent = (event for event in self.events if event.get("method") == "Network.requestWillBeSent")
        return [event["params"]["request"]["url"] for event in sent]

    @property
    def said(self) -> list[str]:
        kinds = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        return [json.dumps(event["params"]) for event in self.events if event.get("method") in kinds]


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    with Browser(profile) as one:
        yield one
