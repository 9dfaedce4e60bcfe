"""Real cameras: RTSP by a server of our own, MJPEG and playlists over HTTP, files; and what goes wrong with them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from configs.schema import LiveConfig
from pipeline import decode
from pipeline.errors import SourceError, UsageError
from pipeline.sources.live import LiveFrame, LiveSource, Lost, Slot, State
from pipeline.sources.live_clock import StreamClock
from pipeline.sources.live_open import parse_cameras
from tests.live.rtsp_server import picture, read_clock
from tests.live.servers import RtspProcess, http_server, wait_for

QUICK = LiveConfig(stall_timeout_s=1.0, open_timeout_s=3.0, backoff_cap_s=0.5)


class Driver:
    """Turns a source the way the tracking loop does."""

    def __init__(self, uri: str, config: LiveConfig = QUICK, *, realtime: bool = False) -> None:
        [spec] = parse_cameras([uri], realtime=realtime)
        self.wake = threading.Event()
        self.source = LiveSource(spec, config, self.wake, seed=0)
        self.frames: list[LiveFrame] = []
        self.lost: list[Lost] = []

    def turn_until(self, condition: Callable[[Driver], bool], timeout_s: float = 15.0) -> bool:
        until_s = time.monotonic() + timeout_s
        while time.monotonic() < until_s:
            self.wake.clear()
            lost = self.source.poll()
            if lost is not None:
                self.lost.append(lost)
            frame = self.source.take()
            if frame is not None:
                self.frames.append(frame)
            if condition(self):
                return True
            if frame is None:
                self.wake.wait(0.02)
        return False

    def more(self, count: int) -> Callable[[Driver], bool]:
        wanted = len(self.frames) + count
        return lambda d: len(d.frames) >= wanted

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_: object) -> None:
        self.source.stop()
        self.source.join(5.0)


def write_video(path: Path, num_frames: int = 20, fps: int = 25, size: tuple[int, int] = (64, 96)) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"preset": "ultrafast", "g": "10"})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for k in range(num_frames):
            image = picture(size[1], size[0], k / fps, k)
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                container.mux(packet)
        container.mux(stream.encode(None))
    return path


def test_a_file_gives_the_frames_and_times_that_track_sees(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4")
    table = decode.probe(str(path), "a")
    with Driver(str(path)) as driver:
        assert driver.turn_until(lambda d: d.source.state is State.ENDED)
        assert [f.frame.index for f in driver.frames] == list(range(20))
        assert [f.frame.pts_s for f in driver.frames] == table.pts_s.tolist()
        for live, offline in zip(driver.frames, decode.read(table, 0, 20), strict=True):
            np.testing.assert_array_equal(live.frame.image, offline.image)
        assert driver.lost == [Lost("", True)]
        assert driver.source.slot.num_dropped == 0


def test_a_file_at_its_own_speed_drops_for_a_slow_consumer_and_numbers_show_it(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", num_frames=25, fps=50)
    config = QUICK.model_copy(update={"queue_frames": 1})
    with Driver(str(path), config, realtime=True) as driver:

        def slowly(d: Driver) -> bool:
            time.sleep(0.1)
            return d.source.state is State.ENDED

        assert driver.turn_until(slowly)
        indices = [f.frame.index for f in driver.frames]
        assert indices == sorted(set(indices))
        assert indices[-1] == 24
        assert driver.source.slot.num_dropped == 25 - len(indices) > 0


@pytest.mark.parametrize(("policy", "kept", "dropped"), [("oldest", [3, 4], 3), ("latest", [0, 1], 3)])
def test_drop_policies(policy: str, kept: list[int], dropped: int) -> None:
    slot = Slot(policy, 2, threading.Event())
    for k in range(5):
        slot.put(k, lambda: True)  # type: ignore[arg-type]
    assert [slot.take(), slot.take(), slot.take()] == [*kept, None]
    assert slot.num_dropped == dropped


def test_waiting_slot_holds_the_reader_until_there_is_room() -> None:
    slot = Slot("wait", 1, threading.Event())
    slot.put(0, lambda: True)  # type: ignore[arg-type]
    reader = threading.Thread(target=slot.put, args=(1, lambda: True))
    reader.start()
    assert wait_for(lambda: slot.is_blocked)
    assert slot.take() == 0
    reader.join(5)
    assert slot.take() == 1
    assert slot.num_dropped == 0


def test_stream_time_rises_whatever_the_camera_says() -> None:
    clock = StreamClock()
    assert [clock.stamp(p, n, 1) for p, n in ((5.0, 100.0), (5.1, 100.1))] == [5.0, 5.1]
    assert clock.stamp(None, 100.2, 1) == pytest.approx(5.2)
    assert clock.stamp(0.0, 103.2, 2) == pytest.approx(8.2)  # a new connection starts at 0 again
    assert clock.stamp(0.1, 103.3, 2) == pytest.approx(8.3)
    assert clock.stamp(9000.0, 103.4, 2) == pytest.approx(8.4)  # the camera's clock was set
    assert clock.stamp(9000.1, 103.5, 2) == pytest.approx(8.5)
    assert clock.stamp(8900.0, 103.6, 2) == pytest.approx(8.6)
    assert clock.stamp(8900.0, 103.6, 2) > 8.6


def test_stream_time_counts_a_stall_that_a_late_frame_ended() -> None:
    """A camera freezes for three seconds; what it had in the pipe comes first, and then another connection."""
    clock = StreamClock()
    for k in range(20):
        clock.stamp(5 + k / 10, 100 + k / 10, 1)
    assert clock.stamp(7.0, 105.0, 1) == pytest.approx(7.0)
    assert clock.stamp(0.0, 105.2, 2) == pytest.approx(10.2, abs=0.01)
    assert clock.stamp(0.1, 105.3, 2) == pytest.approx(10.3, abs=0.01)
    assert clock.stamp(None, 105.4, 2) == pytest.approx(10.4, abs=0.01)


def test_stream_time_follows_a_clock_that_runs_slower_than_ours() -> None:
    """A day at one part in ten thousand: eight seconds, that a reconnection must not make up for at once."""
    clock, rate = StreamClock(), 1 - 1e-4
    for minute in range(24 * 60):
        clock.stamp(minute * 60 * rate, minute * 60.0, 1)
    last = 23.99 * 3600 * rate
    clock.stamp(last, 23.99 * 3600, 1)
    assert clock.stamp(0.0, 23.99 * 3600 + 2, 2) == pytest.approx(last + 2, abs=0.1)


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_rtsp_gives_fresh_frames(transport: str) -> None:
    with RtspProcess() as camera:
        config = QUICK.model_copy(update={"rtsp_transport": transport})
        with Driver(camera.url(), config) as driver:
            assert driver.turn_until(driver.more(5))
            assert driver.source.state is State.LIVE
            pts = [f.frame.pts_s for f in driver.frames]
            assert pts == sorted(pts)
            image = driver.frames[-1].frame.image
            assert image.shape == (192, 320, 3)
            read_clock(image)
            assert abs(image[100:].astype(int) - 150).max() > 60  # something but the ground is in the picture


def test_server_death_is_noticed_and_the_stream_comes_back() -> None:
    with RtspProcess() as camera, Driver(camera.url()) as driver:
        assert driver.turn_until(driver.more(3))
        camera.kill()
        assert driver.turn_until(lambda d: bool(d.lost))
        assert not driver.lost[0].is_final
        before = driver.frames[-1].frame
        camera.start()
        assert driver.turn_until(lambda d: d.frames[-1].gap_s is not None)
        after = driver.frames[-1]
        assert after.gap_s is not None and after.gap_s > 0
        assert after.frame.index > before.index
        assert after.frame.pts_s - before.pts_s == pytest.approx(after.gap_s, abs=0.5)
        assert driver.source.counters.reconnects == 1


def test_frozen_camera_is_given_up_by_the_watchdog() -> None:
    with RtspProcess() as camera, Driver(camera.url()) as driver:
        assert driver.turn_until(driver.more(3))
        camera.freeze()
        assert driver.turn_until(lambda d: bool(d.lost))
        assert "for 1 s" in driver.lost[0].reason
        camera.thaw()
        assert driver.turn_until(lambda d: d.frames[-1].gap_s is not None)


def test_garbage_and_another_resolution_pass(caplog: pytest.LogCaptureFixture) -> None:
    with RtspProcess() as camera, Driver(camera.url()) as driver:
        assert driver.turn_until(driver.more(3))
        camera.tell("garbage")
        time.sleep(1.2)
        assert driver.turn_until(driver.more(5))
        camera.tell("size 160x96")
        assert driver.turn_until(lambda d: d.frames[-1].note != "")
        assert "160x96" in driver.frames[-1].note
        assert driver.turn_until(driver.more(3))
        assert driver.frames[-1].note == ""
        assert driver.frames[-1].frame.image.shape == (192, 320, 3)


def test_no_credentials_in_logs_or_errors(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG"), Driver("rtsp://admin:hunter2@127.0.0.1:9/cam0") as driver:
        assert driver.turn_until(lambda d: len(d.lost) >= 2)
        seen = caplog.text + repr(driver.source.spec) + driver.source.error + driver.source.spec.stream_id
        assert "hunter2" not in seen
        assert "refused" in driver.source.error


def test_give_up_after() -> None:
    config = QUICK.model_copy(update={"give_up_after_s": 0.5, "backoff_cap_s": 0.25})
    with Driver("rtsp://127.0.0.1:9/cam0", config) as driver:
        assert driver.turn_until(lambda d: d.source.state is State.FAILED)
        assert driver.lost[-1].is_final


def jpeg(k: int) -> bytes:
    ok, data = cv2.imencode(".jpg", picture(96, 64, k / 10, k))
    assert ok
    return data.tobytes()


def test_mjpeg_over_http_with_a_password() -> None:
    def answer(request) -> None:  # type: ignore[no-untyped-def]
        if request.headers.get("Authorization") != "Basic dXNlcjpwYXNz":
            request.send_error(401)
            return
        request.send_response(200)
        request.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        request.end_headers()
        for k in range(200):
            body = jpeg(k)
            request.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(body))
            request.wfile.write(body + b"\r\n")
            time.sleep(0.05)

    with http_server(answer) as address:
        with Driver(address.replace("://", "://user:pass@") + "/video") as driver:
            assert driver.turn_until(driver.more(5))
            assert driver.frames[-1].frame.image.shape == (64, 96, 3)
        with Driver(address + "/video") as driver:
            assert driver.turn_until(lambda d: bool(d.lost))
            assert "401" in driver.lost[0].reason


def test_a_playlist_reads_no_local_file_and_calls_no_other_host(tmp_path: Path) -> None:
    secret = write_video(tmp_path / "secret.ts")
    asked: list[str] = []
    playlists = {
        "/file.m3u8": f"file://{secret}",
        "/path.m3u8": str(secret),
        "/other.m3u8": "http://localhost:{port}/good.ts",
        "/redirect.m3u8": "/away.ts",
        "/good.m3u8": "/good.ts",
    }

    def answer(request) -> None:  # type: ignore[no-untyped-def]
        asked.append(f"{request.headers['Host'].partition(':')[0]}{request.path}")
        port = request.server.server_address[1]
        if request.path == "/away.ts":
            request.send_response(302)
            request.send_header("Location", f"http://localhost:{port}/good.ts")
            request.end_headers()
            return
        if request.path == "/good.ts":
            body = secret.read_bytes()
        else:
            if request.path not in playlists:
                request.send_error(404)
                return
            line = playlists[request.path].format(port=port)
            head = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:1\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:0.8,\n"
            body = f"{head}{line}\n#EXT-X-ENDLIST\n".encode()
        request.send_response(200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    with http_server(answer) as address:
        for name in ("file", "path", "other", "redirect"):
            with Driver(f"{address}/{name}.m3u8") as driver:
                assert driver.turn_until(lambda d: bool(d.lost)), name
                assert not driver.frames, name
        assert not [a for a in asked if a.startswith("localhost")]
        with Driver(f"{address}/good.m3u8", QUICK.model_copy(update={"drop": "wait"})) as driver:
            assert driver.turn_until(driver.more(20))


def test_mpegts_over_tcp_is_never_taken_for_a_playlist() -> None:
    import socket

    asked: list[str] = []
    with (
        http_server(lambda request: asked.append(request.path)) as address,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):

        def hand_out() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(f"#EXTM3U\n#EXTINF:1,\n{address}/x.ts\n#EXT-X-ENDLIST\n".encode() * 50)

        thread = threading.Thread(target=hand_out)
        thread.start()
        with Driver(f"tcp://127.0.0.1:{listener.getsockname()[1]}") as driver:
            assert driver.turn_until(lambda d: bool(d.lost))
        thread.join(5)
    assert asked == []


def test_a_playlist_in_disguise_of_a_file_is_refused(tmp_path: Path) -> None:
    secret = write_video(tmp_path / "secret.ts")
    disguise = tmp_path / "harmless.mp4"
    disguise.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:0.8,\n{secret}\n#EXT-X-ENDLIST\n")
    with Driver(str(disguise)) as driver:
        assert driver.turn_until(lambda d: d.source.state is State.FAILED)
        assert not driver.frames


def test_too_large_frames_are_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4")
    with Driver(str(path), QUICK.model_copy(update={"max_frame_px": 1024})) as driver:
        assert driver.turn_until(lambda d: d.source.state is State.FAILED)
        assert "too large" in driver.source.error or "Invalid" in driver.source.error


@pytest.mark.parametrize("uri", ["ftp://host/x", "rtsp://", "file:///no/such", "rtsp://host/a b", "http://h:99999/x"])
def test_what_cannot_be_streamed_is_refused(uri: str) -> None:
    with pytest.raises((UsageError, SourceError)):
        parse_cameras([uri])


def test_ids_are_unique_and_fit_for_folders(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a b.mp4", num_frames=2)
    uris = ["rtsp://u:p@cam1/live", "rtsp://cam1/live", "rtsp://cam1:8554/live?token=x", "0", str(path)]
    ids = [spec.stream_id for spec in parse_cameras(uris)]
    assert ids == ["cam1-live", "cam1-live-2", "cam1-8554-live", "webcam0", "a-b"]
