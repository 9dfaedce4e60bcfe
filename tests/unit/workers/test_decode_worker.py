"""The decode process: the same frames whatever happens to it, bounded memory, and never an orphan."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from configs.schema import DecodeConfig
from pipeline.decode import FrameTable, has_decord, probe, read
from pipeline.errors import DecodeError, SourceChangedError
from pipeline.types import Frame
from tests import synth
from workers.decode_pump import Child
from workers.decode_worker import DecodeProcess

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
NUM_FRAMES = 90
CONFIG = DecodeConfig(batch_frames=4, queue_batches=2, segment_frames=20)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> FrameTable:
    path = synth.video(tmp_path_factory.mktemp("clip") / "a.mp4", NUM_FRAMES)
    return probe(str(path), "a")


@pytest.fixture(scope="module")
def process() -> Iterator[DecodeProcess]:
    with DecodeProcess(CONFIG) as process:
        yield process


def _numbers(frames: Iterator[Frame] | list[Frame]) -> list[int | None]:
    return [synth.read_barcode(frame.image) for frame in frames]


def test_the_same_frames_as_in_this_process(process: DecodeProcess, table: FrameTable) -> None:
    for arguments in ({}, {"start": 33, "stop": 61}, {"start": 2, "stride": 7}):
        got = list(process.frames(table, **arguments))
        want = list(read(table, decoder="pyav", **arguments))
        assert [(f.index, f.pts_s, f.stream_id) for f in got] == [(f.index, f.pts_s, f.stream_id) for f in want]
        assert all(np.array_equal(a.image, b.image) for a, b in zip(got, want, strict=True))
        report = process.report()
        name = "decord" if has_decord() else "pyav"
        assert (report.status, report.kills, report.frames_by_decoder) == ("done", 0, {name: len(want)})


def test_one_process_serves_many_videos_and_a_bad_one_fails_alone(
    process: DecodeProcess, table: FrameTable, tmp_path: Path
) -> None:
    list(process.frames(table, 0, 5))
    pid = process.pid
    other = probe(str(synth.video(tmp_path / "b.mp4", 10)), "b")
    gone = probe(str(synth.video(tmp_path / "gone.mp4", 10)), "gone")
    Path(gone.source).unlink()
    with pytest.raises(SourceChangedError):
        list(process.frames(gone))
    assert _numbers(process.frames(other)) == list(range(10))
    assert _numbers(process.frames(table, 80)) == list(range(80, 90))
    assert process.pid == pid


def test_resized_in_the_process(process: DecodeProcess, table: FrameTable) -> None:
    got = list(process.frames(table, 0, 9, size=(112, 112)))
    want = list(read(table, 0, 9, size=(112, 112), decoder="pyav"))
    assert all(np.array_equal(a.image, b.image) for a, b in zip(got, want, strict=True))


def test_partial_is_reported(process: DecodeProcess, tmp_path: Path) -> None:
    path = synth.video(tmp_path / "p.mp4", 60, synth.Encoding(options={**synth.H264.options, "bf": "0"}))
    synth.wreck(path, 50, 60)
    assert _numbers(process.frames(probe(str(path), "p"))) == list(range(50))
    report = process.report()
    assert (report.status, report.num_decoded, report.num_expected, report.kills) == ("partial", 50, 60, 0)
    assert report.message.startswith("50 of 60 frames")


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_process_loses_and_repeats_nothing(table: FrameTable, kill: signal.Signals) -> None:
    with DecodeProcess(CONFIG) as process:
        frames = process.frames(table)
        got = [next(frames) for _ in range(6)]
        assert process.pid is not None
        os.kill(process.pid, kill)
        got += frames
        report = process.report()
    assert _numbers(got) == [frame.index for frame in got] == list(range(NUM_FRAMES))
    assert (report.kills, report.status, report.num_decoded) == (1, "done", NUM_FRAMES)
    assert kill.name in report.message
    if has_decord():
        # Only the segment in hand goes to PyAV.
        assert 0 < report.frames_by_decoder["pyav"] <= 20 < report.frames_by_decoder["decord"]


def test_a_stalled_process_is_killed_and_the_segment_goes_on(table: FrameTable) -> None:
    with DecodeProcess(CONFIG.model_copy(update={"stall_timeout_s": 1.0})) as process:
        frames = process.frames(table)
        got = [next(frames) for _ in range(6)]
        stalled = process.pid
        assert stalled is not None
        os.kill(stalled, signal.SIGSTOP)
        got += frames
        report = process.report()
        assert not Path(f"/proc/{stalled}").exists()
    assert _numbers(got) == list(range(NUM_FRAMES))
    assert report.kills == 1
    assert "silent for 1 s" in report.message


def test_a_process_that_grows_too_large_is_killed_and_the_rest_given_up(table: FrameTable) -> None:
    with DecodeProcess(CONFIG.model_copy(update={"memory_limit_mb": 1})) as process:
        with pytest.raises(DecodeError, match="memory_limit_mb=1"):
            list(process.frames(table))
        report = process.report()
    assert (report.status, report.num_decoded) == ("partial", 0)


def test_leaving_early_ends_the_work_and_the_next_video_starts_afresh(table: FrameTable) -> None:
    with DecodeProcess(CONFIG) as process:
        frames = process.frames(table)
        next(frames)
        frames.close()  # type: ignore[attr-defined]
        assert process.report().num_decoded == 1
        assert _numbers(process.frames(table, 10, 15)) == list(range(10, 15))
    assert process.pid is None


def test_memory_stays_flat_next_to_a_slow_consumer(tmp_path: Path) -> None:
    """2.8 MB a frame: a decoder that runs ahead would hold all of them within the pauses."""
    path = tmp_path / "hd.mp4"
    images = (image.repeat(4, axis=0).repeat(4, axis=1) for image in synth.barcodes(120))
    synth.encode(path, images, synth.Encoding(options={"preset": "ultrafast"}, gop=20))
    frame_mb = 3 * 768 * 1280 / 2**20
    config = DecodeConfig(batch_frames=2, queue_batches=2, segment_frames=20)
    sizes: list[float] = []
    with DecodeProcess(config) as process:
        for frame in process.frames(probe(str(path), "hd")):
            if frame.index % 10 == 0:
                time.sleep(0.15)
                assert process.pid is not None
                sizes.append(_rss_mb(process.pid))
    # One piece may be held by decord and by us at once, each picture once; then batches on their way.
    assert max(sizes) < 130 + (20 + 3 * 2) * frame_mb * 1.5
    assert max(sizes[-5:]) < 1.15 * max(sizes[:8])


def _rss_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


_PARENT = """
import os, sys, time
from pipeline.decode import probe
from configs.schema import DecodeConfig
from workers.decode_worker import DecodeProcess
process = DecodeProcess(DecodeConfig(batch_frames=2, queue_batches=1))
frames = process.frames(probe(sys.argv[1], "a"))
next(frames)
print(process.pid, flush=True)
time.sleep(60)
"""


def test_the_process_dies_with_its_parent(table: FrameTable) -> None:
    with subprocess.Popen([sys.executable, "-c", _PARENT, table.source], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        # Stopped first: it cannot notice by itself, like one that hangs in a native call.
        os.kill(child, signal.SIGSTOP)
        parent.kill()
        parent.wait()
    os.kill(child, signal.SIGCONT)
    assert _gone(child)


_STUCK = """
import sys
from workers.decode_child import _die_with_parent
_die_with_parent(int(sys.argv[1]))
sys.setswitchinterval(1e6)
print("stuck", flush=True)
while True:
    pass
"""


def test_the_process_dies_with_its_parent_even_while_it_holds_the_interpreter_lock() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        arguments = [sys.executable, "-c", _STUCK, str(theirs.fileno())]
        stuck = subprocess.Popen(arguments, pass_fds=(theirs.fileno(),), stdout=subprocess.PIPE, text=True)
    with stuck:
        assert stuck.stdout is not None
        assert stuck.stdout.readline() == "stuck\n"
        assert stuck.poll() is None
        ours.close()
        assert stuck.wait(20) == -signal.SIGIO


def _gone(pid: int, deadline_s: float = 20.0) -> bool:
    until = time.monotonic() + deadline_s
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_closing_is_quick_and_repeatable() -> None:
    child = Child()
    assert child.stop(5.0) == "ended with code 0"
    process = DecodeProcess(CONFIG)
    process.close()
    process.close()
