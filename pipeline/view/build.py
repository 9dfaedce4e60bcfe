"""Gathers what the report shows of one video: times, outlines, scores, crops, and a small copy of the video."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DecodeError, SourceError
from pipeline.render.encode import Mp4Writer
from pipeline.render.frames import Lane, open_source, pictures, tracked_frames
from pipeline.render.lives import Life, lives_of
from pipeline.render.palette import colour, hex_colour, ink
from pipeline.render.sheet import moments_of, portrait
from pipeline.render.timeline import longest
from pipeline.results import FrameResult
from pipeline.types import Frame, Int64Array, UInt8Array
from pipeline.view.pack import Grid, Outlines, packed, packed_steps

if TYPE_CHECKING:
    from pipeline.store import Run, VideoEntry

PROXY_WIDTH_PX = 640
"""The video copy in the report is at most this wide (and as high as that makes it)."""
_PROXY = {"profile": "baseline", "preset": "veryfast", "crf": "27", "g": "12"}
"""Baseline plays on any device; a key frame every 12 makes scrubbing quick."""
CROPS, CROPS_FOR = 6, 150
"""Pictures of each masklet's life, and for how many (the longest) there are any."""
_CROP = (176, 110)


@dataclass(slots=True)
class VideoData:
    """One video's part of the report."""

    payload: dict[str, Any]
    """What the page's script reads (JSON)."""
    has_video: bool
    """Whether a copy of the video was written."""
    notice: str
    """Why not, or empty."""


@dataclass(slots=True)
class _Gathered:
    frames: list[int]
    times_us: list[int]
    outlines: dict[int, Outlines]
    crops: dict[int, list[tuple[int, str]]]


def build_video(run: Run, entry: VideoEntry, proxy: Path) -> VideoData:
    """Read one video's rows and pictures once, in step; write the small copy to ``proxy``.

    A source that is gone is no error here: the report then shows the masks alone, and says why.
    """
    lives = lives_of(run, entry.video_id)
    grid = Grid.of(entry.width, entry.height)
    notice = ""
    try:
        gathered = _with_pictures(run, entry, lives, grid, proxy)
    except (SourceError, DecodeError) as error:
        notice = f"The video is not shown: {error}"
        gathered = _without_pictures(run, entry, grid)
    return VideoData(_payload(entry, lives, grid, gathered), proxy.exists(), notice)


def _with_pictures(run: Run, entry: VideoEntry, lives: list[Life], grid: Grid, proxy: Path) -> _Gathered:
    table = open_source(entry)
    tracked = tracked_frames(run, entry, table)
    wanted = {life.masklet_id: set(moments_of(life, CROPS).tolist()) for life in longest(lives, CROPS_FOR)}
    lane = Lane(run.frames(entry.video_id))
    gathered = _Gathered([], [], {}, {})
    first = int(table.pts[tracked.start]) if tracked else 0
    with Mp4Writer(proxy, time_base=table.time_base, fps=table.info.fps, options=_PROXY) as writer:
        for frame in pictures(table, tracked):
            ticks = int(table.pts[frame.index]) - first
            writer.write(_small(frame.image), ticks)
            result = lane.at(frame)
            _gather(gathered, result, grid, round(ticks * table.time_base * 1_000_000))
            _crop(gathered, frame, result, wanted)
    if not gathered.frames:
        raise SourceError("not a single frame could be read", entry.uri)
    return gathered


def _without_pictures(run: Run, entry: VideoEntry, grid: Grid) -> _Gathered:
    gathered = _Gathered([], [], {}, {})
    start_s: float | None = None
    for result in run.frames(entry.video_id):
        start_s = result.pts_s if start_s is None else start_s
        _gather(gathered, result, grid, round((result.pts_s - start_s) * 1_000_000))
    return gathered


def _gather(gathered: _Gathered, result: FrameResult, grid: Grid, time_us: int) -> None:
    gathered.frames.append(result.index)
    gathered.times_us.append(time_us)
    for masklet_id, rle in zip(result.masklet_id.tolist(), result.rles, strict=True):
        gathered.outlines.setdefault(masklet_id, Outlines()).add(grid.outline(rle))


def _crop(gathered: _Gathered, frame: Frame, result: FrameResult, wanted: dict[int, set[int]]) -> None:
    for masklet_id, rle in zip(result.masklet_id.tolist(), result.rles, strict=True):
        if frame.index in wanted.get(masklet_id, ()):
            picture = portrait(frame.image, rle, _CROP, colour(masklet_id))
            _, jpeg = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 78])
            data = "data:image/jpeg;base64," + base64.b64encode(jpeg.tobytes()).decode()
            gathered.crops.setdefault(masklet_id, []).append((len(gathered.frames) - 1, data))


def _small(image: UInt8Array) -> UInt8Array:
    """The picture at proxy size, with even sides."""
    height, width = image.shape[:2]
    scale = min(1.0, PROXY_WIDTH_PX / width)
    size = (max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def _payload(entry: VideoEntry, lives: list[Life], grid: Grid, gathered: _Gathered) -> dict[str, Any]:
    frames = np.array(gathered.frames, np.int64)
    return {
        "id": entry.video_id,
        "width": entry.width,
        "height": entry.height,
        "grid": [grid.width, grid.height],
        "tolerance_px": round(grid.tolerance_px, 2),
        "origin_s": _origin_s(lives, frames, gathered.times_us),
        "frames": packed_steps(frames),
        "times_us": packed_steps(gathered.times_us),
        "masklets": [_masklet(life, frames, gathered) for life in lives if life.masklet_id in gathered.outlines],
    }


def _origin_s(lives: list[Life], frames: Int64Array, times_us: list[int]) -> float:
    """The source's time of the report's first frame: the rows know it."""
    for life in lives[:1]:
        rank = int(np.searchsorted(frames, life.frame[0]))
        return round(float(life.pts_s[0]) - times_us[rank] / 1_000_000, 6)
    return 0.0


def _masklet(life: Life, frames: Int64Array, gathered: _Gathered) -> dict[str, Any]:
    rgb = colour(life.masklet_id)
    outlines = gathered.outlines[life.masklet_id]
    seen = len(outlines.lengths)  # fewer than rows where the source broke off early
    ranks: NDArray[np.int64] = np.searchsorted(frames, life.frame[:seen]).astype(np.int64)
    return {
        "id": life.masklet_id,
        "phrase": life.phrase,
        "colour": hex_colour(rgb),
        "ink": hex_colour(ink(rgb)),
        "at": packed_steps(ranks),
        "score": packed((life.score[:seen] * 1000).round().astype(np.int64)),
        "lengths": packed(outlines.lengths),
        "outlines": base64.b64encode(bytes(outlines.data)).decode(),
        "crops": gathered.crops.get(life.masklet_id, []),
    }
