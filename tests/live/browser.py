"""Real Chromium, driven by chromedriver over the W3C WebDriver protocol (plain HTTP and JSON)."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


def is_available() -> bool:
    """Whether chromium and chromedriver are installed."""
    return shutil.which("chromium") is not None and shutil.which("chromedriver") is not None


class Browser:
    """One headless browser window. A context manager."""

    def __init__(self, width: int = 1280, height: int = 900, *, dark: bool = False) -> None:
        self._size, self._dark = (width, height), dark
        self._base = ""
        self._driver: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Browser:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._driver = subprocess.Popen(
            ["chromedriver", f"--port={port}", "--log-level=OFF"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        root = f"http://127.0.0.1:{port}"
        self._wait_until_ready(root)
        width, height = self._size
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        arguments += [f"--window-size={width},{height}"]
        options: dict[str, Any] = {"args": arguments, "binary": shutil.which("chromium")}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        answer = _call(f"{root}/session", {"capabilities": {"alwaysMatch": wanted}}, timeout_s=60)
        self._base = f"{root}/session/{answer['sessionId']}"
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._devtools("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if self._dark else "light"}
        self._devtools("Emulation.setEmulatedMedia", {"features": [scheme]})
        return self

    @staticmethod
    def _wait_until_ready(root: str) -> None:
        until_s = time.monotonic() + 30
        while time.monotonic() < until_s:
            try:
                _call(f"{root}/status", None)
            except (OSError, urllib.error.URLError):
                time.sleep(0.1)
            else:
                return
        raise TimeoutError("chromedriver did not start")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if self._base:
                _call(self._base, None, method="DELETE")
        finally:
            if self._driver is not None:
                self._driver.terminate()
                self._driver.wait(10)

    def _devtools(self, command: str, parameters: dict[str, Any]) -> None:
        _call(f"{self._base}/goog/cdp/execute", {"cmd": command, "params": parameters})

    def open(self, url: str) -> None:
        """Go there."""
        _call(f"{self._base}/url", {"url": url}, timeout_s=60)

    def run(self, script: str, *arguments: Any) -> Any:
        """The value of a function body."""
        return _call(f"{self._base}/execute/sync", {"script": script, "args": list(arguments)})

    def wait(self, script: str, *arguments: Any, timeout_s: float = 20.0) -> Any:
        """Wait until an expression is true; its value."""
        until_s = time.monotonic() + timeout_s
        while time.monotonic() < until_s:
            if value := self.run(f"return {script}", *arguments):
                return value
            time.sleep(0.1)
        raise TimeoutError(f"never true: {script}; the page says: {self.run('return document.body.innerText')}")

    def find(self, selector: str) -> str:
        """The id of the first element that matches."""
        found = _call(f"{self._base}/element", {"using": "css selector", "value": selector})
        return str(found[_ELEMENT])

    def click(self, selector: str) -> None:
        """Click like a user: the element has to be visible and free."""
        _call(f"{self._base}/element/{self.find(selector)}/click", {})

    def type(self, selector: str, text: str) -> None:
        """Type into an element."""
        _call(f"{self._base}/element/{self.find(selector)}/value", {"text": text})

    def press(self, keys: str) -> None:
        """Press keys on what has the focus (W3C key codes)."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        _call(f"{self._base}/actions", {"actions": [{"type": "key", "id": "k", "actions": actions}]})

    def screenshot(self, path: Path) -> Path:
        """Write what is seen as PNG."""
        path.write_bytes(base64.b64decode(_call(f"{self._base}/screenshot", None)))
        return path

    def complaints(self) -> list[str]:
        """Errors and warnings of the console since the last call."""
        entries = _call(f"{self._base}/se/log", {"type": "browser"})
        return [e["message"] for e in entries if e["level"] in ("SEVERE", "WARNING")]


def _call(url: str, body: dict[str, Any] | None, *, method: str | None = None, timeout_s: float = 30) -> Any:
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=timeout_s) as answer:
            return json.loads(answer.read())["value"]
    except urllib.error.HTTPError as error:
        with error:
            raise RuntimeError(error.read().decode()[:500]) from None
