"""Seeded synthetic runs, written through :mod:`pipeline.store`, to test exporters, importers, metrics and reports on.

``make_run(folder, kind, seed)`` writes a run of one kind; ``KINDS`` names them. Masks are blobs with holes, islands and
bays, some of them cut by the frame's edge: polygons lose something on them, lossless formats must not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from pipeline import masks as mask_ops
from pipeline.results import FrameResult
from pipeline.store import Manifest, Run, RunWriter, VideoEntry, open_run
from pipeline.types import BoolArray

PHRASES = ("person", "red car", 'a "small" dog & <cat>, naïve 猫')
"""The last one is hostile to CSV, XML and JSON writers that do not quote."""


@dataclass(frozen=True)
class VideoSpec:
    """One synthetic video: how many masklets over how many frames, and what is odd about them."""

    video_id: str = "clip"
    size: tuple[int, int] = (48, 64)
    num_frames: int = 12
    num_masklets: int = 4
    fps: str | None = "30000/1001"
    stride: int = 1
    """Only every ``stride``-th source frame was tracked."""
    gaps: bool = False
    """Masklets vanish and come back."""
    overlaps: bool = False
    """Masks may share pixels; otherwise each pixel belongs to at most one masklet."""
    max_life: int = 12
    """Most tracked frames from a masklet's first to its last."""
    status: str = "done"


KINDS: dict[str, tuple[VideoSpec, ...]] = {
    "empty": (VideoSpec(num_masklets=0),),
    "single_frame": (VideoSpec(num_frames=1, num_masklets=3),),
    "plain": (VideoSpec(),),
    "gaps": (VideoSpec(num_frames=20, num_masklets=5, gaps=True),),
    "overlaps": (VideoSpec(num_masklets=6, overlaps=True),),
    "many_ids": (VideoSpec(size=(64, 96), num_frames=100, num_masklets=290, max_life=4),),
    "odd_sizes": (VideoSpec(size=(37, 53), fps="25/1", gaps=True),),
    "one_pixel_frame": (VideoSpec(size=(1, 1), num_frames=3, num_masklets=1, fps=None),),
    "stride": (VideoSpec(num_frames=30, stride=3, gaps=True),),
    "several_videos": (
        VideoSpec("street", gaps=True),
        VideoSpec("street-2", size=(30, 41), num_frames=7, fps=None),
        VideoSpec("nothing", num_masklets=0),
        VideoSpec("broken", status="failed", num_masklets=0),
    ),
}
"""Runs by name."""

DISJOINT_KINDS = tuple(k for k in KINDS if k != "overlaps")
"""Kinds in which no two masks of a frame share a pixel (label images hold them without loss)."""

SEEDED_RUNS = tuple((kind, seed) for kind in KINDS for seed in (0, 1))
"""Twenty runs, the empty and the single-frame ones included."""


def make_run(folder: Path, kind: str = "plain", seed: int = 0) -> Run:
    """Write the run of this kind to ``folder`` and open it."""
    return write_run(folder, KINDS[kind], seed)


def write_run(folder: Path, specs: Sequence[VideoSpec], seed: int = 0, *, frames_per_part: int = 5) -> Run:
    """Write a run with these videos, in small parts so that readers cross their borders."""
    writer = RunWriter.create(folder, Manifest("0.0", {"id": "synthetic"}, list(PHRASES), [], "none"), "{}\n")
    for ordinal, spec in enumerate(specs):
        masklets = 0
        if spec.status != "failed":
            with writer.video(spec.video_id, rows_per_part=40, frames_per_part=frames_per_part) as video:
                for result in synthetic_frames(spec, seed + 1000 * ordinal):
                    masklets = max([masklets, *result.masklet_id.tolist()])
                    video.write(result)
        writer.end_video(entry_of(spec, masklets))
    writer.manifest.status = "complete"
    writer.save()
    return open_run(folder)


def entry_of(spec: VideoSpec, num_masklets: int) -> VideoEntry:
    """The manifest entry of a synthetic video."""
    duration_s = spec.num_frames / float(Fraction(spec.fps)) if spec.fps else None
    return VideoEntry(
        spec.video_id,
        f"{spec.video_id}.mp4",
        spec.status,
        width=spec.size[1],
        height=spec.size[0],
        fps=spec.fps,
        num_frames=spec.num_frames,
        num_tracked=-(-spec.num_frames // spec.stride),
        num_masklets=num_masklets,
        decoder="pyav",
        error="garbage" if spec.status == "failed" else None,
        duration_s=duration_s,
    )


def synthetic_frames(spec: VideoSpec, seed: int) -> Iterator[FrameResult]:
    """Every tracked frame of the video in time order, empty ones included; ids ascend by first appearance."""
    rng = np.random.default_rng(seed)
    rate = Fraction(spec.fps) if spec.fps else Fraction(24)
    steps = range(0, spec.num_frames, spec.stride)
    births = np.sort(rng.integers(0, max(1, len(steps) * 2 // 3), spec.num_masklets))
    births[:1] = 0
    lives = rng.integers(min(4, len(steps)), min(spec.max_life, len(steps)) + 1, spec.num_masklets)
    phrase_of = rng.integers(0, len(PHRASES), spec.num_masklets)
    centres = rng.uniform(0, 1, (spec.num_masklets, 2))
    drift = rng.uniform(-0.02, 0.02, (spec.num_masklets, 2))
    names: dict[int, int] = {}
    for step, frame in enumerate(steps):
        alive = [i for i in range(spec.num_masklets) if births[i] <= step < births[i] + lives[i]]
        if spec.gaps:
            alive = [i for i in alive if step == births[i] or rng.random() > 0.35]
        found = [(i, blob(rng, spec.size, centres[i] + drift[i] * (step - births[i]))) for i in alive]
        if not spec.overlaps:
            found = _disjoint(found)
        found = [(i, mask) for i, mask in found if mask.any()]
        for i, _ in found:
            names.setdefault(i, len(names) + 1)
        rows = sorted(found, key=lambda pair: names[pair[0]])
        masks = np.array([mask for _, mask in rows], bool).reshape(-1, *spec.size)
        yield FrameResult(
            spec.video_id,
            frame,
            float(frame / rate),
            spec.size,
            np.array([names[i] for i, _ in rows], np.int32),
            tuple(PHRASES[phrase_of[i]] for i, _ in rows),
            rng.uniform(0.05, 1, len(rows)).astype(np.float32),
            mask_ops.boxes(masks),
            mask_ops.encode(masks),
        )


def blob(rng: np.random.Generator, size: tuple[int, int], centre: np.ndarray) -> BoolArray:
    """An ellipse with a hole, a bay and an island, anywhere in the frame and cut by its edge; never empty."""
    height, width = size
    y, x = np.clip(centre, 0, 1) * (height - 1, width - 1)
    at = (round(x), round(y))
    canvas = np.zeros(size, np.uint8)
    axes = (int(rng.integers(1, max(2, width // 5))), int(rng.integers(1, max(2, height // 5))))
    cv2.ellipse(canvas, at, axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
    if min(axes) > 4:
        cv2.circle(canvas, at, int(rng.integers(1, 3)), 0, -1)
        cv2.line(canvas, at, (at[0] + axes[0] * 2, at[1]), 0, 1)
    if rng.random() < 0.4:
        canvas[rng.integers(0, height), rng.integers(0, width)] = 1
    canvas[at[1], at[0]] = canvas[at[1], at[0]] or not canvas.any()
    return canvas.astype(bool)


def _disjoint(found: list[tuple[int, BoolArray]]) -> list[tuple[int, BoolArray]]:
    """Give each pixel to the first masklet that has it."""
    if not found:
        return found
    taken = np.zeros_like(found[0][1])
    out = []
    for i, mask in found:
        out.append((i, mask & ~taken))
        taken |= mask
    return out


def rename(spec: VideoSpec, video_id: str) -> VideoSpec:
    """The same video under another id."""
    return replace(spec, video_id=video_id)
