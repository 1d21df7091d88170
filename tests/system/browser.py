"""A headless Chromium, spoken to over two pipes in its DevTools protocol: what a page says, asks for and looks like.

Invariant: it ends with its block, and its profile with it. Refuses to know what is on a page.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SECONDS = 30.0
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-extensions"),
)
# Wider than the viewport, and in nothing that scrolls by itself; a text can stick out of what holds it.
TOO_WIDE = """(() => {
    const page = document.documentElement, width = page.clientWidth + 1;
    const scrolls = e => e && (getComputedStyle(e).overflowX === 'auto' || scrolls(e.parentElement));
    const found = [...document.body.querySelectorAll('*')]
        .filter(e => e.getBoundingClientRect().right > width && !scrolls(e.parentElement))
        .map(e => e.tagName + ' ' + e.textContent.slice(0, 40));
    return page.scrollWidth > width ? [...found, 'scrolls over ' + page.scrollWidth + ' px'] : found;
})()"""
BROKEN = "[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src.slice(0, 80))"


@dataclass
class Opened:
    """A page as it was loaded: what it said on the console, and what it asked for beyond itself."""

    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    wide: dict[int, list[str]] = field(default_factory=dict)
    images: int = 0

    @property
    def complaints(self) -> list[str]:
        """All that is wrong with it."""
        wide = [f"at {width} px: {what}" for width, found in self.wide.items() for what in found]
        return [*self.said, *(f"asks for {url}" for url in self.asked), *(f"broken {i}" for i in self.broken), *wide]


class Browser:
    """Commands go out with a number, answers come back with it; events are kept in between."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read, self._number, self._rest = write, read, 0, b""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.page(f"{domain}.enable")

    def call(self, method: str, session: str | None = None, **params: Any) -> Any:
        """Its result. Raises `AssertionError` if the browser refuses, or is silent."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        message |= {"sessionId": session} if session else {}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def page(self, method: str, **params: Any) -> Any:
        """The same, of the page."""
        return self.call(method, self._session, **params)

    def value(self, expression: str) -> Any:
        """What a script of ours says of the page; none of the page's own has to run for it."""
        return self.page("Runtime.evaluate", expression=expression, returnByValue=True)["result"]["value"]

    def wait(self, event: str) -> None:
        """Until it has happened."""
        while not any(one.get("method") == event for one in self.events):
            self.events.append(self._next())

    def open(self, path: Path, widths: tuple[int, ...] = (1280, 400)) -> Opened:
        """Load a file, and look at it in windows of these widths."""
        self.events.clear()
        url, out = path.as_uri(), Opened()
        self.page("Page.navigate", url=url)
        self.wait("Page.loadEventFired")
        for width in widths:
            self.resize(width)
            out.wide[width] = self.value(TOO_WIDE)
        out.images, out.broken = self.value("document.images.length"), self.value(BROKEN)
        for event in self.events:
            said = _said(event)
            out.said += [said] if said else []
            if event.get("method") == "Network.requestWillBeSent":
                asked = event["params"]["request"]["url"]
                out.asked += [asked] if asked != url and not asked.startswith("data:") else []
        return out

    def resize(self, width: int, height: int = 900) -> None:
        """Of the window."""
        self.page(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )  # a telephone's would zoom out until everything fits

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + SECONDS
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "the browser is silent"
            data = os.read(self._read, 1 << 16)
            assert data, "the browser is gone"
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found


def _said(event: dict[str, Any]) -> str:
    """What a page, or the browser on its behalf, says as a warning or worse."""
    method, params = event.get("method"), event.get("params", {})
    if method == "Runtime.exceptionThrown":
        return str(params["exceptionDetails"]["text"])
    if method == "Runtime.consoleAPICalled" and params["type"] in ("warning", "error", "assert"):
        return f"{params['type']}: {[a.get('value') for a in params['args']]}"
    if method == "Log.entryAdded" and params["entry"]["level"] in ("warning", "error"):
        return f"{params['entry']['level']}: {params['entry']['text']}"
    return ""


@contextmanager
def browser() -> Iterator[Browser]:
    """One that is ended with the block."""
    assert CHROMIUM is not None
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        moved = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'  # where it looks for them
        command = ["bash", "-c", moved, "bash", CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, pass_fds=(theirs_in, theirs_out), stderr=subprocess.DEVNULL)
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            found = Browser(ours_out, ours_in)
            yield found
            found.call("Browser.close")
            process.wait(SECONDS)
        finally:
            process.kill()
            process.wait()
            os.close(ours_out)
            os.close(ours_in)
