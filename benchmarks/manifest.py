"""``uv run python -m benchmarks.manifest``: seconds that a job of many videos spends on its manifest, all of them.

The videos end as fast as they can be listed, so that nothing else is measured.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from pipeline.store import Manifest, RunWriter, VideoEntry


def seconds(count: int, folder: Path) -> float:
    """To list ``count`` videos as a job does."""
    run = RunWriter.create(folder, Manifest("0", {}, ["person"], [], ""), "")
    started = time.perf_counter()
    for number in range(count):
        name = f"clip-{number:06d}"
        timings = {"decode": 1.0, "detect": 2.0, "track": 3.0, "total": 6.0}
        entry = VideoEntry(name, f"s3://bucket/{name}.mp4", "done", 1920, 1080, "30/1", 300, 300, 5, timings_s=timings)
        run.list_video(entry)
        if run.is_save_due:
            run.save()
    run.save()
    return time.perf_counter() - started


def main() -> None:
    """Print them."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--videos", type=int, default=20_000)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(f"{given.videos} videos: {seconds(given.videos, Path(folder) / 'run'):.1f} s")


if __name__ == "__main__":
    main()
