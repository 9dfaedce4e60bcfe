"""Seeded long clips with objects that pass behind screens just where the video is cut, and what is true of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from pipeline import masks as mask_ops
from pipeline.results import FrameResult
from pipeline.store import Manifest, Run, RunWriter, VideoEntry, VideoWriter, open_run
from pipeline.types import BoolArray, UInt8Array

SIZE = (180, 320)
FPS = 25
KINDS = (("red circle", (215, 25, 25)), ("blue square", (25, 45, 205)))
"""Phrases and their colour; the tiny model knows both."""
_MIN_VISIBLE_PX = 60
"""Less of a thing counts as hidden."""
_SCREEN_FRAMES = 40
"""A screen stands for so long before and after its cut."""
_GREY = 118


@dataclass(frozen=True, slots=True)
class Thing:
    """One object: it bounces sideways and swings up and down in its lane."""

    kind: int
    radius: float
    lane: float
    """Mean height, pixels."""
    swing: float
    speed: float
    """Pixels per frame."""
    phase: float

    def at(self, frame: int) -> tuple[float, float]:
        """Its centre."""
        low, span = self.radius, SIZE[1] - 2 * self.radius
        x = (self.phase * 2 * span + self.speed * frame) % (2 * span)
        return low + (x if x < span else 2 * span - x), self.lane + self.swing * np.sin(0.05 * frame + 9 * self.phase)

    def mask(self, frame: int) -> BoolArray:
        """Where it is, whatever stands in front."""
        canvas = np.zeros(SIZE, np.uint8)
        x, y = (round(v) for v in self.at(frame))
        if self.kind == 0:
            cv2.circle(canvas, (x, y), round(self.radius), 1, -1)
        else:
            half = round(0.9 * self.radius)
            cv2.rectangle(canvas, (x - half, y - half), (x + half, y + half), 1, -1)
        return canvas.astype(bool)


class World:
    """One clip. At every cut, every other thing is behind a screen.

    Args:
        seed: decides everything.
        num_frames: length.
        cuts: frames around which things are hidden.
    """

    def __init__(self, seed: int, num_frames: int, cuts: Sequence[int]) -> None:
        self.num_frames, self._seed = num_frames, seed
        rng = np.random.default_rng(seed)
        lanes = np.linspace(32, SIZE[0] - 32, 4)
        self.things = [
            Thing(
                i % 2,
                float(rng.uniform(14, 18)),
                float(lane),
                float(rng.uniform(2, 12)),
                float(rng.uniform(1.5, 3)),
                float(rng.random()),
            )
            for i, lane in enumerate(rng.permutation(lanes))
        ]
        self._cuts = list(cuts)
        self._screens = [np.zeros(SIZE, bool) for _ in cuts]
        for rank, cut in enumerate(cuts):
            for thing in self.things[rank % 2 :: 2]:
                x, y = (round(v) for v in thing.at(cut))
                hidden_frames = rng.uniform(6, 20)
                wide, high = round(thing.radius + thing.speed * hidden_frames / 2), round(thing.radius) + 8
                self._screens[rank][max(y - high, 0) : y + high, max(x - wide, 0) : x + wide] = True

    def screens(self, frame: int) -> BoolArray:
        """Where screens stand; each is there for a while around its cut."""
        near = [s for s, cut in zip(self._screens, self._cuts, strict=True) if abs(frame - cut) <= _SCREEN_FRAMES]
        return np.any(near, axis=0) if near else np.zeros(SIZE, bool)

    def visible(self, frame: int) -> list[tuple[int, BoolArray]]:
        """``(thing, mask)`` of all that can be seen; later things cover earlier ones."""
        shown: list[tuple[int, BoolArray]] = []
        taken = self.screens(frame)
        for i in reversed(range(len(self.things))):
            mask = self.things[i].mask(frame)
            rest = mask & ~taken
            taken |= mask
            if rest.sum() >= _MIN_VISIBLE_PX:
                shown.append((i, rest))
        return shown[::-1]

    def picture(self, frame: int) -> UInt8Array:
        """The frame as the camera sees it, RGB."""
        noise = np.random.default_rng([self._seed, frame]).integers(0, 9, (*SIZE, 3), np.uint8)
        image = np.full((*SIZE, 3), _GREY, np.uint8) + noise
        for thing in self.things:
            image[thing.mask(frame)] = KINDS[thing.kind][1]
        image[self.screens(frame)] = 60
        return image

    def write_video(self, path: Path) -> Path:
        """Encode it, H.264 with a keyframe every ten seconds."""
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=FPS)
            stream.height, stream.width = SIZE
            stream.pix_fmt, stream.gop_size = "yuv420p", 10 * FPS
            stream.options = {"crf": "16", "preset": "veryfast", "threads": "1"}
            for index in range(self.num_frames):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(self.picture(index), format="rgb24")))
            container.mux(stream.encode(None))
        return path

    def truth(self, video_id: str) -> Iterator[FrameResult]:
        """What is there, thing *i* under masklet id *i* + 1."""
        for index in range(self.num_frames):
            shown = self.visible(index)
            yield _frame(video_id, index, [i + 1 for i, _ in shown], [self._phrase(i) for i, _ in shown], shown)

    def detections(self, video_id: str) -> Iterator[FrameResult]:
        """What a fair detector would find: some missed, all shaken a pixel, weaker where little is seen."""
        rng = np.random.default_rng([self._seed, 1])
        for index in range(self.num_frames):
            shown = [(i, mask) for i, mask in self.visible(index) if rng.random() > 0.02]
            moved = [(i, np.roll(mask, rng.integers(-1, 2, 2), (0, 1))) for i, mask in shown]
            share = np.array([mask.sum() / self.things[i].mask(index).sum() for i, mask in shown])
            score = np.clip(0.35 + 0.55 * share + rng.normal(0, 0.04, len(shown)), 0.05, 0.99)
            yield _frame(video_id, index, range(1, len(moved) + 1), [self._phrase(i) for i, _ in moved], moved, score)

    def _phrase(self, thing: int) -> str:
        return KINDS[self.things[thing].kind][0]


def _frame(
    video_id: str,
    index: int,
    ids: Sequence[int],
    phrases: Sequence[str],
    shown: Sequence[tuple[int, BoolArray]],
    score: np.ndarray | None = None,
) -> FrameResult:
    masks = np.array([mask for _, mask in shown], bool).reshape(-1, *SIZE)
    return FrameResult(
        video_id,
        index,
        index / FPS,
        SIZE,
        np.array(ids, np.int32),
        tuple(phrases),
        (np.ones(len(masks)) if score is None else score).astype(np.float32),
        mask_ops.boxes(masks),
        mask_ops.encode(masks),
    )


def write_truth(world: World, video_id: str, folder: Path) -> Run:
    """The truth as a run folder."""
    writer = RunWriter.create(folder, Manifest("0", {"id": "truth"}, [k for k, _ in KINDS], [], ""), "{}\n")
    with writer.video(video_id, rows_per_part=20_000, frames_per_part=2_000) as video:
        for result in world.truth(video_id):
            video.write(result)
    height, width = SIZE
    writer.end_video(
        VideoEntry(video_id, video_id, "done", width, height, str(Fraction(FPS)), world.num_frames, world.num_frames)
    )
    return open_run(folder)


def write_detections(world: World, video_id: str, folder: Path) -> Path:
    """The detections as Parquet that ``--detections`` reads."""
    with VideoWriter(folder) as writer:
        for result in world.detections(video_id):
            writer.write(result)
    return folder
