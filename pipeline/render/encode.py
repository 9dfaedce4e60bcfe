"""RGB frames to an H.264 MP4 that plays everywhere, with the source's own times."""

from __future__ import annotations

import os
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import cv2
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from pipeline.errors import UsageError
from pipeline.types import UInt8Array

_BT709 = 1  # AVCOL_PRI_BT709, AVCOL_TRC_BT709 and AVCOL_SPC_BT709 share this number


class Mp4Writer:
    """Writes ``yuv420p`` H.264 with its index in front (plays while it loads). A context manager.

    The file appears under its name only once it is whole; leaving with an error leaves nothing behind. Odd sides
    are padded by repeating the last row or column, as 4:2:0 needs even ones. Colours are BT.709 and tagged as such.
    """

    def __init__(
        self, path: Path, *, time_base: Fraction, fps: Fraction | None, options: dict[str, str] | None = None
    ) -> None:
        self._path = path
        self._partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._time_base, self._fps = time_base, fps or Fraction(25)
        self._options = {"preset": "veryfast", "crf": "20", **(options or {})}
        self._reformatter = VideoReformatter()  # one for all frames: setting up the conversion costs more than it does
        self._container: av.container.OutputContainer | None = None
        self._stream: av.VideoStream | None = None

    def write(self, image: UInt8Array, pts: int) -> None:
        """Append a frame of RGB ``(h, w, 3)``, shown at ``pts`` ticks of the time base; ``pts`` must rise."""
        height, width = image.shape[:2]
        image = cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        if self._container is None or self._stream is None:
            self._container, self._stream = self._open(image.shape[1], image.shape[0])
        frame = self._reformatter.reformat(
            av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24"),
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
        )
        frame.pts, frame.time_base = pts, self._time_base
        self._container.mux(self._stream.encode(frame))

    def _open(self, width: int, height: int) -> tuple[av.container.OutputContainer, av.VideoStream]:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # The movie's clock counts in the source's ticks too: in milliseconds, its default, a late start is rounded.
            options = {"movflags": "+faststart", "movie_timescale": str(self._time_base.denominator)}
            container = av.open(str(self._partial), "w", format="mp4", options=options)
        except OSError as error:
            raise UsageError("cannot write the video", str(self._path), error.strerror or str(error)) from error
        stream = container.add_stream("libx264", rate=self._fps, options=self._options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = stream.codec_context.time_base = self._time_base
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = ColorRange.MPEG
        return container, stream

    def __enter__(self) -> Mp4Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._container is not None and self._stream is not None:
                if kind is None:
                    self._container.mux(self._stream.encode(None))
                self._container.close()
            if kind is None and self._container is not None:
                os.replace(self._partial, self._path)
        finally:
            with suppress(OSError):  # there may be none, or not even its folder
                self._partial.unlink()
