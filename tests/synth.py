"""Videos whose every frame says its own number, in all the kinds of file that decoders get wrong; made with PyAV.

`barcode(i)` draws frame number ``i`` into the picture as twelve black or white blocks behind a marker, over a moving
background; `read_barcode` reads it back from any decoded or resized frame, and finds nothing in a picture that is not
upright. The makers write one kind of file each and return the numbers of the frames that must come out, in order.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from pipeline.types import UInt8Array

HEIGHT, WIDTH = 192, 320
_MARKER = (1, 0, 1, 1)
_BITS = 12
_TIME_BASE = Fraction(1, 90_000)


def barcode(index: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> UInt8Array:
    """Frame number ``index`` as a picture of ``size`` ``(h, w)``."""
    height, width = size
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    image = np.empty((height, width, 3), np.float32)
    for channel, speed in enumerate((3.0, -2.0, 1.0)):
        image[..., channel] = 128 + 60 * np.sin((x + speed * index) / 23 + channel) * np.cos((y - index) / 31)
    edge = (7 * index) % width
    image[height // 2 : height // 2 + height // 6, edge : edge + width // 8] = (220, 40, 60)
    cells = len(_MARKER) + _BITS
    bits = [*_MARKER, *((index >> b) & 1 for b in reversed(range(_BITS)))]
    for cell, bit in enumerate(bits):
        image[: height // 6, cell * width // cells : (cell + 1) * width // cells] = 235 if bit else 20
    return image.astype(np.uint8)


def read_barcode(image: UInt8Array) -> int | None:
    """The frame number in an upright picture of any size, or ``None`` if it holds none."""
    height, width = image.shape[:2]
    cells = len(_MARKER) + _BITS
    row = image[height // 24 : height // 8].mean(axis=(0, 2))
    bits = [
        int(row[int((c + 0.3) * width / cells) : int((c + 0.7) * width / cells)].mean() > 128) for c in range(cells)
    ]
    if tuple(bits[: len(_MARKER)]) != _MARKER:
        return None
    return int("".join(map(str, bits[len(_MARKER) :])), 2)


def has_encoder(name: str) -> bool:
    """True if this PyAV can encode with it."""
    try:
        av.Codec(name, "w")
    except av.error.FFmpegError:
        return False
    return True


@dataclass(frozen=True)
class Encoding:
    """How to encode: everything a test wants to vary."""

    codec: str = "libx264"
    pix_fmt: str = "yuv420p"
    fps: Fraction = Fraction(30)
    gop: int = 20
    options: dict[str, str] = field(default_factory=dict)
    container_options: dict[str, str] = field(default_factory=dict)
    format: str | None = None
    tags: dict[str, int] = field(default_factory=dict)
    """Attributes of the codec context, such as ``colorspace``."""


H264 = Encoding(options={"bf": "3", "preset": "veryfast", "threads": "1", "sc_threshold": "0"})


VP8 = Encoding("libvpx", options={"b": "2M", "deadline": "realtime", "cpu-used": "8"})


def encode(path: Path, images: Iterable[UInt8Array], how: Encoding = H264, pts: Sequence[int] | None = None) -> None:
    """Write ``images``. ``pts`` are in 1/90000 s; without them frames are evenly spaced."""
    with av.open(str(path), "w", format=how.format, options=how.container_options) as output:
        stream: Any = None
        for position, image in enumerate(images):
            if stream is None:
                stream = output.add_stream(how.codec, rate=how.fps, options=how.options)
                stream.height, stream.width = image.shape[:2]
                stream.pix_fmt, stream.gop_size = how.pix_fmt, how.gop
                stream.codec_context.thread_count = 1
                if pts is not None:
                    stream.codec_context.time_base = _TIME_BASE
                for name, value in how.tags.items():
                    setattr(stream.codec_context, name, value)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = position if pts is None else pts[position]
            frame.time_base = 1 / how.fps if pts is None else _TIME_BASE
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def barcodes(count: int, start: int = 0, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Iterable[UInt8Array]:
    """Frames ``start .. start + count``."""
    return (barcode(index, size) for index in range(start, start + count))


def video(path: Path, count: int = 60, how: Encoding = H264) -> Path:
    """A plain barcode video."""
    encode(path, barcodes(count), how)
    return path


def remux(source: Path, target: Path, shift_s: float = 0.0, skip: int = 0, **container_options: str) -> None:
    """Copy packets into another container: the first ``skip`` left out, times moved by ``shift_s``."""
    with av.open(str(source)) as inp, av.open(str(target), "w", options=container_options) as output:
        stream = inp.streams.video[0]
        copy = output.add_stream_from_template(stream)
        shift = round(shift_s / stream.time_base)
        for position, packet in enumerate(p for p in inp.demux(stream) if p.size):
            if position >= skip:
                packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                packet.stream = copy
                output.mux(packet)


def set_matrix(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Patch an MP4's display matrix ``(a, b, c, d)`` (ISO 14496-12, `tkhd`): x' = ax + cy, y' = bx + dy."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def wreck(path: Path, first: int, last: int) -> None:
    """Overwrite the stored packets ``first..last`` of an MP4 with zeros: they are counted, but nothing decodes."""
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        spans = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    for position, size in spans[first:last]:
        data[position : position + size] = bytes(size)
    path.write_bytes(data)


def cut(path: Path, share: float) -> None:
    """Keep only the first ``share`` of the bytes."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


Maker = Callable[[Path], tuple[Path, list[int]]]


@dataclass(frozen=True)
class Kind:
    """One row of the decoding matrix."""

    name: str
    make: Maker
    """Writes the file into a folder; returns it and the numbers of its frames in order."""
    by_decord: bool
    """Whether the probe should clear it for decord."""
    encoder: str = "libx264"
    status: str = "done"


def _plain(suffix: str, how: Encoding = H264, count: int = 60, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Maker:
    def make(folder: Path) -> tuple[Path, list[int]]:
        path = folder / f"clip{suffix}"
        encode(path, barcodes(count, size=size), how)
        return path, list(range(count))

    return make


def _x264(pix_fmt: str = "yuv420p", gop: int = 20, tags: dict[str, int] | None = None, **options: str) -> Encoding:
    return Encoding(options={**H264.options, **options}, pix_fmt=pix_fmt, gop=gop, tags=tags or {})


def _x265(pix_fmt: str = "yuv420p", gop: int = 20) -> Encoding:
    params = f"open-gop=1:bframes=3:scenecut=0:keyint={gop}:log-level=none:pools=1:frame-threads=1"
    return Encoding("libx265", pix_fmt, gop=gop, options={"x265-params": params, "preset": "ultrafast"})


def _irregular(folder: Path) -> tuple[Path, list[int]]:
    rng = np.random.default_rng(5)
    pts = np.cumsum(rng.integers(700, 9000, 60)).tolist()
    encode(folder / "vfr.mp4", barcodes(60), H264, pts)
    return folder / "vfr.mp4", list(range(60))


def _edit_list(folder: Path) -> tuple[Path, list[int]]:
    """Cut in the middle of a group without encoding: the packets before the cut stay, and an edit list hides them."""
    video(folder / "whole.mp4", how=_x264(gop=30))
    remux(folder / "whole.mp4", folder / "cut.mp4", shift_s=-0.5, use_editlist="1", avoid_negative_ts="disabled")
    return folder / "cut.mp4", list(range(15, 60))


def _offset(folder: Path) -> tuple[Path, list[int]]:
    video(folder / "whole.mp4")
    remux(folder / "whole.mp4", folder / "late.mkv", shift_s=100.0)
    return folder / "late.mkv", list(range(60))


def _mid_group(folder: Path) -> tuple[Path, list[int]]:
    """A capture that starts between two keyframes: what comes before the second one can never be decoded."""
    video(folder / "whole.mp4")
    remux(folder / "whole.mp4", folder / "capture.ts", skip=8)
    return folder / "capture.ts", list(range(20, 60))


def _clock_jump(folder: Path) -> tuple[Path, list[int]]:
    """Two recordings in one file: the second one's clock starts over."""
    encode(folder / "a.ts", barcodes(40), H264)
    encode(folder / "b.ts", barcodes(40, start=40), H264)
    (folder / "joined.ts").write_bytes((folder / "a.ts").read_bytes() + (folder / "b.ts").read_bytes())
    return folder / "joined.ts", list(range(80))


def _turned(quarters: int) -> Maker:
    """Stored turned counter-clockwise; the display matrix turns it back clockwise."""
    matrix = {1: (0, 1, -1, 0), 2: (-1, 0, 0, -1), 3: (0, -1, 1, 0)}[quarters]

    def make(folder: Path) -> tuple[Path, list[int]]:
        path = folder / "turned.mp4"
        encode(path, (np.ascontiguousarray(np.rot90(image, quarters)) for image in barcodes(60)), H264)
        set_matrix(path, matrix)
        return path, list(range(60))

    return make


def _mirrored(folder: Path) -> tuple[Path, list[int]]:
    path = folder / "mirrored.mp4"
    encode(path, (np.ascontiguousarray(image[:, ::-1]) for image in barcodes(60)), H264)
    set_matrix(path, (-1, 0, 0, 1))
    return path, list(range(60))


def _truncated(suffix: str) -> Maker:
    """Part of a file whose index comes first: the frames whose packets are whole.

    A transport stream does not say how long a packet is: there the last one counts, and its rest is concealed.
    """

    def make(folder: Path) -> tuple[Path, list[int]]:
        path = folder / f"half{suffix}"
        how = Encoding(options=H264.options, container_options={"movflags": "faststart"} if suffix == ".mp4" else {})
        encode(path, barcodes(60), how)
        before = stored_packets(path)
        cut(path, 0.617)
        left = stored_packets(path)
        whole = left if suffix == ".ts" else set(before) & set(left)
        shown = sorted(pts for pts, _ in before)
        return path, sorted(shown.index(pts) for pts, _ in whole)

    return make


def stored_packets(path: Path) -> list[tuple[int, int]]:
    """``(pts, bytes)`` of the packets that can be read."""
    found: list[tuple[int, int]] = []
    with av.open(str(path)) as container:
        try:
            found.extend((p.pts, p.size) for p in container.demux(video=0) if p.size and not p.is_corrupt)
        except av.error.FFmpegError:
            pass
    return found


def _hidden_reference(folder: Path) -> tuple[Path, list[int]]:
    """VP8 with a packet that is decoded but not shown, as encoders with alternate reference frames store them."""
    video(folder / "all.webm", how=VP8)
    with av.open(str(folder / "all.webm")) as inp, av.open(str(folder / "hidden.webm"), "w") as output:
        stream = inp.streams.video[0]
        copy = output.add_stream_from_template(stream)
        for position, stored in enumerate(p for p in inp.demux(stream) if p.size):
            data = bytearray(bytes(stored))
            if position == 25:
                data[0] &= ~0x10 & 0xFF  # RFC 6386, 9.1: show_frame
            packet: Any = av.Packet(bytes(data))
            packet.pts, packet.dts, packet.time_base = stored.pts, stored.dts, stored.time_base
            packet.is_keyframe, packet.stream = stored.is_keyframe, copy
            output.mux(packet)
    return folder / "hidden.webm", [number for number in range(60) if number != 25]


def _overpromised(folder: Path) -> tuple[Path, list[int]]:
    """The container counts 60 frames; the last ten are zeros. No B-frames: the last stored are the last shown."""
    path = video(folder / "promise.mp4", how=_x264(bf="0"))
    wreck(path, 50, 60)
    return path, list(range(50))


def _avi_overcount(folder: Path) -> tuple[Path, list[int]]:
    """An AVI header that counts 90 frames where there are 60."""
    path = video(folder / "over.avi", how=Encoding("mpeg4", options={"bf": "0", "b": "2M"}))
    data = bytearray(path.read_bytes())
    at = data.index(b"vids") + 4
    assert struct.unpack_from("<I", data, at + 28) == (60,)
    struct.pack_into("<I", data, at + 28, 90)
    path.write_bytes(data)
    return path, list(range(60))


_FRAGMENTED = Encoding(options=H264.options, container_options={"movflags": "frag_keyframe+empty_moov"})
_OPEN_GOP = _x264(**{"x264-params": "open-gop=1:b-pyramid=normal"})
_BT709 = _x264(tags={"colorspace": 1, "color_primaries": 1, "color_trc": 1})
_VP9 = Encoding("libvpx-vp9", options={"b": "2M", "deadline": "realtime", "cpu-used": "8"})
_AV1 = Encoding("libsvtav1", options={"preset": "12", "svtav1-params": "lp=1"})
MATRIX: tuple[Kind, ...] = (
    Kind("h264_bframes", _plain(".mp4"), True),
    Kind("h264_no_bframes", _plain(".mp4", _x264(bf="0")), True),
    Kind("h264_all_intra", _plain(".mp4", _x264(gop=1, bf="0")), True),
    Kind("h264_open_gop", _plain(".mp4", _OPEN_GOP), True),
    Kind("h264_one_group", _plain(".mp4", _x264(gop=250)), True),
    Kind("h264_intra_refresh", _plain(".mp4", _x264(**{"x264-params": "intra-refresh=1"}, bf="0")), True),
    Kind("h264_interlaced", _plain(".mp4", _x264(**{"x264-params": "tff=1"})), False),
    Kind("h264_mkv", _plain(".mkv"), True),
    Kind("h264_fragmented", _plain(".mp4", _FRAGMENTED), True),
    Kind("h264_full_range", _plain(".mp4", _x264("yuvj420p")), True),
    Kind("h264_bt709", _plain(".mp4", _BT709), True),
    Kind("h264_10bit", _plain(".mp4", _x264("yuv420p10le")), False),
    Kind("h264_444", _plain(".mp4", _x264("yuv444p")), False),
    Kind("h264_raw", _plain(".h264"), False),
    Kind("vfr", _irregular, True),
    Kind("late_start", _offset, True),
    Kind("hevc_open_gop", _plain(".mp4", _x265()), True, "libx265"),
    Kind("hevc_10bit", _plain(".mp4", _x265("yuv420p10le")), False, "libx265"),
    Kind("vp8", _plain(".webm", VP8), True, "libvpx"),
    Kind("vp8_hidden_refs", _hidden_reference, False, "libvpx"),
    Kind("vp9", _plain(".webm", _VP9), True, "libvpx-vp9"),
    Kind("av1", _plain(".mp4", _AV1), False, "libsvtav1"),
    Kind("mpegts", _plain(".ts"), False),
    Kind("mpegts_mid_group", _mid_group, False),
    Kind("mpegts_clock_jump", _clock_jump, False),
    Kind("avi_mpeg4_bframes", _plain(".avi", Encoding("mpeg4", options={"bf": "2", "b": "2M"})), False, "mpeg4"),
    Kind("edit_list", _edit_list, False),
    Kind("turned_90", _turned(1), True),
    Kind("turned_180", _turned(2), True),
    Kind("turned_270", _turned(3), True),
    Kind("mirrored", _mirrored, False),
    Kind("odd_crop", _plain(".mp4", size=(358, 642)), True),
    Kind("odd_size", _plain(".mkv", Encoding("ffv1", "yuv444p"), size=(191, 321)), False, "ffv1"),
    Kind("one_frame", _plain(".mp4", count=1), True),
    Kind("prores", _plain(".mov", Encoding("prores_ks", "yuv422p10le")), False, "prores_ks"),
    Kind("mjpeg", _plain(".avi", Encoding("mjpeg", "yuvj420p", options={"q:v": "3"})), False, "mjpeg"),
    Kind("truncated_mp4", _truncated(".mp4"), False, status="partial"),
    Kind("truncated_mkv", _truncated(".mkv"), False, status="partial"),
    Kind("truncated_ts", _truncated(".ts"), False, status="partial"),
    Kind("overpromised_mp4", _overpromised, True, status="partial"),
    Kind("overpromised_avi", _avi_overcount, False, "mpeg4", status="partial"),
)  # fmt: skip


def audio_only(path: Path) -> Path:
    """A second of silence in an MP4."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("aac", rate=16_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16_000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path
