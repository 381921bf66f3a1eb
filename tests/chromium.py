"""Chromium without a window, to test what a page of HTML does in a browser.

It is driven by the DevTools protocol (chromedevtools.github.io/devtools-protocol) over two pipes:
no package is needed, no port is opened, and Chromium ends when the tests end, however they end.
"""

from __future__ import annotations

import base64
import fcntl
import io
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 60.0  # seconds for one answer; they take milliseconds on a machine that is not busy
OPTIONS = (
    "--headless",
    "--remote-debugging-pipe",
    "--no-sandbox",  # it can't be had as root; the pages are the tests' own
    "--disable-gpu",
    "--disable-dev-shm-usage",  # /dev/shm of a container is small
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--host-resolver-rules=MAP * ~NOTFOUND",  # no page reaches a network
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    "about:blank",
)
# The two ends of the pipes become 3 (Chromium reads) and 4 (it writes).
_LAUNCH = 'from=$1 to=$2; shift 2; exec 3<&"$from"- 4>&"$to"-; exec "$@"'
_DRAWN = (
    "document.fonts.ready.then(() => new Promise(done => "
    "requestAnimationFrame(() => requestAnimationFrame(() => done(true)))))"
)


class ChromiumError(Exception):
    """Chromium refused a command, ended, or did not answer in time."""


def find() -> Path | None:
    """The program; None if none is installed."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    return None if found is None else Path(found)


def require() -> Path:
    """The program. Skips the test where there is none, or fails it with CI=true."""
    found = find()
    if found is None:
        text = "Chromium is not installed (Debian: apt install chromium)"
        if os.environ.get("CI") == "true":
            pytest.fail(text)
        pytest.skip(text)
    return found


def blank(png: bytes) -> bool:
    """Whether a picture has one colour only."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        extrema = image.convert("RGB").getextrema()
    return all(low == high for low, high in extrema)


class Browser:
    """A running Chromium with an empty profile."""

    def __init__(self) -> None:
        """Skips or fails the test where there is no Chromium."""
        program = require()
        # Short, for the path of its socket.
        self.folder = Path(tempfile.mkdtemp(prefix="ensq-chromium-", dir="/tmp"))
        (read_here, there_writes), (there_reads, write_here) = _pipe(), _pipe()
        try:
            with (self.folder / "log").open("wb") as log:
                self._process = subprocess.Popen(
                    [
                        *("bash", "-c", _LAUNCH, "bash", str(there_reads), str(there_writes)),
                        *(str(program), f"--user-data-dir={self.folder / 'profile'}", *OPTIONS),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=os.environ | {"HOME": str(self.folder), "TMPDIR": str(self.folder)},
                    pass_fds=(there_reads, there_writes),
                    start_new_session=True,  # Ctrl-C is not for it
                )
        finally:
            os.close(there_reads)
            os.close(there_writes)
        self._pipe = _Pipe(read_here, write_here)
        self.version: str = self.send("Browser.getVersion")["product"]

    def send(self, method: str, session: str = "", **parameters: Any) -> Any:
        """The answer to a command of the protocol."""
        try:
            return self._pipe.send(method, session, parameters)
        except ChromiumError as error:
            if self._process.poll() is None:
                raise
            log = (self.folder / "log").read_text(errors="replace")
            raise ChromiumError(f"{error}; Chromium ended, and said:\n{log[-3000:]}") from None

    @contextmanager
    def page(self, source: Path | str, width: int = 1280, height: int = 800) -> Iterator[Page]:
        """A file (or the text of a page) as a browser shows it, once it is loaded and drawn."""
        if isinstance(source, str):
            file = self.folder / "page.html"
            file.write_text(source, encoding="utf-8")
            source = file
        target = self.send("Target.createTarget", url="about:blank", newWindow=True)["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        self._pipe.listeners[session] = page._hear
        try:
            for domain in ("Page", "Runtime", "Log", "Network"):
                page.send(f"{domain}.enable")
            page.resize(width, height)
            page._open(source.resolve().as_uri())
            yield page
        finally:
            self._pipe.listeners.pop(session)
            self.send("Target.closeTarget", targetId=target)

    def close(self) -> None:
        with suppress(ChromiumError):
            self._pipe.send("Browser.close", "", {}, patience=5)
        self._pipe.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)
        with suppress(ProcessLookupError):  # its helpers, too
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(timeout=10)
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass
class Page:
    """An open page.

    ``errors`` are uncaught exceptions, rejected promises, ``console.error`` and what Chromium
    itself complains of, such as a picture that is not there. ``requests`` are the URLs that the
    page asked for besides its own; data: and blob: don't count.
    """

    browser: Browser
    session: str
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    _loaded: bool = False

    def send(self, method: str, **parameters: Any) -> Any:
        return self.browser.send(method, self.session, **parameters)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited if it is a promise, as JSON carries it."""
        done = self.send(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in done:
            raise ChromiumError(f"{expression}: {_exception(done['exceptionDetails'])}")
        return done["result"].get("value")

    def resize(self, width: int, height: int = 800) -> None:
        """Give the window another size, in CSS pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", **size)

    def media(self, kind: str = "screen", scheme: str = "light") -> None:
        """Show it as on paper (``print``), or to those who like it ``dark``."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.send("Emulation.setEmulatedMedia", media=kind, features=features)

    @property
    def content_width(self) -> int:
        """More than the window's width where one has to scroll sideways."""
        return int(self.evaluate("document.documentElement.scrollWidth"))

    @property
    def text(self) -> str:
        """What is there to read; hidden text is not."""
        return str(self.evaluate("document.body.innerText"))

    def screenshot(self, width: int | None = None) -> bytes:
        """A PNG of the whole page, from top to bottom."""
        if width is not None:
            self.resize(width)
        self.evaluate(_DRAWN)
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        taken = self.send("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(taken["data"])

    def _open(self, url: str) -> None:
        failure = self.send("Page.navigate", url=url).get("errorText")
        if failure:
            raise ChromiumError(f"{url}: {failure}")
        self.browser._pipe.wait(lambda: self._loaded, f"{url} to load")
        self.evaluate(_DRAWN)
        self.requests = [asked for asked in self.requests if asked != url]

    def _hear(self, event: str, told: dict[str, Any]) -> None:
        if event == "Page.loadEventFired":
            self._loaded = True
        elif event == "Runtime.exceptionThrown":
            self.errors.append(_exception(told["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled" and told["type"] in ("error", "assert"):
            self.errors.append(" ".join(map(_shown, told["args"])))
        elif event == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.errors.append(f"{told['entry']['text']} {told['entry'].get('url', '')}".rstrip())
        elif event == "Network.requestWillBeSent":
            url = told["request"]["url"]
            if not url.startswith(("data:", "blob:", "about:")):
                self.requests.append(url)


def _exception(details: dict[str, Any]) -> str:
    thrown = details.get("exception", {})
    where = f" (line {details['lineNumber'] + 1})" if "lineNumber" in details else ""
    return f"{details.get('text', '')} {_shown(thrown)}".strip() + where


def _shown(value: dict[str, Any]) -> str:
    """A value of JavaScript as the console shows it."""
    return str(value.get("description", value.get("value", value.get("type", ""))))


def _pipe() -> tuple[int, int]:
    """Ends to read and to write, away from the numbers that they get in Chromium."""
    ends = os.pipe()
    moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return moved[0], moved[1]


class _Pipe:
    """Commands, answers and events: JSON, each ended by a zero byte."""

    def __init__(self, reading: int, writing: int) -> None:
        self.reading, self.writing = reading, writing
        self.listeners: dict[str, Callable[[str, dict[str, Any]], None]] = {}
        self._number = 0
        self._answers: dict[int, dict[str, Any]] = {}
        self._rest = b""

    def send(
        self, method: str, session: str, parameters: dict[str, Any], patience: float = PATIENCE
    ) -> Any:
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        try:
            while data:
                data = data[os.write(self.writing, data) :]
        except OSError as error:
            raise ChromiumError(f"{method}: {error}") from None
        self.wait(lambda: number in self._answers, method, patience)
        answer = self._answers.pop(number)
        if "error" in answer:
            raise ChromiumError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def wait(self, done: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
        """Take what comes until ``done``."""
        deadline = time.monotonic() + patience
        while not done():
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.reading], [], [], left)[0]:
                raise ChromiumError(f"waited {patience:g} s for {what}")
            data = os.read(self.reading, 1 << 20)
            if not data:
                raise ChromiumError(f"{what}: the pipe from Chromium is closed")
            *messages, self._rest = (self._rest + data).split(b"\0")
            for message in map(json.loads, messages):
                if "id" in message:
                    self._answers[message["id"]] = message
                elif listener := self.listeners.get(message.get("sessionId", "")):
                    listener(message["method"], message["params"])

    def close(self) -> None:
        os.close(self.reading)
        os.close(self.writing)
