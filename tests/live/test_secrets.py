"""Passwords in addresses of cameras and receivers reach no log, id, page or process list."""

from __future__ import annotations

import base64
import logging
from collections.abc import Sequence

import pytest

from pipeline.errors import UsageError
from pipeline.live.sink_webhook import WebhookSink
from pipeline.live.sinks import Item, Outlet, open_sinks
from pipeline.sources.live_open import parse_cameras
from pipeline.sources.live_redact import redact, secrets_of
from tests.live.servers import http_server, wait_for
from tests.live.test_sinks import event

ADDRESSES = {
    "rtsp://admin:hunter2@host/x": "rtsp://***@host/x",
    "rtsp://admin:hun/ter2@host/x": "rtsp://***@host/x",
    "rtsp://admin:hunt?er2@host/x": "rtsp://***@host/x",
    "rtsp://admin:hun@ter2@host/x": "rtsp://***@host/x",
    "rtsp:/admin:hunter2@host/x": "rtsp:/***@host/x",
    "http://host/video?usr=admin&pwd=hunter2&res=hd": "http://host/video?usr=***&pwd=***&res=hd",
    "rtsp://host/user=admin_password=hunter2_channel=1_stream=0.sdp": (
        "rtsp://host/user=***_password=***_channel=1_stream=0.sdp"
    ),
    "rtsp://host:554/cam@2/main": "rtsp://***@2/main",  # in doubt, more is hidden
    "rtsp://host/cam@2/main?channel=1": "rtsp://host/cam@2/main?channel=1",
    "rtsp://[fe80::1]:554/a?token=hunter2": "rtsp://[fe80::1]:554/a?token=***",
    "/a/b=c.mp4": "/a/b=c.mp4",
}


@pytest.mark.parametrize("uri", ADDRESSES)
def test_addresses_are_shown_without_credentials(uri: str) -> None:
    assert redact(uri) == ADDRESSES[uri]
    assert not any(secret in redact(uri) for secret in secrets_of(uri))


@pytest.mark.parametrize("uri", [u for u in ADDRESSES if u.startswith(("rtsp://", "http://"))])
def test_ids_hold_no_credentials(uri: str) -> None:
    try:
        [spec] = parse_cameras([uri])
    except UsageError as error:
        shown = str(error)
    else:
        shown = f"{spec.stream_id} {spec!r}"
    assert not any(word in shown for word in ("admin", "hunter", "ter2", "er2"))


def test_a_password_that_hides_the_host_is_refused_with_advice() -> None:
    with pytest.raises(UsageError, match="percent-encode"):
        parse_cameras(["rtsp://admin:pa/ss@host/x"])
    with pytest.raises(UsageError, match="percent-encode") as refusal:
        WebhookSink("http://user:hun/ter2@host/hook")
    assert "hun" not in str(refusal.value)


def test_a_webhook_logs_in() -> None:
    got: list[tuple[str, str]] = []

    def receive(request) -> None:  # type: ignore[no-untyped-def]
        request.rfile.read(int(request.headers["Content-Length"]))
        got.append((request.path, request.headers.get("Authorization", "")))
        request.send_response(200)
        request.send_header("Content-Length", "0")
        request.end_headers()

    with http_server(receive) as address:
        [outlet] = open_sinks(
            [address.replace("://", "://user:hunt%2Fer2@") + "/hook"], capacity=5, segment_s=60, rows_per_part=100
        )
        outlet.put(event(0))
        assert wait_for(lambda: outlet.num_written + outlet.num_lost > 0)
        outlet.close(5)
    assert outlet.num_lost == 0
    assert "hunt" not in outlet.name
    assert got == [("/hook", "Basic " + base64.b64encode(b"user:hunt/er2").decode())]


def test_an_answer_that_is_no_http_is_tried_again() -> None:
    answers = iter([b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"])

    def receive(request) -> None:  # type: ignore[no-untyped-def]
        request.rfile.read(int(request.headers["Content-Length"]))
        request.wfile.write(next(answers))
        request.close_connection = True

    with http_server(receive) as address:
        assert WebhookSink(address, sleep=lambda _: None).write([event(0)]) == 0


def test_what_a_sink_complains_about_holds_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    class Talkative:
        wants_pictures = False

        def write(self, items: Sequence[Item]) -> int:
            raise ValueError("nonnumeric port: 'hunter2@host'")

        def flush(self) -> None:
            return

        def close(self) -> None:
            return

    secrets = secrets_of("http://user:hunter2@host/hook")
    outlet = Outlet("talkative", Talkative(), capacity=5, secrets=secrets)
    with caplog.at_level(logging.ERROR):
        outlet.put(event(0))
        assert wait_for(lambda: outlet.num_lost == 1)
        outlet.close(5)
    assert outlet.error == "ValueError"
    assert "hunter2" not in caplog.text
