"""From packets to a frame table: what is shown, when, where decoding can start, and which decoder may do it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from pipeline.decode_images import is_image_folder, probe_images
from pipeline.decode_table import (
    FrameTable,
    Orientation,
    _stamp,
    local_path,
    open_container,
    redact,
    scheme_of,
    video_stream,
)
from pipeline.errors import NoVideoError
from pipeline.types import Int64Array, VideoInfo

MAX_REORDER_FRAMES = 32
"""No codec shows a frame further than 16 frames from where it is stored; more means that the clock jumped."""
DECORD_CONTAINERS = ("mov", "matroska")
DECORD_CODECS = ("h264", "hevc", "vp8", "vp9")
_FALLBACK_FPS = Fraction(25)
_TS_PACKET_BYTES = 188


@dataclass(slots=True)
class _Scan:
    """What one pass over the packets saw, in storage order."""

    pts: list[int | None] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    """Bytes of each packet in ``pts``."""
    key_pts: list[int] = field(default_factory=list)
    num_packets: int = 0
    num_discarded: int = 0
    num_hidden: int = 0
    first: av.VideoFrame | None = None
    is_last_corrupt: bool = False
    error: str = ""


def probe(uri: str, stream_id: str, *, image_fps: Fraction = Fraction(24)) -> FrameTable:
    """List the frames of a video, or of a folder of pictures, without decoding more than the first one.

    Reads the whole file once. ``image_fps`` is the rate of a folder of pictures, which has none of its own.

    Raises:
        NoVideoError: there is no video stream, or no frame of it can be decoded.
        SourceError: it is missing, empty, unreadable or in a format or codec that is not supported.
    """
    if not scheme_of(uri) and is_image_folder(local_path(uri)):
        return probe_images(local_path(uri), stream_id, image_fps)
    with open_container(uri) as container:
        stream = video_stream(container, redact(uri))
        scan = _scan(container, stream)
        if scan.first is None or not scan.pts:
            raise NoVideoError(
                "not one frame of it can be decoded", redact(uri), "check that it plays, or copy it again"
            )
        return _table(uri, stream_id, container, stream, scan, scan.first)


def packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet[Any]]:
    """The packets of ``stream`` with data in them, in storage order; empty ones stand for a repeated frame."""
    return (packet for packet in container.demux(stream) if packet.size)


def _scan(container: InputContainer, stream: VideoStream) -> _Scan:
    scan = _Scan()
    try:
        for packet in packets(container, stream):
            _note_packet(scan, packet, stream.codec_context.name)
            if scan.first is None:
                scan.first = _try_decode(stream, packet)
    except av.error.FFmpegError as error:
        scan.error = f"reading stops after {scan.num_packets} packets: {error.strerror}"
    if scan.first is None:
        scan.first = _try_decode(stream, None)
    if scan.is_last_corrupt and len(scan.pts) > 1:  # the file ends inside this frame: it is not there
        scan.pts.pop()
        scan.sizes.pop()
        scan.num_packets -= 1
    return scan


def _note_packet(scan: _Scan, packet: Packet[Any], codec: str) -> None:
    scan.num_packets += 1
    scan.is_last_corrupt = packet.is_corrupt
    if packet.is_keyframe and packet.pts is not None:
        scan.key_pts.append(packet.pts)
    if packet.is_discard:
        scan.num_discarded += 1
    elif _is_hidden(packet, codec):
        scan.num_hidden += 1
    else:
        scan.pts.append(packet.pts)
        scan.sizes.append(packet.size)


def _is_hidden(packet: Packet[Any], codec: str) -> bool:
    """True for a VP8 packet that is only a reference (RFC 6386, section 9.1: the show_frame bit)."""
    return codec in ("vp8", "libvpx") and not memoryview(packet)[0] & 0x10


def _try_decode(stream: VideoStream, packet: Packet[Any] | None) -> av.VideoFrame | None:
    try:
        return next(iter(stream.codec_context.decode(packet)), None)
    except av.error.FFmpegError:
        return None


def _table(
    uri: str, stream_id: str, container: InputContainer, stream: VideoStream, scan: _Scan, first: av.VideoFrame
) -> FrameTable:
    fps = stream.average_rate or stream.guessed_rate or None
    pts, time_base, is_indexed = _presentation_times(scan, first, stream.time_base or Fraction(1, 1000), fps)
    orientation = Orientation.of(first)
    height, width = (first.width, first.height) if orientation.transpose else (first.height, first.width)
    duration_s = float((int(pts[-1]) - int(pts[0])) * time_base + 1 / (fps or _FALLBACK_FPS))
    missing, damage = _missing(uri, container, stream, scan, pts, time_base, fps)
    reason = _decord_reason(uri, container.format.name, stream, scan, is_indexed, orientation, damage)
    return FrameTable(
        info=VideoInfo(redact(uri), width, height, fps, len(pts), duration_s, orientation.rotation_deg),
        stream_id=stream_id,
        source=uri,
        pts=pts,
        time_base=time_base,
        container=container.format.name,
        codec=stream.codec_context.name,
        decord_ok=not reason,
        decord_reason=reason,
        keyframes=np.unique(np.array(scan.key_pts, np.int64)),
        packet_bytes=_packet_bytes(scan, pts) if is_indexed else np.zeros(0, np.int64),
        is_indexed=is_indexed,
        num_declared=stream.frames or (len(pts) + missing if missing else None),
        num_missing=missing,
        damage=damage,
        orientation=orientation,
        coded_size=(first.height, first.width),
        stamp=None if scheme_of(uri) else _stamp(uri),
    )


def _presentation_times(
    scan: _Scan, first: av.VideoFrame, time_base: Fraction, fps: Fraction | None
) -> tuple[Int64Array, Fraction, bool]:
    """``(pts, time base, whether pts identify frames)``.

    Frames before the first that decodes, or before the first keyframe (a capture that starts between keyframes), are
    left out: nobody can see them whole.
    """
    stored = [p for p in scan.pts if p is not None]
    pts = np.array(stored, np.int64)
    order = np.argsort(pts, kind="stable")
    is_regular = bool(np.all(np.abs(order - np.arange(len(order))) <= MAX_REORDER_FRAMES))
    if len(stored) < len(scan.pts) or not is_regular:
        return np.arange(len(scan.pts), dtype=np.int64), 1 / (fps or _FALLBACK_FPS), False
    pts = pts[order]
    if bool(np.any(np.diff(pts) == 0)) or first.pts is None:
        return pts, time_base, False
    return pts[pts >= max([first.pts, *scan.key_pts[:1]])], time_base, True


def _packet_bytes(scan: _Scan, pts: Int64Array) -> Int64Array:
    """``(n,)`` sizes in presentation order; ``pts`` identify frames."""
    size_of = dict(zip(scan.pts, scan.sizes, strict=True))
    return np.array([size_of[p] for p in pts.tolist()], np.int64)


def _missing(
    uri: str,
    container: InputContainer,
    stream: VideoStream,
    scan: _Scan,
    pts: Int64Array,
    time_base: Fraction,
    fps: Fraction | None,
) -> tuple[int, str]:
    """``(frames promised beyond those that are there, what is damaged)``."""
    found = scan.num_packets
    if container.format.name == "avi" and fps:  # an empty AVI chunk repeats a frame: counted, but never a packet
        found = max(found, round((int(pts[-1]) - int(pts[0])) * time_base * fps) + 1)
    missing = max(0, stream.frames - found)
    promised_s = _tagged_duration_s(stream)
    if not stream.frames and promised_s and fps:
        missing_s = promised_s - float((int(pts[-1]) + 1) * time_base)
        missing = max(0, round(missing_s * fps) - 1)
    if scan.error:
        return missing, scan.error
    if scan.is_last_corrupt or (container.format.name == "mpegts" and _ends_in_packet(uri)):
        return missing, "it ends in the middle of a frame"
    if missing:
        return missing, f"the container promises {missing} more frames than it has"
    return 0, ""


def _ends_in_packet(uri: str) -> bool:
    """True for a local MPEG transport stream that was cut inside one of its packets of 188 bytes."""
    if scheme_of(uri):
        return False
    with local_path(uri).open("rb") as file:
        head = file.read(_TS_PACKET_BYTES + 1)
        size = file.seek(0, os.SEEK_END)
    return head[:1] == head[_TS_PACKET_BYTES:] == b"G" and size % _TS_PACKET_BYTES != 0


def _tagged_duration_s(stream: VideoStream) -> float | None:
    """Length of the stream by Matroska's ``DURATION`` tag, seconds; written ahead of the frames by most muxers."""
    match = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    return None if match is None else int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])


def _decord_reason(
    uri: str,
    container: str,
    stream: VideoStream,
    scan: _Scan,
    is_indexed: bool,
    orientation: Orientation,
    damage: str,
) -> str:
    """Why decord 0.6 may not have this source, or an empty string.

    Each rule stands for a case in which decord was seen to fail, hang or return other frames without an error.
    """
    codec, pixels = stream.codec_context.name, stream.codec_context.pix_fmt or ""
    refusals = {
        "it is not a local file": bool(scheme_of(uri)),
        f"container {container} (decord is right only for MP4 and Matroska)": not container.startswith(
            DECORD_CONTAINERS
        ),
        f"codec {codec}": codec not in DECORD_CODECS,
        f"pixel format {pixels} (only 8-bit 4:2:0 is the same in both decoders)": pixels not in ("yuv420p", "yuvj420p"),
        "an edit list hides frames": scan.num_discarded > 0,
        "reference frames are stored apart": scan.num_hidden > 0,
        "presentation times are missing or ambiguous": not is_indexed,
        "it is mirrored": orientation.is_mirrored,
        "it is interlaced": scan.first is not None and scan.first.interlaced_frame,
        f"it is damaged: {damage}": bool(damage),
    }
    return next((reason for reason, holds in refusals.items() if holds), "")
