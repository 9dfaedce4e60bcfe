"""Cutouts: each masklet alone on a transparent ground, cropped to the box of its whole life.

``cutout/VIDEO/masklet-0001.webm`` is VP9 with alpha, one frame per tracked frame of its life, at the source's times;
``cutout-png/VIDEO/masklet-0001/00000.png`` the same as RGBA pictures, named by source frame. Frames on which the
masklet is hidden are transparent. Colours are not premultiplied.

Needs the source video, which is read once for each :data:`MAX_OPEN` masklets.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
from PIL import Image

from pipeline import decode
from pipeline.errors import FormatError, SourceError
from pipeline.masks import decode as decode_masks
from pipeline.results import FrameResult
from pipeline.sinks.jsonio import dumps
from pipeline.sinks.reading import CheckedRun, rate_of
from pipeline.store import VideoEntry
from pipeline.types import Frame, UInt8Array

MAX_OPEN = 16
"""Masklets written at a time: each WebM has an encoder with buffers of its own."""


@dataclass(slots=True)
class _Life:
    """Where and when a masklet is, over its whole life."""

    masklet_id: int
    prompt: str
    box: list[int]
    """xyxy pixels, x2 and y2 exclusive."""
    first: int
    last: int


class _Track(Protocol):
    """Takes the pictures of one masklet in time order."""

    def write(self, frame: Frame, rgba: UInt8Array) -> None: ...

    def close(self) -> None: ...


class _WebM:
    """VP9 with alpha. Source: FFmpeg's libvpx encoder; alpha needs yuva420p and no alternate reference frames."""

    def __init__(self, path: Path, size: tuple[int, int], rate: Fraction, start_s: float) -> None:
        self._container = av.open(str(path), "w", format="webm")
        options = {"auto-alt-ref": "0", "crf": "24", "b": "0", "deadline": "realtime", "cpu-used": "5"}
        self._stream: Any = self._container.add_stream("libvpx-vp9", rate=rate, options=options)
        # 4:2:0 halves the chroma: odd sides get one transparent row or column.
        self._stream.height, self._stream.width = (side + side % 2 for side in size)
        self._stream.pix_fmt = "yuva420p"
        self._stream.time_base = Fraction(1, 1000)
        self._stream.codec_context.thread_count = 1
        self._start_s = start_s
        self._last = -1

    def write(self, frame: Frame, rgba: UInt8Array) -> None:
        padded = np.zeros((self._stream.height, self._stream.width, 4), np.uint8)
        padded[: rgba.shape[0], : rgba.shape[1]] = rgba
        picture = av.VideoFrame.from_ndarray(padded, format="rgba").reformat(format="yuva420p")
        # WebM's clock ticks in milliseconds, and it never stands still.
        self._last = max(self._last + 1, round((frame.pts_s - self._start_s) * 1000))
        picture.pts, picture.time_base = self._last, Fraction(1, 1000)
        self._container.mux(self._stream.encode(picture))

    def close(self) -> None:
        self._container.mux(self._stream.encode(None))
        self._container.close()


class _Pngs:
    """A folder of RGBA pictures."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()

    def write(self, frame: Frame, rgba: UInt8Array) -> None:
        Image.fromarray(rgba).save(self._folder / f"{frame.index:05d}.png")

    def close(self) -> None:
        """Every picture is complete already."""


class _Cutout:
    """What both kinds share: find the lives, then read the video in step with the rows."""

    def export(self, run: CheckedRun, folder: Path) -> list[str]:
        """One file or folder per masklet, and ``masklets.json`` that says which is where."""
        described = {}
        for entry in run.videos:
            lives, stride = _lives(run, entry)
            target = folder / entry.video_id
            target.mkdir()
            described[entry.video_id] = [_described(life) for life in lives]
            for start in range(0, len(lives), MAX_OPEN):
                self._write(run, entry, lives[start : start + MAX_OPEN], stride, target)
        (folder / "masklets.json").write_text(dumps(described) + "\n", encoding="utf-8")
        return ["scores are left out: the format has none"]

    def _track(self, folder: Path, life: _Life, rate: Fraction, start_s: float) -> _Track:
        raise NotImplementedError

    def _write(self, run: CheckedRun, entry: VideoEntry, lives: list[_Life], stride: int, folder: Path) -> None:
        tracks: dict[int, _Track] = {}
        frames = range(min(life.first for life in lives), max(life.last for life in lives) + 1, stride)
        try:
            for frame, result in _pictures(run, entry, frames):
                for life in lives:
                    if life.first <= frame.index <= life.last:
                        if life.masklet_id not in tracks:
                            rate = rate_of(entry)
                            tracks[life.masklet_id] = self._track(folder, life, rate, frame.pts_s)
                        tracks[life.masklet_id].write(frame, _cut(frame, result, life))
                    if frame.index == life.last:
                        tracks.pop(life.masklet_id).close()
        finally:
            for track in tracks.values():
                track.close()
        if tracks:
            raise SourceError("the video ends before its masklets do", entry.uri, "is it the file that was tracked?")


class CutoutWebM(_Cutout):
    """Writes a WebM per masklet."""

    def _track(self, folder: Path, life: _Life, rate: Fraction, start_s: float) -> _Track:
        x1, y1, x2, y2 = life.box
        return _WebM(folder / f"masklet-{life.masklet_id:04d}.webm", (y2 - y1, x2 - x1), rate, start_s)


class CutoutPng(_Cutout):
    """Writes a folder of PNGs per masklet."""

    def _track(self, folder: Path, life: _Life, rate: Fraction, start_s: float) -> _Track:
        return _Pngs(folder / f"masklet-{life.masklet_id:04d}")


def _described(life: _Life) -> dict[str, Any]:
    return {
        "masklet_id": life.masklet_id,
        "prompt": life.prompt,
        "crop_xyxy": life.box,
        "first_frame": life.first,
        "last_frame": life.last,
    }


def _lives(run: CheckedRun, entry: VideoEntry) -> tuple[list[_Life], int]:
    """The lives by id, and the stride with which the video was tracked.

    The stride is the widest that all frames with objects allow, if so few frames were tracked; skipped frames would
    flicker as transparent ones.
    """
    lives: dict[int, _Life] = {}
    start, stride = -1, 0
    for result in run.frames(entry):
        start = result.index if start < 0 else start
        stride = math.gcd(stride, result.index - start)
        boxes = np.concatenate([np.floor(result.xyxy[:, :2]), np.ceil(result.xyxy[:, 2:])], axis=1)
        boxes = boxes.clip(0, [entry.width, entry.height] * 2).astype(int)
        for masklet_id, prompt, box in zip(result.masklet_id.tolist(), result.prompt, boxes.tolist(), strict=True):
            life = lives.setdefault(masklet_id, _Life(masklet_id, prompt, box, result.index, result.index))
            x1, y1, x2, y2 = zip(life.box, box, strict=True)
            life.box = [min(x1), min(y1), max(x2), max(y2)]
            life.last = result.index
    believed = stride > 1 and (entry.num_tracked - 1) * stride < entry.num_frames
    return [lives[i] for i in sorted(lives)], stride if believed else 1


def _pictures(run: CheckedRun, entry: VideoEntry, frames: range) -> Iterator[tuple[Frame, FrameResult | None]]:
    """These frames of the source with their rows, ``None`` where there are none.

    Raises:
        SourceError: the video is not there, or of another size.
    """
    try:
        table = decode.probe(entry.uri, entry.video_id)
    except SourceError as error:
        raise SourceError(f"cutout needs the source video: {error.what}", entry.uri, error.todo) from error
    if table.source_size != (entry.height, entry.width):
        height, width = table.source_size
        raise FormatError(f"the video is {width} x {height}, the run {entry.width} x {entry.height}", entry.uri)
    results = run.frames(entry)
    result = next(results, None)
    for frame in decode.read(table, frames.start, frames.stop, stride=frames.step, decoder="pyav"):
        while result is not None and result.index < frame.index:
            result = next(results, None)
        yield frame, result if result is not None and result.index == frame.index else None


def _cut(frame: Frame, result: FrameResult | None, life: _Life) -> UInt8Array:
    """The masklet's crop of the frame, transparent outside its mask."""
    x1, y1, x2, y2 = life.box
    rgba = np.zeros((y2 - y1, x2 - x1, 4), np.uint8)
    row = np.flatnonzero(result.masklet_id == life.masklet_id) if result is not None else np.zeros(0, int)
    if result is not None and len(row):
        inside = decode_masks([result.rles[row[0]]])[0, y1:y2, x1:x2]
        rgba[..., :3] = frame.image[y1:y2, x1:x2]
        rgba[..., 3] = inside * np.uint8(255)
    return rgba
