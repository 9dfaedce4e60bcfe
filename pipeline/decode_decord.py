"""decord on bounded pieces: one piece of a video, remuxed in memory, read once from front to back.

decord 0.6 decodes ahead of its reader without limit, and in many kinds of file it is wrong or hangs when it seeks. Here
it never sees the file: it gets a small MP4 that starts with a keyframe and ends where the piece ends, so it holds no
more than the piece and never seeks. A piece is delivered only after all of it was decoded and checked: decord shows
the last picture again where it has lost one. Import this module only in a process that may be killed.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from io import BytesIO
from itertools import islice
from typing import Any

import av
import decord
import numpy as np
from av.packet import Packet

from pipeline.decode_pyav import packets_from, upright
from pipeline.decode_table import FrameTable
from pipeline.types import Int64Array, UInt8Array

decord.logging.set_level(decord.logging.QUIET)


class DeclinedByDecordError(Exception):
    """decord does not see the piece as the frame table does; the piece is for the other decoder."""


def decode_decord(
    table: FrameTable, start: int, stop: int, stride: int, shrink: Callable[[UInt8Array], UInt8Array]
) -> Iterator[tuple[int, UInt8Array] | None]:
    """``(index, shrink(upright RGB image))`` of every ``stride``-th frame of ``start..stop``.

    ``shrink`` is applied before a picture is kept for delivery. ``None`` is a sign of life while the piece is decoded.

    Raises:
        DeclinedByDecordError: before the first frame.
    """
    table.check_unchanged()
    try:
        piece, pts = remux(table, start, stop)
        first = int(np.searchsorted(pts, table.pts[start]))
        if not np.array_equal(pts[first : first + stop - start], table.pts[start:stop]):
            raise DeclinedByDecordError("the piece lacks packets that the probe has seen")
        yield from _read(table, piece, pts, start - first, range(start, stop, stride), shrink)
    except (decord.DECORDError, av.error.FFmpegError, RuntimeError, StopIteration) as error:
        raise DeclinedByDecordError(_reason(error)) from error


def _reason(error: Exception) -> str:
    """decord's message without its clock times, source lines and stack."""
    text = re.sub(r"\[[\d:]+\] \S+:\d+: ", "", str(error)).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _read(
    table: FrameTable,
    piece: BytesIO,
    pts: Int64Array,
    offset: int,
    wanted: range,
    shrink: Callable[[UInt8Array], UInt8Array],
) -> Iterator[tuple[int, UInt8Array] | None]:
    want = _pictures(table, piece, 1)[0]
    reader = decord.VideoReader(piece, num_threads=1)
    _check(reader, pts, table)
    # Not skip_frames(): it races with the decoder thread near the end of a file.
    kept: deque[tuple[int, UInt8Array]] = deque()
    image = before = reader.next().asnumpy()
    if not np.array_equal(image, want):
        raise DeclinedByDecordError("its first picture is not the one at the keyframe")
    for index in range(offset, offset + len(pts)):
        if index > offset:
            before, image = image, reader.next().asnumpy()
        if index in wanted:
            kept.append((index, shrink(image)))
        yield None
    if len(pts) > 1 and np.array_equal(image, before):
        last_two = _pictures(table, piece, len(pts))
        if not np.array_equal(last_two[0], last_two[-1]):
            raise DeclinedByDecordError("it lost a picture and repeated another")
    del reader
    while kept:
        yield kept.popleft()


def _pictures(table: FrameTable, piece: BytesIO, count: int) -> list[UInt8Array]:
    """The first ``count`` pictures of the piece by PyAV, of which the last two are kept.

    A decoder that cannot start at this keyframe (intra refresh), or converts colours in another way, shows it here.
    """
    with av.open(BytesIO(piece.getbuffer())) as container:
        frames = deque(islice(container.decode(video=0), count), maxlen=2)
        if not frames or (count == 1 and frames[0].pts != container.streams.video[0].start_time):
            raise DeclinedByDecordError("nothing can be decoded at its keyframe")
        return [upright(table, frame) for frame in frames]


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
    # No edit list: it counts in milliseconds and may cut off the last frame.
    form, options = ("webm", {}) if table.codec == "vp8" else ("mp4", {"use_editlist": "0"})
    with closing(source), av.open(target, "w", format=form, options=options) as output:
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
