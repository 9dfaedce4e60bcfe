"""Which decoder takes which frames: decord where the probe clears it and bounded pieces are worth it, else PyAV."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import numpy as np

from pipeline.decode_table import FrameTable
from pipeline.errors import DecodeError
from pipeline.types import Int64Array

Decoder = Literal["auto", "decord", "pyav"]
MAX_GROUP_SEGMENTS = 2.0
"""A group of pictures longer than so many segments goes to PyAV: every segment in it would decode it from its start."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive frames for one decoder."""

    start: int
    """First frame index."""
    stop: int
    """One past the last."""
    decoder: Literal["decord", "pyav", "images"]


def has_decord() -> bool:
    """True where decord is installed (it has no wheels for Arm and macOS)."""
    return find_spec("decord") is not None


def plan_segments(
    table: FrameTable,
    start: int,
    stop: int,
    stride: int = 1,
    decoder: Decoder = "auto",
    segment_frames: int = 256,
    segment_budget_mb: int = 512,
) -> tuple[Segment, ...]:
    """Cut ``start..stop`` into segments, each starting with a frame of ``start, start + stride, ...``.

    decord segments end before a keyframe where they can, and hold at most ``segment_frames`` frames and
    ``segment_budget_mb`` of decoded pictures: decord may hold all of them at once.

    Raises:
        DecodeError: ``decoder`` is ``decord`` and the source is not cleared for it, or decord is not installed.
    """
    if start < 0 or stride < 1:
        raise ValueError(f"a range needs start >= 0 and stride >= 1, but got {start} and {stride}")
    if start >= stop:
        return ()
    if table.files:
        return (Segment(start, stop, "images"),)
    reason = table.decord_reason or ("" if has_decord() else "it is not installed on this machine")
    if decoder == "decord" and reason:
        raise DecodeError(f"decord may not decode this source: {reason}", table.info.uri, "use --decoder auto or pyav")
    if decoder == "pyav" or reason:
        return (Segment(start, stop, "pyav"),)
    frame_bytes = 3 * table.info.width * table.info.height
    limit = max(1, min(segment_frames, segment_budget_mb * 2**20 // frame_bytes))
    max_group = MAX_GROUP_SEGMENTS * limit if decoder == "auto" else float("inf")
    keys = np.searchsorted(table.pts, table.keyframes).astype(np.int64)
    return _aligned(_merged(_cut(keys, start, stop, limit, max_group)), start, stride)


def _cut(keys: Int64Array, start: int, stop: int, limit: int, max_group: float) -> list[Segment]:
    """Segments of at most ``limit`` frames for decord, whole groups for PyAV."""
    segments: list[Segment] = []
    while start < stop:
        position = int(np.searchsorted(keys, start, side="right"))
        group_start = int(keys[position - 1]) if position else -1
        group_stop = int(keys[position]) if position < len(keys) else stop
        if position == 0 or min(group_stop, stop) - group_start > max_group:
            end = min(group_stop, stop)
            segments.append(Segment(start, end, "pyav"))
        else:
            end = _decord_end(keys, start, stop, limit)
            segments.append(Segment(start, end, "decord"))
        start = end
    return segments


def _decord_end(keys: Int64Array, start: int, stop: int, limit: int) -> int:
    """The furthest end within ``limit``: the stop, else a keyframe, else in the middle of a group."""
    if stop - start <= limit:
        return stop
    position = int(np.searchsorted(keys, start + limit, side="right")) - 1
    return int(keys[position]) if keys[position] > start else start + limit


def _merged(segments: list[Segment]) -> list[Segment]:
    """Neighbours for PyAV as one: it reads on without a seek."""
    merged: list[Segment] = []
    for segment in segments:
        if merged and merged[-1].decoder == segment.decoder == "pyav":
            merged[-1] = Segment(merged[-1].start, segment.stop, "pyav")
        else:
            merged.append(segment)
    return merged


def _aligned(segments: list[Segment], start: int, stride: int) -> tuple[Segment, ...]:
    """Move every segment's start to the next wanted frame; those without one are dropped."""
    moved = (Segment(s.start + (start - s.start) % stride, s.stop, s.decoder) for s in segments)
    return tuple(s for s in moved if s.start < s.stop)
