"""PyAV: exact frames of any source FFmpeg can read, from any starting point."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from itertools import chain
from typing import Any

import av
import numpy as np
from av.packet import Packet
from av.video.stream import VideoStream

from pipeline.decode_probe import packets
from pipeline.decode_table import FrameTable, open_container, video_stream
from pipeline.types import UInt8Array

STEP_BACK_S = (0.0, 1.0, 4.0, 16.0)
"""A demuxer may seek past its target (MPEG-TS, open-GOP HEVC): step back so far, then start over."""
GROUPS_BACK = (0, 1, 4, None)
"""How many groups to start earlier if a keyframe is none: with intra refresh nothing is shown until the picture has
recovered. ``None``: from the start of the file."""


def packets_from(table: FrameTable, start: int, groups_back: int | None = 0) -> Generator[Packet[Any]]:
    """Packets in storage order, from a keyframe at or before frame ``start`` in presentation order.

    From such a keyframe on every frame that is shown after it decodes to the same pixels as in a pass from the start,
    also with open GOPs: the frames that would need an earlier group are shown before it. Errors while reading end the
    iteration: what the probe could not reach is not in the table.
    """
    key_pts = None if groups_back is None else _key_before(table, start, groups_back)
    if key_pts is not None:
        for back_s in STEP_BACK_S:
            with open_container(table.source) as container:
                stream = video_stream(container, table.info.uri)
                first, rest = _seek(container, stream, key_pts - round(back_s / table.time_base))
                if first is not None and first.pts is not None and first.pts <= key_pts:
                    yield from chain([first], _readable(rest))
                    return
    with open_container(table.source) as container:
        yield from _readable(packets(container, video_stream(container, table.info.uri)))


def _key_before(table: FrameTable, start: int, groups_back: int) -> int | None:
    """Pts of the last keyframe shown at or before frame ``start``, or of one some groups before it.

    ``None`` if reading from the start of the file is as good.
    """
    if not table.is_indexed:
        return None
    position = int(np.searchsorted(table.keyframes, table.pts[start], side="right")) - 1 - groups_back
    return int(table.keyframes[position]) if position > 0 else None


def _seek(
    container: av.container.InputContainer, stream: VideoStream, pts: int
) -> tuple[Packet[Any] | None, Iterator[Packet[Any]]]:
    """Seek to ``pts``: the first keyframe packet from there on, and the packets after it."""
    try:
        container.seek(pts, stream=stream, backward=True)
        rest = packets(container, stream)
        return next((packet for packet in rest if packet.is_keyframe), None), rest
    except av.error.FFmpegError:
        return None, iter(())


def _readable(stored: Iterator[Packet[Any]]) -> Iterator[Packet[Any]]:
    try:
        yield from stored
    except av.error.FFmpegError:
        return


def decode_pyav(table: FrameTable, start: int, stop: int, stride: int) -> Iterator[tuple[int, UInt8Array] | None]:
    """``(index, upright RGB image)`` of every ``stride``-th frame of ``start..stop`` that decodes.

    ``None`` stands for a frame that was decoded on the way: a sign of life. Frames that cannot be decoded are left out.
    """
    table.check_unchanged()
    if start >= stop:
        return
    last = start - 1
    for index, frame in _numbered(table, start):
        if index >= stop:
            return
        # A damaged stream may show a frame twice: an index is given once, and in order.
        is_wanted = index > last and (index - start) % stride == 0
        last = max(last, index)
        yield (index, upright(table, frame)) if is_wanted else None


def _numbered(table: FrameTable, start: int) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decoded frames with their index; -1 for a frame that is not in the table."""
    if not table.is_indexed:
        yield from enumerate(_decoded(packets_from(table, start)))
        return
    for frame in _decoded_from(table, start):
        if frame.pts is not None:
            position = int(np.searchsorted(table.pts, frame.pts))
            is_listed = position < len(table) and table.pts[position] == frame.pts
            yield position if is_listed else -1, frame


def _decoded_from(table: FrameTable, start: int) -> Iterator[av.VideoFrame]:
    """Decoded frames in order; the first is shown at or before frame ``start``, if that can be had at all."""
    for groups_back in GROUPS_BACK:
        frames = _decoded(packets_from(table, start, groups_back))
        first = next(frames, None)
        is_early = first is not None and first.pts is not None and first.pts <= table.pts[start]
        if first is not None and (is_early or groups_back is None):
            yield from chain([first], frames)
            return


def _decoded(stored: Iterator[Packet[Any]]) -> Iterator[av.VideoFrame]:
    """Decode packets in order; a broken one is passed over, as every player does."""
    stream: VideoStream | None = None
    for packet in stored:
        stream = packet.stream
        yield from _decode(stream, packet)
    if stream is not None:
        yield from _decode(stream, None)


def _decode(stream: VideoStream, packet: Packet[Any] | None) -> list[av.VideoFrame]:
    try:
        return stream.codec_context.decode(packet)
    except av.error.FFmpegError:
        return []


def upright(table: FrameTable, frame: av.VideoFrame) -> UInt8Array:
    """The frame as upright RGB; a picture whose size changes on the way is scaled to that of the first."""
    height, width = table.coded_size
    image = frame.to_ndarray(format="rgb24", width=width, height=height)
    return table.orientation.apply(np.asarray(image, np.uint8))
