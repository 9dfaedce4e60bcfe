"""A real headless Chromium through chromedriver's HTTP interface (W3C WebDriver): no package needed."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
KEYS = {"ArrowLeft": "\ue012", "ArrowRight": "\ue014", "Escape": "\ue00c", "Space": "\ue00d", "Tab": "\ue004"}


def installed() -> bool:
    """Whether a browser and its driver are there."""
    return bool(shutil.which("chromedriver")) and any(shutil.which(b) for b in BROWSERS)


class Browser:
    """One browser window. A context manager; leaving it ends the driver and the browser."""

    def __init__(self, profile: Path, *, size: tuple[int, int] = (1360, 1000), options: Sequence[str] = ()) -> None:
        self._profile, self._size, self._options = profile, size, options

    def __enter__(self) -> Browser:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = int(probe.getsockname()[1])
        self._driver = subprocess.Popen(
            ["chromedriver", f"--port={self._port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            self._wait_until_ready()
            self._start_session()
        except BaseException:
            self._end_driver()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._call("DELETE", "")
        finally:
            self._end_driver()

    def _start_session(self) -> None:
        binary = next(path for b in BROWSERS if (path := shutil.which(b)))
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--mute-audio"]
        arguments += [f"--user-data-dir={self._profile}", f"--window-size={self._size[0]},{self._size[1]}"]
        arguments += ["--autoplay-policy=no-user-gesture-required", *self._options]
        chrome = {"binary": binary, "args": arguments}
        wanted = {"goog:chromeOptions": chrome, "goog:loggingPrefs": {"browser": "ALL"}}
        self._session = ""
        answer = self._call("POST", "", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/{answer['sessionId']}"

    def _wait_until_ready(self) -> None:
        for _ in range(200):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/status", timeout=5):
                    return
            except OSError:
                time.sleep(0.05)
        raise RuntimeError("chromedriver did not start")

    def _end_driver(self) -> None:
        self._driver.terminate()
        self._driver.wait(10)

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        url = f"http://127.0.0.1:{self._port}/session{self._session}{path}"
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            with error:
                raise RuntimeError(json.load(error)["value"]["message"]) from None

    def open(self, page: Path, fragment: str = "") -> None:
        """Load a local file and wait until the report says it is ready."""
        self._call("POST", "/url", {"url": "about:blank"})
        self._call("POST", "/url", {"url": page.resolve().as_uri() + (f"#{fragment}" if fragment else "")})
        self.wait("return document.body.dataset.ready === 'yes'")

    def run(self, script: str, *arguments: Any) -> Any:
        """The value that a piece of JavaScript returns."""
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def wait(self, script: str) -> Any:
        """Run until it returns something true; fail after ten seconds."""
        for _ in range(200):
            if value := self.run(script):
                return value
            time.sleep(0.05)
        raise AssertionError(f"never came true: {script}")

    def press(self, key: str, *, shift: bool = False) -> None:
        """Press a key where the focus is."""
        code = KEYS.get(key, key)
        strokes = [{"type": "keyDown", "value": code}, {"type": "keyUp", "value": code}]
        held = [{"type": "keyDown", "value": "\ue008"}] if shift else []
        freed = [{"type": "keyUp", "value": "\ue008"}] if shift else []
        self._call("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": held + strokes + freed}]})

    def click(self, selector: str, *, at: tuple[float, float] = (0.5, 0.5)) -> None:
        """Click an element at a share of its width and height."""
        x, y = self.run(
            "const e = document.querySelector(arguments[0]); e.scrollIntoView({block: 'nearest'});"
            "const b = e.getBoundingClientRect();"
            "return [Math.round(b.left + b.width * arguments[1]), Math.round(b.top + b.height * arguments[2])]",
            selector,
            *at,
        )
        moves = [{"type": "pointerMove", "duration": 0, "x": x, "y": y, "origin": "viewport"}]
        moves += [{"type": "pointerDown", "button": 0}, {"type": "pointerUp", "button": 0}]
        self._call("POST", "/actions", {"actions": [{"type": "pointer", "id": "mouse", "actions": moves}]})

    def screenshot(self) -> bytes:
        """The window as PNG."""
        return base64.b64decode(self._call("GET", "/screenshot"))

    def complaints(self) -> list[str]:
        """What the browser's console has said since the last call: errors and broken policies."""
        return [line["message"] for line in self._call("POST", "/se/log", {"type": "browser"})]

    def emulate(self, command: str, parameters: dict[str, Any]) -> None:
        """Send one DevTools command, such as ``Emulation.setEmulatedMedia``."""
        self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})
