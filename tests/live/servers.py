"""Real servers for tests: RTSP as a process of its own, HTTP in a thread. All on 127.0.0.1 and ports of the system."""

from __future__ import annotations

import http.server
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType


class RtspProcess:
    """The test camera as a process that can be killed, frozen, and started again on its port. A context manager."""

    def __init__(
        self,
        *,
        cameras: int = 1,
        fps: float = 10,
        size: str = "320x192",
        port: int = 0,
        seconds: float = 120,
        film: Path | None = None,
    ) -> None:
        self._options = ["--cameras", str(cameras), "--fps", str(fps), "--size", size, "--seconds", str(seconds)]
        self._options += ["--film", str(film)] if film is not None else []
        self.port = port
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> RtspProcess:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.live.rtsp_server", str(self.port), *self._options]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline().split()[1])

    def url(self, camera: int = 0, credentials: str = "") -> str:
        return f"rtsp://{credentials}127.0.0.1:{self.port}/cam{camera}"

    def tell(self, line: str) -> None:
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process = None


Handler = Callable[[http.server.BaseHTTPRequestHandler], None]


@contextmanager
def http_server(answer: Handler) -> Iterator[str]:
    """A threaded HTTP server; ``answer`` gets each GET and POST. Yields its address without a final slash."""

    class Answering(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                answer(self)
            except OSError:
                self.close_connection = True

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def wait_for(condition: Callable[[], bool], timeout_s: float = 15.0, every_s: float = 0.02) -> bool:
    """Whether ``condition`` came true in time."""
    until_s = time.monotonic() + timeout_s
    while time.monotonic() < until_s:
        if condition():
            return True
        time.sleep(every_s)
    return condition()
