"""A small job whose units take a second or two without any model: scripted boxes, ByteTrack, long tiny clips."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from configs.load import load_config
from configs.schema import Config
from pipeline import api, open_run
from pipeline.sources.file import VideoItem
from tests.e2e.clips import write_clip

ROOT = Path(__file__).parents[2]
SIZE = (64, 96)
CHUNKED = ("chunk.length=12s", "chunk.overlap=1s")


@dataclass(frozen=True)
class World:
    """Clips, their detections, and the rows an uninterrupted local run gives."""

    folder: Path
    items: list[VideoItem]
    whole: pa.Table
    chunked: pa.Table

    def config(self, *sets: str) -> Config:
        return make_config(self.folder, *sets)

    def reference(self, *, is_chunked: bool) -> pa.Table:
        return self.chunked if is_chunked else self.whole


def make_config(folder: Path, *sets: str) -> Config:
    fixed = ["prompts=[disc]", "tracker.name=bytetrack", f"detector.detections={folder / 'detections'}"]
    return load_config(None, [*fixed, "decode.stall_timeout_s=3", "output.frames_per_part=100", *sets])


def make_world(folder: Path, lengths: Sequence[int] = (700, 560, 480, 300)) -> World:
    """Clips of so many frames at 25 frames/s with four walkers each."""
    (folder / "clips").mkdir(parents=True)
    (folder / "detections").mkdir()
    items = []
    for number, length in enumerate(lengths):
        path = write_clip(folder / "clips" / f"v{number}.mp4", num_frames=length, size=SIZE, fps=25)
        items.append(VideoItem(path.stem, str(path)))
        (folder / "detections" / f"{path.stem}.txt").write_text(_walkers(number, length), encoding="utf-8")
    tables = []
    for name, sets in (("whole", ()), ("chunked", CHUNKED)):
        api.track_to_run(make_config(folder, *sets), [i.uri for i in items], folder / name)
        tables.append(open_run(folder / name).table())
    return World(folder, items, *tables)


def _walkers(seed: int, length: int) -> str:
    """MOT detections of four boxes that bounce through the picture, each missing on one frame in ten."""
    rng = np.random.default_rng(seed)
    place, speed = rng.uniform(0, 60, (4, 2)), rng.uniform(-0.8, 0.8, (4, 2))
    lines = []
    for frame in range(length):
        place = place + speed
        speed = np.where((place < 0) | (place > (SIZE[1] - 16, SIZE[0] - 12)), -speed, speed)
        lines += [
            f"{frame + 1},-1,{x:.2f},{y:.2f},14,10,{rng.uniform(0.75, 0.99):.3f}"
            for x, y in place
            if rng.random() > 0.1
        ]
    return "\n".join(lines) + "\n"


def start_driver(world: World, run: Path, *arguments: str, sets: Sequence[str] = ()) -> subprocess.Popen[str]:
    """`masklet track` in a process group of its own, started elsewhere and with relative paths, as users do."""
    # A shell's background jobs are started with interrupts ignored, and so would be what they start.
    listening = ["env", "--default-signal=INT"]
    program = [*listening, sys.executable, "-m", "pipeline", "track"]
    command = [*program, "clips", "--text", "disc", "--detections", "detections"]
    options = ["--tracker", "bytetrack", "-o", str(run), "--set", "decode.stall_timeout_s=3"]
    assignments = [part for s in ("output.frames_per_part=100", *sets) for part in ("--set", s)]
    return subprocess.Popen(
        [*command, *options, *assignments, *arguments],
        cwd=world.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_work(run: Path, process: subprocess.Popen[str], commits: int = 0, deadline_s: float = 240.0) -> bool:
    """Until ``commits`` units or videos are finished and another is being written; false if the job ended before."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end and process.poll() is None:
        finished = len(list((run / ".units").glob("[!.]*"))) + len(list((run / "masklets").glob("[!.]*")))
        if finished >= commits and any((run / ".units").glob(".*/masklets")):
            return True
        time.sleep(0.02)
    return False


def finish(process: subprocess.Popen[str], timeout_s: float = 240.0) -> tuple[int, str]:
    """Exit code and output."""
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, output


def children(pid: int, marker: str) -> list[int]:
    """Direct children of a process whose command line contains ``marker``."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and marker in (entry / "cmdline").read_bytes().decode(errors="replace"):
                found.append(int(entry.name))
        except (OSError, ValueError):
            continue
    return found
