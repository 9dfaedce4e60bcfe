"""The process that draws and encodes one annotated stream: ``python -m pipeline.live.video_child``.

On stdin, from its parent: the target, then frames as pickled :class:`LiveResult`, each after its length.
"""

from __future__ import annotations

import pickle
import signal
import struct
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import IO

import av
import cv2
import numpy as np

from pipeline.live.events import LiveResult
from pipeline.live.painter import Painter
from pipeline.types import UInt8Array

_TICKS_PER_S = 90_000


def main(frames: IO[bytes]) -> None:
    """Encode until stdin ends."""
    target = next(messages(frames), b"").decode()
    painter = Painter()
    video: Video | None = None
    try:
        for live in received(frames):
            picture = painter.paint(live)
            if picture is None:
                continue
            video = video or Video(target, picture.shape[1], picture.shape[0])
            video.write(picture, live.result.pts_s)
    finally:
        if video is not None:
            video.close()


def received(stream: IO[bytes]) -> Iterator[LiveResult]:
    """The frames that are sent, until the sender closes."""
    for data in messages(stream):
        yield pickle.loads(data)  # from our own parent only


def messages(stream: IO[bytes]) -> Iterator[bytes]:
    """What is sent, until the sender closes."""
    while len(head := stream.read(4)) == 4:
        (size,) = struct.unpack("!I", head)
        data = stream.read(size)
        if len(data) < size:
            return
        yield data


class Video:
    """H.264 to a fragmented MP4 (valid up to its last fragment whatever happens) or to an RTSP server."""

    def __init__(self, target: str, width: int, height: int) -> None:
        self._size = (width - width % 2, height - height % 2)
        if "://" in target:
            self._container = av.open(target, "w", format="rtsp", options={"rtsp_transport": "tcp"})
        else:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            options = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
            self._container = av.open(f"file:{_free(Path(target).absolute())}", "w", format="mp4", options=options)
        options = {"preset": "veryfast", "tune": "zerolatency", "crf": "23", "g": "50"}
        self._stream = self._container.add_stream("libx264", rate=25, options=options)
        self._stream.width, self._stream.height, self._stream.pix_fmt = *self._size, "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, _TICKS_PER_S)
        self._start_s: float | None = None
        self._last = -1

    def write(self, picture: UInt8Array, pts_s: float) -> None:
        """Append a picture at its time."""
        if picture.shape[1::-1] != self._size:
            picture = np.asarray(cv2.resize(picture, self._size), np.uint8)
        self._start_s = pts_s if self._start_s is None else self._start_s
        self._last = max(self._last + 1, round((pts_s - self._start_s) * _TICKS_PER_S))
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24").reformat(format="yuv420p")
        frame.pts, frame.time_base = self._last, Fraction(1, _TICKS_PER_S)
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Write what is left."""
        self._container.mux(self._stream.encode(None))
        self._container.close()


def _free(path: Path) -> Path:
    """This path, or with a number if it is taken: what was recorded before a restart stays."""
    if not path.exists():
        return path
    numbered = (path.with_name(f"{path.stem}-{n}{path.suffix}") for n in range(2, 10_000))
    return next((p for p in numbered if not p.exists()), path)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop, by closing stdin
    try:
        main(sys.stdin.buffer)
    except (av.error.FFmpegError, OSError) as failure:
        sys.stderr.write(f"annotated video: {getattr(failure, 'strerror', None) or type(failure).__name__}\n")
        sys.exit(1)
