"""Annotated video pushed to an RTSP server that we did not write."""

from __future__ import annotations

import subprocess
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.live.sinks import open_sinks
from tests.live.servers import wait_for
from tests.live.test_chaos import SYSTEM_PYTHON, has_gstreamer
from tests.live.test_sinks import live


@pytest.mark.skipif(not has_gstreamer(), reason="needs gir1.2-gst-rtsp-server-1.0, python3-gi and GStreamer's plugins")
def test_what_a_server_receives_is_the_annotated_video(tmp_path: Path) -> None:
    received = tmp_path / "received.h264"
    script = Path(__file__).with_name("gst_server.py")
    with subprocess.Popen([SYSTEM_PYTHON, script, received], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port = server.stdout.readline().split()[1]
            [outlet] = open_sinks([f"rtsp://127.0.0.1:{port}/in"], capacity=64, segment_s=60, rows_per_part=1000)
            for k in range(60):
                assert wait_for(lambda: outlet.depth == 0, 30)
                outlet.put(live(k, with_picture=True))
            assert wait_for(lambda: received.exists() and len(pictures(received)) > 40, 40)
            outlet.close(15)
            assert (outlet.num_lost, outlet.error) == (0, "")
        finally:
            server.kill()
    [first, *_] = pictures(received)
    plain = live(0, with_picture=True).picture
    assert plain is not None
    assert first.shape == plain.shape
    assert np.abs(first.astype(int) - plain).mean() > 5  # masks are drawn


def pictures(path: Path) -> list[np.ndarray]:
    """What has arrived so far; the last picture may be cut off."""
    found: list[np.ndarray] = []
    try:
        with av.open(str(path)) as container:
            found += [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    except av.error.FFmpegError:
        pass
    return found
