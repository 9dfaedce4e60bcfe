"""decord on bounded pieces: one piece of a video, remuxed in memory, read once from front to back.

decord 0.6 decodes ahead of its reader without limit, and in many kinds of file it is wrong or hangs when it seeks. Here
it never sees the file: it gets a small MP4 that starts with a keyframe and ends where the piece ends, so it holds no
more than the piece and never seeks. Import this module only in a process that may be killed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from io import BytesIO
from typing import Any

import av
import decord
import numpy as np
from av.packet import Packet

from pipeline.decode_pyav import packets_from
from pipeline.decode_table import FrameTable
from pipeline.types import Int64Array, UInt8Array

decord.logging.set_level(decord.logging.QUIET)


class DeclinedByDecordError(Exception):
    """decord does not see the piece as the frame table does; the piece is for the other decoder."""


def decode_decord(table: FrameTable, start: int, stop: int, stride: int) -> Iterator[tuple[int, UInt8Array] | None]:
    """``(index, upright RGB image)`` of every ``stride``-th frame of ``start..stop``.

    Raises:
        DeclinedByDecordError: before the first frame, or instead of a wrong or missing one.
    """
    table.check_unchanged()
    try:
        piece, pts = remux(table, start, stop)
        first = int(np.searchsorted(pts, table.pts[start]))
        if not np.array_equal(pts[first : first + stop - start], table.pts[start:stop]):
            raise DeclinedByDecordError("the piece lacks packets that the probe has seen")
        yield from _read(table, piece, pts, start - first, range(start, stop, stride))
    except (decord.DECORDError, av.error.FFmpegError, RuntimeError) as error:
        lines = str(error).strip().splitlines()
        raise DeclinedByDecordError(lines[-1] if lines else type(error).__name__) from error


def _read(
    table: FrameTable, piece: BytesIO, pts: Int64Array, offset: int, wanted: range
) -> Iterator[tuple[int, UInt8Array] | None]:
    reader = decord.VideoReader(piece, num_threads=1)
    _check(reader, pts, table)
    position = offset
    for index in wanted:
        if index > position:
            reader.skip_frames(index - position)
            yield None
        image = reader.next().asnumpy()
        position = index + 1
        if image.shape != (*table.source_size, 3):
            raise RuntimeError(f"frames of {image.shape[1]}x{image.shape[0]} instead of upright {table.source_size}")
        yield index, image


def _check(reader: decord.VideoReader, pts: Int64Array, table: FrameTable) -> None:
    """Refuse unless decord counts and times the frames of the piece as its packets say."""
    if len(reader) != len(pts):
        raise DeclinedByDecordError(f"it counts {len(reader)} frames where there are {len(pts)}")
    times_s = np.asarray(reader.get_frame_timestamp(range(len(reader))))[:, 0]
    want_s = (pts - pts[0]) * float(table.time_base)
    gap_s = float(np.diff(want_s).min()) if len(pts) > 1 else 1.0
    if np.abs(times_s - times_s[0] - want_s).max() > gap_s / 2:
        raise DeclinedByDecordError("it gives frames other times than their packets")


def remux(table: FrameTable, start: int, stop: int) -> tuple[BytesIO, Int64Array]:
    """Frames ``start..stop`` with all they refer to, as a file in memory, and the pts of its frames in order.

    It runs from the last keyframe shown at or before ``start`` to the last packet that a frame before ``stop`` needs.
    Frames stored after that keyframe but shown before it refer to the group before: they are left out.
    """
    source = packets_from(table, start)
    kept = _needed(source, table, start, stop)
    pts = np.array([packet.pts for packet in kept], np.int64)
    target = BytesIO()
    # WebM for VP8, which MP4 does not hold. MP4 elsewhere: it keeps the time base of the source.
    with closing(source), av.open(target, "w", format="webm" if table.codec == "vp8" else "mp4") as output:
        stream = output.add_stream_from_template(kept[0].stream)
        stream.time_base = table.time_base
        for packet, pts_new, dts_new in zip(kept, *_fresh_clock(pts), strict=True):
            packet.pts, packet.dts, packet.stream = pts_new, dts_new, stream
            output.mux(packet)
    target.seek(0)
    return target, np.sort(pts)


def _needed(source: Iterator[Packet[Any]], table: FrameTable, start: int, stop: int) -> list[Packet[Any]]:
    """The packets of the piece in storage order."""
    key_pts = table.keyframes[np.searchsorted(table.keyframes, table.pts[start], side="right") - 1]
    num_before_stop = stop - int(np.searchsorted(table.pts, key_pts))
    kept: list[Packet[Any]] = []
    for packet in source:
        if packet.pts == key_pts or (kept and packet.pts > key_pts):
            kept.append(packet)
            num_before_stop -= packet.pts <= table.pts[stop - 1]
        if not num_before_stop:
            return kept
    raise DeclinedByDecordError("the file has fewer packets than the probe has seen")


def _fresh_clock(pts: Int64Array) -> tuple[list[int], list[int]]:
    """``(pts, dts)`` from zero for packets in storage order: dts ascend and never exceed pts.

    Some containers store no dts and others strange ones. Delaying all pts by the deepest reordering leaves room.
    """
    ranks = np.argsort(np.argsort(pts))
    delay = int((np.arange(len(pts)) - ranks).max())
    shown = np.sort(pts) - pts.min()
    step = int(np.diff(shown).min()) if len(pts) > 1 else 1
    lead = np.arange(delay) * step
    return (pts - pts.min() + delay * step).tolist(), np.concatenate([lead, shown + delay * step])[: len(pts)].tolist()
