"""What a source makes of silence, garbage, playlists and failed tries."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import pytest

from configs.schema import LiveConfig
from pipeline.errors import NoVideoError, SourceError
from pipeline.sources import live as live_source
from pipeline.sources.live import LiveSource, Rhythm, State, _PlaylistPace, _Reader
from pipeline.sources.live_open import CameraSpec, UnfitSourceError
from tests.live.rtsp_server import picture
from tests.live.servers import RtspProcess, http_server, wait_for
from tests.live.test_sources import QUICK, Driver, write_video

RTSP = CameraSpec("cam", "rtsp://127.0.0.1:9/x")


def source_of(spec: CameraSpec = RTSP, **values: Any) -> LiveSource:
    return LiveSource(spec, LiveConfig(**values), threading.Event(), seed=0)


def image() -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(picture(96, 64, 0.0, 0), format="rgb24")


# -- silence ------------------------------------------------------------------------------------------------------


def test_a_silence_is_longer_than_a_second_and_five_frames() -> None:
    rhythm = Rhythm()
    assert [rhythm.came(t / 10, 1, was_silent=False) for t in range(10)] == [None] * 10
    assert rhythm.silent_s(1.8) is None
    assert rhythm.silent_s(2.0) == pytest.approx(1.1)
    assert rhythm.came(2.1, 1, was_silent=False) == pytest.approx(1.2)
    assert rhythm.came(2.9, 1, was_silent=True) == pytest.approx(0.8)  # it was said already
    slow = Rhythm()
    assert [slow.came(2.0 * t, 1, was_silent=False) for t in range(5)] == [None] * 5
    assert slow.silent_s(17.0) is None
    assert slow.silent_s(19.0) is not None
    assert slow.came(100.0, 2, was_silent=False) is None  # another connection: its gap is told otherwise


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = time.monotonic()
        monkeypatch.setattr(live_source.time, "monotonic", lambda: self.now_s)


def test_a_short_silence_is_said_at_once_and_shows_on_the_next_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    source, reader = source_of(queue_frames=8), None
    clock = Clock(monkeypatch)
    reader = source._reader = _Reader(source, 1)
    reader.has_frames = True
    for _ in range(6):
        source.arrive(image(), reader)
        reader.last_sign_s = clock.now_s
        assert source.poll() is None
        clock.now_s += 0.2
    while (frame := source.take()) is not None:
        assert frame.gap_s is None
    clock.now_s += 0.7
    assert source.poll() is None
    clock.now_s += 0.6
    lost = source.poll()
    assert lost is not None
    assert (lost.reason, lost.is_final, source.state) == ("no frame for 1.5 s", False, State.LIVE)
    assert source.poll() is None
    source.arrive(image(), reader)
    source.arrive(image(), reader)
    [gap_s, none] = [f.gap_s for _ in range(2) if (f := source.take()) is not None]
    assert gap_s == pytest.approx(1.5, abs=0.01)
    assert none is None
    assert source.counters.reconnects == 0


def test_a_consumer_that_makes_the_reader_wait_is_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(drop="wait", queue_frames=1)
    clock = Clock(monkeypatch)
    reader = source._reader = _Reader(source, 1)
    reader.has_frames = True
    put = source.slot.put

    def slow(*arguments: Any) -> None:
        put(*arguments)
        clock.now_s += 5.0

    monkeypatch.setattr(source.slot, "put", slow)
    for _ in range(6):
        source.arrive(image(), reader)
        frame = source.take()
        assert frame is not None
        assert frame.gap_s is None
        clock.now_s += 0.1


def test_damaged_frames_are_no_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of()
    damaged = SimpleNamespace(width=96, height=64, is_corrupt=True)

    @contextmanager
    def opened(*_: object) -> Iterator[Any]:
        packets = [SimpleNamespace(decode=lambda: [damaged])] * 5
        yield SimpleNamespace(format=SimpleNamespace(name="rtsp"), demux=lambda _: iter(packets)), None

    monkeypatch.setattr(live_source, "open_live", opened)
    reader = _Reader(source, 1)
    signs = []
    count = source.count_corrupt
    monkeypatch.setattr(source, "count_corrupt", lambda: (count(), signs.append(reader.last_sign_s)))
    reader._read()
    assert source.counters.corrupt == 5
    assert len(set(signs)) == 1
    assert not reader.has_frames


def shown(pts_s: float, *, is_key: bool = False) -> Any:
    return SimpleNamespace(pts=round(pts_s * 1000), time_base=Fraction(1, 1000), key_frame=is_key)


def test_frames_that_rest_on_lost_ones_are_passed_over_up_to_the_next_key_frame() -> None:
    loss = live_source._Loss()
    before = [loss.shows_in(shown(0.1 * k, is_key=k == 0)) for k in range(20)]
    after = [loss.shows_in(shown(3.0 + 0.1 * k, is_key=k == 6)) for k in range(12)]
    assert before == [False] * 20
    assert after == [True] * 6 + [False] * 6


def test_a_camera_that_paused_and_sends_no_key_frame_is_believed_in_the_end() -> None:
    loss = live_source._Loss()
    for k in range(20):
        assert not loss.shows_in(shown(0.1 * k))
    after = [loss.shows_in(shown(9.0 + 0.1 * k)) for k in range(40)]
    assert after == [True] * 20 + [False] * 20
    assert not loss.shows_in(shown(0.0))  # its clock starts again


def test_a_frame_now_and_then_is_no_loss() -> None:
    loss = live_source._Loss()
    assert not any(loss.shows_in(shown(t)) for t in (0, 5, 11, 15, 22, 27, 40, 44))


def test_a_camera_that_freezes_for_less_than_the_stall_timeout() -> None:
    config = QUICK.model_copy(update={"stall_timeout_s": 20.0})
    with RtspProcess() as camera, Driver(camera.url(), config) as driver:
        assert driver.turn_until(driver.more(10))
        before = len(driver.frames)
        camera.freeze()
        assert driver.turn_until(lambda d: any("no frame for" in lost.reason for lost in d.lost))
        assert driver.source.state is State.LIVE
        camera.thaw()
        assert driver.turn_until(driver.more(5))
        assert driver.source.counters.reconnects == 0
        gaps = [f.gap_s for f in driver.frames[before:] if f.gap_s is not None]
        assert gaps
        assert max(gaps) > 1


# -- tries --------------------------------------------------------------------------------------------------------


def test_giving_up_counts_from_the_first_try_that_failed() -> None:
    source = source_of(give_up_after_s=5.0)
    source.resume(100, 10.0, time.time() - 3600, (64, 96))
    now_s = time.monotonic()
    for at_s in (0, 4, 5):
        lost = source._lose("refused", False, now_s + at_s)
        assert lost is not None
        assert not lost.is_final
    lost = source._lose("refused", False, now_s + 5.1)
    assert lost is not None
    assert lost.is_final
    assert source.state is State.FAILED


@pytest.mark.parametrize(
    ("error", "is_final"),
    [
        (NoVideoError("no video stream in it"), False),
        (SourceError("no such webcam"), False),
        (UnfitSourceError("frames of 9000x9000 are too large"), True),
    ],
)
def test_only_what_never_fits_is_final(monkeypatch: pytest.MonkeyPatch, error: SourceError, is_final: bool) -> None:
    @contextmanager
    def opened(*_: object) -> Iterator[Any]:
        raise error
        yield

    monkeypatch.setattr(live_source, "open_live", opened)
    source = source_of()
    reader = _Reader(source, 1)
    reader.run()
    assert reader.is_final is is_final


def test_a_webcam_that_is_not_plugged_in_is_waited_for() -> None:
    with Driver("63") as driver:
        assert driver.turn_until(lambda d: len(d.lost) > 1)
        assert "no such webcam" in driver.lost[0].reason
        assert driver.source.state in (State.WAITING, State.CONNECTING)


def test_a_file_goes_on_after_what_was_seen_of_it(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4")
    with Driver(str(path)) as driver:
        driver.source.resume(15, 0.56, time.time(), (64, 96))
        assert driver.turn_until(lambda d: d.source.state is State.ENDED)
        assert [f.frame.index for f in driver.frames] == [15, 16, 17, 18, 19]
        assert driver.frames[-1].frame.pts_s == pytest.approx(19 / 25, abs=0.05)


# -- playlists ----------------------------------------------------------------------------------------------------


def test_the_frames_of_a_segment_are_spread_over_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, released = Clock(monkeypatch), []
    monkeypatch.setattr(live_source.time, "sleep", lambda s: setattr(clock, "now_s", clock.now_s + s))
    pace, start_s = _PlaylistPace(), clock.now_s
    for k in range(100):
        pace.wait(k / 10)
        released.append(clock.now_s - start_s)
    assert released[-1] == pytest.approx(9.9 / 1.05)
    clock.now_s += 6.0  # a late segment: no burst, and what was lost is made up for
    late_s = clock.now_s
    for k in range(100, 103):
        pace.wait(k / 10)
    assert clock.now_s - late_s == pytest.approx(0.1 / 1.05 - 0.005, abs=0.01)  # one frame's time may be caught up
    pace.wait(9000.0)  # another clock
    assert clock.now_s - late_s < 0.3


def test_a_live_playlist_is_read_without_bursts(tmp_path: Path) -> None:
    """By ffmpeg, one second per segment; at the default values nearly all of it used to be dropped."""
    command = ["ffmpeg", "-v", "error", "-re", "-f", "lavfi", "-i", "testsrc=size=160x96:rate=10", "-t", "60"]
    command += ["-c:v", "libx264", "-preset", "ultrafast", "-g", "10", "-pix_fmt", "yuv420p", "-f", "hls"]
    command += ["-hls_time", "1", "-hls_list_size", "6", "-hls_flags", "delete_segments", str(tmp_path / "x.m3u8")]

    def answer(request) -> None:  # type: ignore[no-untyped-def]
        path = tmp_path / Path(request.path).name
        if not path.is_file():
            request.send_error(404)
            return
        body = path.read_bytes()
        request.send_response(200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    with subprocess.Popen(command) as ffmpeg:
        try:
            assert wait_for(lambda: len(list(tmp_path.glob("*.ts"))) > 3, 40)
            with http_server(answer) as address, Driver(f"{address}/x.m3u8", LiveConfig()) as driver:
                assert driver.turn_until(driver.more(60), 60)
                dropped, arrived = driver.source.slot.num_dropped, driver.source.counters.arrived
                assert driver.source.counters.reconnects == 0
                assert driver.lost == []
        finally:
            ffmpeg.kill()
    assert dropped <= 0.2 * arrived
    took_s = driver.frames[-1].arrived_s - driver.frames[0].arrived_s
    assert took_s > 0.8 * (driver.frames[-1].frame.pts_s - driver.frames[0].frame.pts_s)
