"""``uv run python -m benchmarks.flat``: whether a long video costs more per frame, or more memory, than a short one.

Ours alone: 16 objects over 3,000 frames at 112 px (four ViT layers, random weights, objects forced as in
:mod:`pipeline.bench_scene`), in exact and adaptive mode, each in a process of its own, and in both ways that frames
pass: ``offline`` in detector batches of four, rendered, released and numbered as a job does; ``live`` one by one
through the live linker, free memory given back as often as a camera's worker does it.

Memory is the process's resident set, every 50 frames; its slope is by least squares after the first 500 frames, in
which allocators find their size. Time is compared in turns: when the old tracker is near frame 3,000, a new one is
brought to near frame 100, and blocks of both alternate, at the same phase of what is periodic (every 16 frames), so
that other programs slow both alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.against_transformers import Case, build
from configs.schema import TrackerConfig
from pipeline.bench import Models, Subject, memory_slope_mb, modes, rss_mb
from pipeline.bench_scene import Scene, Stopwatch, synthetic_prompts
from pipeline.link import MaskletNumbering, ReleaseBuffer
from pipeline.live.heap import TRIM_EVERY_FRAMES, give_back
from pipeline.live.linker import LinkerConfig, LiveLinker, Seen
from pipeline.types import FrameTracks
from trackers.rendering import render

RESULTS = Path(__file__).parent / "results"
IMAGE_SIZE = 112
WAYS = ("offline", "live")
BATCH_FRAMES = {"offline": 4, "live": 1}
BLOCK, EARLY, SAMPLE_EVERY, SETTLED = 16, 80, 50, 500
_LAST_BLOCKS = 12
"""Blocks of each that are compared; they lie around frame 100 only where there are few, so the early ones repeat."""


class Line:
    """One stream from pictures to final rows."""

    def __init__(self, models: Models, objects: int, mode: str, way: str, name: str) -> None:
        self.scene, self.way = Scene(objects, 1, models.mask_side), way
        config = modes(TrackerConfig())[mode]
        prompts = synthetic_prompts(1, models.text_width)
        watch = Stopwatch(time.perf_counter)
        self.subject = Subject(
            models.detector, models.parts, self.scene, prompts, config, BATCH_FRAMES[way], name, watch
        )
        side = models.detector.image_size
        delay = config.hotstart_delay_frames
        self._release, self._numbers = ReleaseBuffer(delay), MaskletNumbering(name, prompts, (side, side))
        self._linker = LiveLinker(name, (side, side), LinkerConfig(delay, delay, 2.0, 10.0))
        self._linker.set_phrases(prompts.phrases)
        self._finish: Callable[[FrameTracks], int] = {"offline": self._job, "live": self._camera}[way]

    def advance(self, count: int) -> None:
        """The next frames; every one that becomes final has all objects."""
        for _ in range(0, count, BATCH_FRAMES[self.way]):
            for frame, low in self.subject.advance(BATCH_FRAMES[self.way]):
                rows = self._finish(render(low, frame))
                assert rows in (0, self.scene.objects), f"frame {frame.index}: {rows} rows"

    def _job(self, tracks: FrameTracks) -> int:
        return sum(len(self._numbers.number(final).masklet_id) for final in self._release.push(tracks))

    def _camera(self, tracks: FrameTracks) -> int:
        if tracks.index and tracks.index % TRIM_EVERY_FRAMES == 0:
            give_back()
        linked = self._linker.push(tracks, Seen(tracks.pts_s, tracks.pts_s))
        return sum(len(result.rows()) for result in linked.results)


def measure(models: Models, objects: int, num_frames: int, mode: str, way: str) -> dict[str, Any]:
    """One mode in one way: growth of memory over all frames, and the time of late frames by that of early ones."""
    line = Line(models, objects, mode, way, f"{mode} {way} old")
    late = num_frames // BLOCK * BLOCK - _LAST_BLOCKS * BLOCK
    samples = []
    while line.subject.next_frame < late:
        line.advance(min(BLOCK, late - line.subject.next_frame))
        if line.subject.next_frame // SAMPLE_EVERY > len(samples):
            samples.append((line.subject.next_frame, rss_mb(), line.subject.tracker.num_state_bytes / 1e6))
    give_back()
    in_use = rss_mb()
    early_ms, late_ms = _compare(models, line, objects, mode, way)
    settled = [mb for t, mb, _ in samples if t >= min(SETTLED, late // 2)]
    return {
        "mode": mode,
        "way": way,
        "objects": objects,
        "frames": line.subject.next_frame,
        "cpu_ms_near_frame_100": statistics.median(early_ms),
        "cpu_ms_at_the_end": statistics.median(late_ms),
        "end_by_early": statistics.median(b / a for a, b in zip(early_ms, late_ms, strict=True)),
        "rss_slope_mb_per_1000_frames": memory_slope_mb(settled, SAMPLE_EVERY),
        "rss_mb": samples,
        "rss_mb_after_giving_back": in_use,
        "state_mb": [samples[0][2], samples[-1][2]],
    }


def _compare(models: Models, old: Line, objects: int, mode: str, way: str) -> tuple[list[float], list[float]]:
    """CPU milliseconds per frame of blocks of a new line near frame 100 and of ``old``, in turns."""
    early_ms, late_ms = [], []
    new = old
    for number in range(_LAST_BLOCKS):
        if number % 3 == 0:
            new = Line(models, objects, mode, way, f"{mode} {way} new {number}")
            new.advance(EARLY)
        pair = [(new, early_ms), (old, late_ms)]
        for line, spent in pair if number % 2 else pair[::-1]:
            started = time.process_time()
            line.advance(BLOCK)
            spent.append(1e3 * (time.process_time() - started) / BLOCK)
    return early_ms, late_ms


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    head = ("", "ms near frame 100", "ms at the end", "end / early", "MB per 1,000 frames", "state MB, first to last")
    lines = ["| " + " | ".join(head) + " |", "|" + "--|" * len(head)]
    for r in results:
        slope, (first, last) = r["rss_slope_mb_per_1000_frames"], r["state_mb"]
        cells = [f"{r['objects']} objects, {r['mode']}, {r['way']}, {r['frames']} frames"]
        cells += [f"{r['cpu_ms_near_frame_100']:.1f}", f"{r['cpu_ms_at_the_end']:.1f}", f"**{r['end_by_early']:.3f}**"]
        cells += ["-" if slope is None else f"**{slope:+.2f}**", f"{first:.2f} to {last:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """All four, each in a process of its own, or one."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--frames", type=int, default=3000)
    options.add_argument("--objects", type=int, default=16)
    options.add_argument("--mode", choices=("exact", "adaptive"), help="only this, in this process; with --way")
    options.add_argument("--way", choices=WAYS)
    options.add_argument("-o", "--out", type=Path, default=RESULTS)
    given = options.parse_args()
    if given.mode and given.way:
        torch.set_num_threads(1)
        models = build(IMAGE_SIZE, Case("", given.objects, 1, 0, 0))[1]
        _add(measure(models, given.objects, given.frames, given.mode, given.way), given.out)
        return
    for mode in ("exact", "adaptive"):
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.flat", "--mode", mode, "--way", way, "-o", str(given.out)]
            subprocess.run([*command, "--frames", str(given.frames), "--objects", str(given.objects)], check=True)


def _add(result: dict[str, Any], out: Path) -> None:
    """Put this result beside those of the other processes, in place of an older one of its kind."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "flat.json"
    before = json.loads(file.read_text()) if file.exists() else []
    kinds = [(mode, way) for mode in ("exact", "adaptive") for way in WAYS]
    others = [r for r in before if (r["mode"], r["way"]) != (result["mode"], result["way"])]
    results = sorted([*others, result], key=lambda r: kinds.index((r["mode"], r["way"])))
    file.write_text(json.dumps(results, indent=1) + "\n")
    text = f"`python -m benchmarks.flat`: {IMAGE_SIZE} px, torch {torch.__version__}, one thread, CPU time, medians"
    (out / "flat.md").write_text(f"{text}\n\n{table(results)}\n")
    print(table([result]), flush=True)


if __name__ == "__main__":
    main()
