"""A job of very many tiny clips, one in twenty of them broken."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.clips import write_clip
from tests.flow.worlds import ROOT

BROKEN_EVERY = 20


@dataclass(frozen=True)
class Outcome:
    """How the job ended."""

    exit_code: int
    output: str
    seconds: float
    peak_rss_mb: float
    """Of the driver, and with ``--ray off`` of all it does."""
    expected: dict[str, str]
    """Status by video."""


def make_entries(folder: Path, count: int) -> tuple[Path, dict[str, str]]:
    """A list of ``count`` clips of 8 frames, and the status each must end with."""
    folder.mkdir(parents=True)
    source = write_clip(folder / "source.mp4", num_frames=8, size=(64, 64))
    data = source.read_bytes()
    breaks = [
        lambda p: p.write_bytes(data[: len(data) // 2]),
        lambda p: p.write_bytes(b""),
        lambda p: p.write_text("not a video\n" * 200),
        lambda p: None,  # missing
    ]
    expected = {}
    for number in range(count):
        path = folder / f"c{number:04d}.mp4"
        is_broken = number % BROKEN_EVERY == BROKEN_EVERY - 1
        if is_broken:
            breaks[number // BROKEN_EVERY % len(breaks)](path)
        else:
            os.link(source, path)
        expected[path.stem] = "failed" if is_broken else "done"
    listing = folder / "clips.csv"
    listing.write_text("uri\n" + "\n".join(f"c{n:04d}.mp4" for n in range(count)) + "\n", encoding="utf-8")
    (folder / "boxes.txt").write_text("".join(f"{f + 1},-1,{10 + f},20,14,10,0.9\n" for f in range(8)))
    return listing, expected


def track_many(folder: Path, count: int, *options: str) -> Outcome:
    """Track them with scripted boxes in a process of its own."""
    listing, expected = make_entries(folder, count)
    command = [sys.executable, "-m", "pipeline", "track", str(listing), "--text", "disc", "-o", str(folder / "run")]
    scripted = ["--detections", str(folder / "boxes.txt"), "--tracker", "bytetrack"]
    started = time.monotonic()
    with open(folder / "log", "w+", encoding="utf-8") as log:
        process = subprocess.Popen(
            [*command, *scripted, *options],
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        peak_mb = 0.0
        while process.poll() is None:
            peak_mb = max(peak_mb, _high_water_mb(process.pid))
            time.sleep(0.1)
        log.seek(0)
        output = log.read()
    seconds = time.monotonic() - started
    return Outcome(process.returncode, output, seconds, peak_mb, expected)


def _high_water_mb(pid: int) -> float:
    """Largest resident size so far. Not `ru_maxrss`: that one starts at the size of the parent that forked it."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)
