"""Opening a source and listing its frames: the frame table on which every index in masklet is built.

A frame's index is its rank in presentation order among the packets that will be shown. The table is made by reading all
packets (without decoding them) and decoding the first frame, so that what a decoder can never show is not numbered.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

import av
import fsspec
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from pipeline.errors import NoVideoError, SourceChangedError, SourceError
from pipeline.types import Int64Array, UInt8Array, VideoInfo

NETWORK_TIMEOUT_S = (30.0, 15.0)
"""Longest wait for a server: to open, and for more data."""
_SECRET = re.compile(r"sig|token|key|secret|passw|credential|auth|policy", re.IGNORECASE)
_FFMPEG_SCHEMES = ("http", "https")
av.logging.set_level(None)  # FFmpeg's own chatter on stderr; what matters arrives as an exception or a flag


@dataclass(frozen=True, slots=True)
class Orientation:
    """How a stored picture becomes upright: transpose first, then mirror (from the container's display matrix)."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    @classmethod
    def of(cls, frame: av.VideoFrame) -> Orientation:
        """Read the 3x3 display matrix of a decoded frame (layout: FFmpeg's libavutil/display.h); right angles only."""
        data = frame.side_data.get("DISPLAYMATRIX")
        if data is None:
            return cls()
        a, b, _, c, d, *_ = np.frombuffer(bytes(data), np.int32).tolist()
        return cls(True, b < 0, c < 0) if abs(b) > abs(a) else cls(False, d < 0, a < 0)

    def apply(self, image: UInt8Array) -> UInt8Array:
        """The upright, contiguous picture of ``image`` ``(h, w, 3)``."""
        if self.transpose:
            image = image.swapaxes(0, 1)
        if self.flip_rows:
            image = image[::-1]
        if self.flip_columns:
            image = image[:, ::-1]
        return np.ascontiguousarray(image)

    @property
    def is_mirrored(self) -> bool:
        """True when no rotation alone makes the picture upright."""
        return self.transpose ^ self.flip_rows ^ self.flip_columns

    @property
    def rotation_deg(self) -> int:
        """Clockwise rotation that makes the picture upright: 0, 90, 180 or 270."""
        if self.transpose:
            return 270 if self.flip_rows else 90
        return 180 if self.flip_rows else 0


@dataclass(frozen=True, slots=True, eq=False)
class FrameTable:
    """Every frame of one video, in presentation order."""

    info: VideoInfo
    stream_id: str
    source: str = field(repr=False)
    """The address as given, credentials included: never print it, print ``info.uri``."""
    pts: Int64Array
    """``(n,)`` presentation times in units of ``time_base``, ascending."""
    time_base: Fraction
    """Seconds per unit of ``pts``."""
    container: str
    """FFmpeg's name of the container format, or ``images`` for a folder of frames."""
    codec: str
    decord_ok: bool
    decord_reason: str
    """Why decord may not decode this source; empty if it may."""
    keyframes: Int64Array = field(default_factory=lambda: np.zeros(0, np.int64))
    """``(k,)`` ascending pts of the frames where decoding can start, shown or not."""
    packet_bytes: Int64Array = field(default_factory=lambda: np.zeros(0, np.int64))
    """``(n,)`` compressed size of every frame, a free measure of how much moves; empty if not known."""
    is_indexed: bool = True
    """False: pts are missing or ambiguous, so frames are found by counting from the start."""
    num_declared: int | None = None
    """Frames the container promises, or ``None`` if it says nothing."""
    num_missing: int = 0
    """Frames the container promises beyond those it has."""
    damage: str = ""
    """What is broken in the file, or empty."""
    orientation: Orientation = Orientation()
    coded_size: tuple[int, int] = (0, 0)
    """``(height, width)`` of the pictures as they are stored, before they are made upright."""
    files: tuple[str, ...] = ()
    """The pictures of a folder of frames, in order."""
    stamp: tuple[int, int] | None = None
    """``(bytes, mtime in ns)`` of a local file when it was probed."""

    def __len__(self) -> int:
        return len(self.pts)

    @property
    def pts_s(self) -> NDArray[np.float64]:
        """``(n,)`` presentation times in seconds, starting where the container says."""
        return self.pts * self.time_base.numerator / self.time_base.denominator

    @property
    def source_size(self) -> tuple[int, int]:
        """``(height, width)`` of the upright frame."""
        return self.info.height, self.info.width

    def check_unchanged(self) -> None:
        """Raise :class:`SourceChangedError` if the local file is no longer the one that was probed."""
        if self.stamp is not None and _stamp(self.source) != self.stamp:
            raise SourceChangedError(
                "the file changed or vanished while the job ran", self.info.uri, "run the job again"
            )


def redact(uri: str) -> str:
    """``uri`` without user, password and secret query values: fit for logs, errors and manifests."""
    if "://" not in uri:
        return uri
    parts = urlsplit(uri)
    netloc = "***@" + parts.netloc.rpartition("@")[2] if "@" in parts.netloc else parts.netloc
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    query = urlencode([(k, "***" if _SECRET.search(k) else v) for k, v in pairs], safe="*") if pairs else parts.query
    return urlunsplit((parts.scheme, netloc, parts.path, query, ""))


def scheme_of(uri: str) -> str:
    """The lower-case scheme of a remote ``uri``; empty for a local path or ``file://``."""
    scheme = uri.partition("://")[0].lower() if "://" in uri else ""
    return "" if scheme == "file" else scheme


def local_path(uri: str) -> Path:
    """The path of a local ``uri``, with or without ``file://``."""
    return Path(unquote(urlsplit(uri).path) if uri.lower().startswith("file://") else uri).expanduser()


def _stamp(source: str) -> tuple[int, int] | None:
    try:
        status = os.stat(local_path(source))
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _check_local(path: Path) -> None:
    """Give the plain reasons for which a local file cannot be a video."""
    if not path.exists():
        raise SourceError("no such file", str(path), "check the path")
    if not os.access(path, os.R_OK):
        raise SourceError("no permission to read", str(path), "check its access rights")
    if path.is_file() and path.stat().st_size == 0:
        raise SourceError("the file is empty (0 bytes)", str(path), "copy or record it again")


@contextmanager
def open_container(source: str) -> Iterator[InputContainer]:
    """Open a local file, an ``http(s)`` address (by FFmpeg) or anything fsspec knows; closed on exit.

    Raises:
        SourceError: it is missing, unreachable, or no video or audio format FFmpeg knows.
    """
    with ExitStack() as stack:
        try:
            container = stack.enter_context(av.open(**_open_arguments(source, stack)))
        except (av.error.FFmpegError, OSError, ImportError, ValueError) as error:
            raise _source_error(error, redact(source)) from error
        yield container


def _open_arguments(source: str, stack: ExitStack) -> dict[str, Any]:
    scheme = scheme_of(source)
    if scheme in _FFMPEG_SCHEMES:
        return {"file": source, "timeout": NETWORK_TIMEOUT_S, "metadata_errors": "replace"}
    if scheme:
        return {"file": stack.enter_context(fsspec.open(source, "rb")), "metadata_errors": "replace"}
    path = local_path(source)
    _check_local(path)
    # `file:` keeps FFmpeg from taking a colon in the name for a protocol.
    return {"file": f"file:{path.absolute()}", "metadata_errors": "replace"}


def _source_error(error: Exception, where: str) -> SourceError:
    """Say in one line why a source could not be opened."""
    if isinstance(error, ImportError):
        return SourceError(f"no driver for this kind of address: {error}", where, "install the package it names")
    if isinstance(error, FileNotFoundError | av.error.HTTPNotFoundError):
        return SourceError("no such file", where, "check the address")
    if isinstance(error, av.error.InvalidDataError):
        return SourceError("not a video, or damaged beyond reading", where, "check that it plays, or copy it again")
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return SourceError(f"cannot be opened: {reason}", where, "check the address and that it is reachable")


def video_stream(container: InputContainer, where: str) -> VideoStream:
    """The first real video stream of ``container``; cover pictures do not count.

    Raises:
        NoVideoError: there is none.
        SourceError: there is one, but no decoder for its codec.
    """
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        raise NoVideoError("no video stream in it (audio only?)", where, "leave it out")
    stream = streams[0]
    try:
        stream.codec_context.name  # noqa: B018 - raises, or is None, without a decoder
    except (AttributeError, av.error.FFmpegError) as error:
        raise SourceError("no decoder for its video codec", where, "convert it, for example to H.264") from error
    # Slices, not frames: with frame threads an error at one frame loses good ones beside it.
    stream.codec_context.thread_type = "SLICE"
    stream.codec_context.thread_count = 2
    return stream
