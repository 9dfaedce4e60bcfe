"""Brings a run's frames and its rows together again: which frames were tracked, their pictures, their masklets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import yaml

from configs.schema import Config, SamplingConfig
from pipeline import decode
from pipeline.errors import RunError, SourceError
from pipeline.results import FrameResult
from pipeline.types import Frame

if TYPE_CHECKING:
    from pipeline.store import Run, VideoEntry


def open_source(entry: VideoEntry) -> decode.FrameTable:
    """The frame table of this entry's video.

    Raises:
        SourceError: it is gone, unreadable, or not the video that was tracked.
    """
    if entry.status == "failed":
        raise SourceError("this video failed to be tracked", entry.video_id, entry.error or "see manifest.json")
    table = decode.probe(entry.uri, entry.video_id)
    size = (table.info.width, table.info.height)
    if size != (entry.width, entry.height):
        raise SourceError(
            f"the video is {size[0]}x{size[1]}, but {entry.width}x{entry.height} was tracked",
            entry.uri,
            "it is another file now; bring the tracked one back",
        )
    return table


def sampling_of(run: Run) -> SamplingConfig:
    """Which frames the run was told to track; all of them where its folder does not say."""
    path = run.folder / "config.yaml"
    try:
        return Config.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {}).sampling
    except FileNotFoundError:
        return SamplingConfig()
    except (ValueError, yaml.YAMLError, OSError) as error:
        raise RunError("config.yaml is damaged", str(path), type(error).__name__) from error


def tracked_frames(run: Run, entry: VideoEntry, table: decode.FrameTable) -> range:
    """The frame indices that were tracked, whether or not something was found on them.

    Raises:
        RunError: there are rows of frames that the run's configuration leaves out.
    """
    sampling = sampling_of(run)
    start = _moment(sampling.start, table, default=0)
    stop = min(_moment(sampling.stop, table, default=len(table)), len(table))
    frames = range(start, stop, sampling.stride)
    if entry.num_tracked:
        frames = frames[: entry.num_tracked]
    rows = np.unique(run.table(entry.video_id, ["frame"])["frame"].to_numpy())
    if len(rows) and (not frames or rows[-1] > frames[-1]):
        frames = range(frames.start, int(rows[-1]) + 1, sampling.stride)
    strays = np.setdiff1d(rows, np.arange(frames.start, frames.stop, frames.step))
    if len(strays):
        raise RunError(f"frame {strays[0]} has rows, but config.yaml says it was not tracked", entry.video_id)
    return frames


def _moment(text: str | None, table: decode.FrameTable, *, default: int) -> int:
    """A frame number, or the first frame at or after a moment given as ``12.5s``."""
    if text is None:
        return default
    if text.endswith("s"):
        return int(np.searchsorted(table.pts_s - table.pts_s[0], float(text[:-1]), side="left"))
    return int(text)


def pictures(table: decode.FrameTable, frames: range) -> Iterator[Frame]:
    """The pictures of these frames at source size."""
    return decode.read(table, frames.start, frames.stop, stride=frames.step, decoder="pyav")


def scattered(table: decode.FrameTable, indices: Iterable[int], *, gap: int = 48) -> Iterator[Frame]:
    """The pictures of a few frames: one pass over each cluster of them, as seeking costs about ``gap`` frames."""
    wanted = sorted(set(indices))
    cuts = [i for i in range(1, len(wanted)) if wanted[i] - wanted[i - 1] > gap]
    for start, stop in zip([0, *cuts], [*cuts, len(wanted)], strict=True):
        cluster = wanted[start:stop]
        if cluster:
            keep = set(cluster)
            yield from (f for f in decode.read(table, cluster[0], cluster[-1] + 1, decoder="pyav") if f.index in keep)


class Lane:
    """Walks a run's results in step with pictures: rows of frames without a picture are passed over."""

    def __init__(self, results: Iterator[FrameResult]) -> None:
        self._results = results
        self._next = next(results, None)

    def at(self, frame: Frame) -> FrameResult:
        """The rows of this frame, empty where there are none; frames must be asked for in time order."""
        while self._next is not None and self._next.index < frame.index:
            self._next = next(self._results, None)
        return self._next if self._next is not None and self._next.index == frame.index else nothing(frame)


def nothing(frame: Frame) -> FrameResult:
    """The result of a frame on which nothing was found."""
    none = np.zeros(0, np.float32)
    boxes = np.zeros((0, 4), np.float32)
    return FrameResult(
        frame.stream_id, frame.index, frame.pts_s, frame.source_size, np.zeros(0, np.int32), (), none, boxes, ()
    )
