"""The page's answers, controls and doors: what it serves, what it lets change, whom it refuses."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipeline.errors import UsageError
from pipeline.live.server import is_loopback, parse_address, serve
from pipeline.live.urls import is_allowed
from tests.live.running import Running, live
from tests.live.servers import RtspProcess, wait_for

TOKEN = "a-long-token"


@pytest.fixture(scope="module")
def camera() -> Iterator[RtspProcess]:
    with RtspProcess(cameras=2) as process:
        yield process


@pytest.fixture(scope="module")
def running(camera: RtspProcess) -> Iterator[Running]:
    config = live(allow_urls=(f"rtsp://127.0.0.1:{camera.port}/*",), max_cameras=2)
    with Running([camera.url(0)], config) as service:
        assert wait_for(lambda: any(s["masklets"] >= 2 for s in service.board.status), 30)
        yield service


def test_streams_and_snapshot(running: Running, camera: RtspProcess) -> None:
    [status] = running.ask("/streams").json()["streams"]
    assert status["state"] == "live"
    assert status["url"] == camera.url(0)
    assert status["size"] == [320, 192]
    assert {"fps", "latency_s", "dropped", "objects", "masklets"} <= set(status)
    answer = running.ask(f"/streams/{status['id']}/snapshot.jpg")
    picture = cv2.imdecode(np.frombuffer(answer.body, np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (192, 320, 3)
    detail = running.ask(f"/streams/{status['id']}").json()
    assert {lane["prompt"] for lane in detail["timeline"]} == {"red disc", "blue disc"}
    assert running.ask("/streams/nobody/snapshot.jpg").status == 404


def test_events_stream(running: Running) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", running.address.port, timeout=20)
    connection.request("GET", "/events", headers={"Last-Event-ID": "0"})
    answer = connection.getresponse()
    assert answer.getheader("Content-Type", "").startswith("text/event-stream")
    text = b""
    while text.count(b"event: status") < 2:
        text += answer.read1(4096)
    connection.close()
    messages = [m.split("\n") for m in text.decode().split("\n\n") if "event: event" in m]
    kinds = [json.loads(m[2].removeprefix("data: "))["kind"] for m in messages]
    assert kinds[:2] == ["born", "born"]


def test_metrics_parse_and_count(running: Running) -> None:
    answer = running.ask("/metrics")
    families = {f.name: f for f in text_string_to_metric_families(answer.body.decode())}
    wanted = ["frames_arrived", "frames_tracked", "frames_dropped", "queue_depth", "live_objects", "object_events"]
    wanted += ["id_churn", "reconnects", "row_latency_seconds", "stage_seconds", "up", "sink_queue_depth", "sink_lost"]
    assert {f"masklet_{name}" for name in wanted} <= set(families)
    [tracked] = families["masklet_frames_tracked"].samples
    assert tracked.value > 0
    born = [s.value for s in families["masklet_object_events"].samples if s.labels["kind"] == "born"]
    assert sum(born) >= 2


def test_health_and_readiness(running: Running) -> None:
    assert (running.ask("/healthz").status, running.ask("/readyz").status) == (200, 200)


def test_ready_when_one_camera_works_and_the_others_are_named(camera: RtspProcess) -> None:
    with Running([camera.url(0), "rtsp://127.0.0.1:9/broken"], live()) as running:
        assert wait_for(lambda: running.ask("/readyz").status == 200, 30)
        lines = running.ask("/readyz").body.decode().split("\n")
        assert lines[0] == "ready"
        assert [line.partition(":")[0] for line in lines[1:] if line] == ["127.0.0.1-9-broken"]


def test_event_numbers_go_on_after_those_of_an_earlier_process(running: Running) -> None:
    assert running.board.num_events > 1e12
    assert len(running.board.events_after(int(1e12))) == len(running.board.events_after(0)) > 0


def test_pause_and_resume(running: Running) -> None:
    [name] = running.status()
    assert running.ask(f"/streams/{name}", "PATCH", {"paused": True}).status == 200
    assert wait_for(lambda: running.status()[name]["state"] == "paused")
    frame = running.status()[name]["frame"]
    time.sleep(0.4)
    assert running.status()[name]["frame"] == frame
    running.ask(f"/streams/{name}", "PATCH", {"paused": False})
    assert wait_for(lambda: running.status()[name]["frame"] > frame)


def test_phrases_change_and_the_others_keep_their_ids(running: Running) -> None:
    [name] = running.status()
    before = {lane["prompt"]: lane["masklet_id"] for lane in running.board.timeline(name)}
    assert running.ask(f"/streams/{name}", "PATCH", {"phrases": ["blue disc", "green disc"]}).status == 200

    def green_is_there() -> bool:
        latest = running.board.views[name].latest
        return latest is not None and "green disc" in latest.result.prompt

    assert wait_for(green_is_there)
    latest = running.board.views[name].latest
    assert latest is not None
    now = dict(zip(latest.result.prompt, latest.result.masklet_id.tolist(), strict=True))
    assert now["blue disc"] == before["blue disc"]
    assert "red disc" not in now
    assert wait_for(lambda: running.status()[name]["phrases"] == ["blue disc", "green disc"])


def test_adding_and_removing_a_camera(running: Running, camera: RtspProcess) -> None:
    answer = running.ask("/streams", "POST", {"url": camera.url(1), "phrases": ["red disc"]})
    assert answer.status == 201
    name = answer.json()["id"]
    assert wait_for(lambda: running.status().get(name, {}).get("objects", 0) == 1)
    full = running.ask("/streams", "POST", {"url": camera.url(0)})
    assert (full.status, "max_cameras" in full.json()["error"]) == (400, True)
    assert running.ask(f"/streams/{name}", "DELETE").status == 200
    assert wait_for(lambda: name not in running.status())
    assert running.ask(f"/streams/{name}", "DELETE").status == 404


@pytest.mark.parametrize(
    "url",
    ["rtsp://127.0.0.1:1/cam0", "file:///etc/passwd", "/etc/passwd", "0", "rtsp://127.0.0.1:1@evil/cam0", 5, None],
)
def test_only_allowed_addresses_are_added(running: Running, url: object) -> None:
    answer = running.ask("/streams", "POST", {"url": url, "phrases": ["x"]})
    assert answer.status == 400
    assert len(running.status()) == 1


@pytest.mark.parametrize("body", [[], {"phrases": "x"}, {"phrases": [""]}, {"phrases": ["x" * 300]}, {"phrases": [1]}])
def test_malformed_changes_are_refused(running: Running, body: object) -> None:
    [name] = running.status()
    assert running.ask(f"/streams/{name}", "PATCH", body).status == 400


def test_other_sites_are_refused(running: Running) -> None:
    own = running.address.url.rstrip("/")
    assert running.ask("/streams", headers={"Sec-Fetch-Site": "cross-site"}).status == 403
    assert running.ask("/streams", headers={"Origin": "https://evil.example"}).status == 403
    assert running.ask("/streams", headers={"Origin": own}).status == 200
    assert running.ask("/streams", headers={"Host": f"evil.example:{running.address.port}"}).status == 421
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert running.ask("/", headers=link).status == 200
    assert running.ask("/streams", headers=link).status == 403


def test_a_form_cannot_change_anything(running: Running) -> None:
    answer = running.ask("/streams", "POST", {"url": "x"}, {"Content-Type": "text/plain"})
    assert answer.status == 415
    assert running.ask("/streams", "POST", {"url": "x" * 20_000}).status == 413


def test_the_page_is_closed_to_frames_and_outside_code(running: Running) -> None:
    answer = running.ask("/")
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    nonce = policy.partition("nonce-")[2].partition("'")[0]
    assert nonce.encode() in answer.body
    assert b"%NONCE%" not in answer.body
    assert b"http://" not in answer.body
    assert b"https://" not in answer.body
    assert running.ask("/").headers["Content-Security-Policy"] != policy


def test_with_a_token_nothing_but_the_empty_page_is_open() -> None:
    with Running([], live(), token=TOKEN) as running:
        for path in ("/streams", "/events", "/metrics", "/streams/x/snapshot.jpg", "/nothing"):
            assert running.ask(path).status == 401, path
            assert running.ask(path, headers={"Authorization": "Bearer wrong"}).status == 401, path
        assert running.ask("/streams", headers={"Authorization": f"Bearer {TOKEN}"}).status == 200
        assert running.ask("/").status == 200
        assert running.ask("/healthz").status == 200


def test_no_credentials_on_the_page() -> None:
    with Running(["rtsp://admin:hunter2@127.0.0.1:9/cam"], live()) as running:
        assert wait_for(lambda: any(s["error"] for s in running.board.status))
        seen = running.ask("/streams").body + running.ask("/metrics").body
        assert b"hunter2" not in seen
        assert running.ask("/readyz").status == 503


def test_other_addresses_than_loopback_need_a_token() -> None:
    running = Running([], live())
    with pytest.raises(UsageError, match="token"), serve(running.service, running.board, "0.0.0.0:0", None):
        pass
    assert [is_loopback(h) for h in ("127.0.0.1", "localhost", "::1", "0.0.0.0")] == [True, True, True, False]
    assert parse_address("[::1]:80") == ("::1", 80)
    for bad in ("here", "1.2.3.4:", "1.2.3.4:99999", "a:b"):
        with pytest.raises(UsageError):
            parse_address(bad)


@pytest.mark.parametrize(
    ("url", "pattern", "allowed"),
    [
        ("rtsp://10.0.0.7/live", "rtsp://10.0.0.*/*", True),
        ("rtsp://10.0.0.7:8554/live", "rtsp://10.0.0.*/*", False),
        ("rtsp://10.0.0.7:8554/live", "rtsp://10.0.0.*:*/*", True),
        ("rtsp://user:pw@10.0.0.7/live", "rtsp://10.0.0.*/*", True),
        ("rtsp://10.0.0.7@evil/live", "rtsp://10.0.0.*/*", False),
        ("http://evil/?x=rtsp://10.0.0.7/", "rtsp://10.0.0.*/*", False),
        ("http://cam/video", "http://cam/video", True),
        ("http://cam/video/../admin", "http://cam/video/*", False),
        ("http://cam/video/%2e%2e/admin", "http://cam/video/*", False),
        ("http://cam\\@evil/video", "http://cam/*", False),
        ("file:///etc/passwd", "file:///*", False),
        ("udp://[::1]:5000/", "udp://[::1]:5000/", True),
    ],
)
def test_allow_list(url: str, pattern: str, allowed: bool) -> None:
    assert is_allowed(url, [pattern]) is allowed


def test_page_text_of_phrases_cannot_become_markup() -> None:
    html = (Path("pipeline/live/live.html")).read_text()
    assert "innerHTML" not in html
    assert "insertAdjacentHTML" not in html
