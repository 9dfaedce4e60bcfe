"""Memory does not grow with the length of a video."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.clips import write_clip

# A process of its own, so that the peak is this run's alone; the peak in kB is the last line.
PROGRAM = """
import resource, sys
from pipeline import track
frames = 0
for result in track(sys.argv[1], text=["red circle", "blue square"], set=["device.threads=1"]):
    frames += 1
print(frames, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak_mb(clip: Path) -> tuple[int, float]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(clip)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    frames, peak_kb = done.stdout.split()[-2:]
    return int(frames), int(peak_kb) / 1024


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_times_the_frames_take_the_same_memory(tmp_path: Path) -> None:
    short = peak_mb(write_clip(tmp_path / "short.mp4", num_frames=1_000, size=(90, 160)))
    long = peak_mb(write_clip(tmp_path / "long.mp4", num_frames=10_000, size=(90, 160)))
    assert (short[0], long[0]) == (1_000, 10_000)
    assert long[1] < 1.10 * short[1], (short, long)


def test_three_times_the_frames_take_the_same_memory(tmp_path: Path) -> None:
    short = peak_mb(write_clip(tmp_path / "short.mp4", num_frames=60, size=(90, 160)))
    long = peak_mb(write_clip(tmp_path / "long.mp4", num_frames=180, size=(90, 160)))
    assert (short[0], long[0]) == (60, 180)
    assert long[1] < 1.10 * short[1], (short, long)
