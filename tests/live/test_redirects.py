"""An RTSP camera that sends us elsewhere: only to hosts that are allowed."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pipeline.sources.live_open import open_live, parse_cameras, refuse_rtsp_redirect
from tests.live.running import live


class Answer(socketserver.StreamRequestHandler):
    """Answers every request with the server's redirection."""

    def handle(self) -> None:
        while self.rfile.readline().strip():
            pass
        self.server.asked += 1  # type: ignore[attr-defined]
        target = self.server.target  # type: ignore[attr-defined]
        head = f"RTSP/1.0 302 Moved\r\nCSeq: 1\r\nLocation: {target}\r\n\r\n" if target else "RTSP/1.0 404 No\r\n\r\n"
        self.wfile.write(head.encode())


@contextmanager
def camera(target: str) -> Iterator[tuple[str, socketserver.TCPServer]]:
    with socketserver.TCPServer(("127.0.0.1", 0), Answer) as server:
        server.target, server.asked = target, 0  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield f"rtsp://admin:hunter2@127.0.0.1:{server.server_address[1]}/cam", server
        server.shutdown()
        thread.join()


def test_another_host_is_refused_before_ffmpeg_follows() -> None:
    with camera("") as (_, other):
        # "localhost" is another name than 127.0.0.1, so another host, and one that we can watch.
        target = f"rtsp://localhost:{other.server_address[1]}/inside"
        with camera(target) as (url, first):
            [spec] = parse_cameras([url])
            with pytest.raises(PermissionError, match="another host, localhost"), open_live(spec, live().live):
                pass
            assert (first.asked, other.asked) == (1, 0)  # type: ignore[attr-defined]
            allowed = live(allow_hosts=("localhost",)).live
            refuse_rtsp_redirect(url, allowed)


@pytest.mark.parametrize("target", ["", "rtsp://127.0.0.1:1/other"])
def test_its_own_host_and_other_answers_are_for_ffmpeg(target: str) -> None:
    with camera(target) as (url, _):
        refuse_rtsp_redirect(url, live().live)
    refuse_rtsp_redirect("rtsp://127.0.0.1:9/nobody", live().live)
