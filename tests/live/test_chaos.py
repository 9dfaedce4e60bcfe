"""Cameras that die, freeze, talk garbage and change; endless streams; a camera by somebody else's software."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import live as bench
from benchmarks import live_soak
from tests.live.running import fake_models
from tests.live.test_sources import Driver

SYSTEM_PYTHON = Path("/usr/bin/python3")


def check_chaos(rounds: int) -> None:
    result = bench.chaos(fake_models(), rounds)
    assert result["came_back"] == rounds
    assert result["worst_s"] < 5
    assert result["sessions"] == 1
    assert result["gaps"] >= rounds // 4
    assert result["reconnected"] >= result["gaps"]


def test_the_stream_comes_back_each_time() -> None:
    check_chaos(4)


@pytest.mark.slow
def test_the_stream_comes_back_twenty_times() -> None:
    check_chaos(20)


def check_soak(result: dict[str, Any], max_slope_mb: float) -> None:
    assert result["ids_never_reused"]
    assert result["masklets"] >= 0.8 * result["discs"]
    assert result["rss_slope_mb_per_10k"] < max_slope_mb


def test_a_short_soak_that_is_continued(tmp_path: Path) -> None:
    """Memory is flat; a leak of one picture per frame would be 370 MB per 10,000."""
    live_soak.soak(250, tmp_path, tracker="bytetrack")
    result = live_soak.soak(1750, tmp_path, tracker="bytetrack", warm_up=500)
    assert result["frames"] == 1750
    assert result["masklets"] > 40
    check_soak(result, 10)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_long_soak(tmp_path: Path) -> None:
    result = live_soak.soak(20_000, tmp_path)
    check_soak(result, 1.0)
    assert result["in_turns_cpu_p95_ratio"] <= 1.1


@pytest.mark.slow
def test_eight_cameras_one_of_them_broken() -> None:
    result = bench.cameras(fake_models(), 10)
    assert result["cameras_with_rows"] == 7
    assert min(result["rows_fps"]) >= 0.8 * 5


def has_gstreamer() -> bool:
    if not SYSTEM_PYTHON.exists():
        return False
    check = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
    return subprocess.run([SYSTEM_PYTHON, "-c", check], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not has_gstreamer(), reason="needs gir1.2-gst-rtsp-server-1.0, python3-gi and GStreamer's plugins")
@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_a_camera_by_gstreamer(transport: str) -> None:
    script = Path(__file__).with_name("gst_server.py")
    with subprocess.Popen([SYSTEM_PYTHON, script], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port = server.stdout.readline().split()[1]
            config = bench.load_config("live", (), {"live": {"rtsp_transport": transport}}).live
            with Driver(f"rtsp://127.0.0.1:{port}/cam0", config) as driver:
                assert driver.turn_until(driver.more(10), 30)
                assert driver.frames[-1].frame.image.shape == (192, 320, 3)
                assert driver.frames[-1].frame.image.max() > 200  # the ball
                server.kill()
                assert driver.turn_until(lambda d: bool(d.lost))
        finally:
            server.kill()
