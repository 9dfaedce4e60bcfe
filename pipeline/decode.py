"""Video into frames: probe a source, then read any range of it, the same pixels whichever decoder runs.

`probe` lists the frames; `plan_segments` says which decoder takes which; `read` decodes them in this process (the
decode worker runs the same code in a process of its own, because decord can hang, crash and grow). Torch is loaded
only to resize.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from pipeline.decode_images import decode_images, image_files, is_image_folder, natural_key
from pipeline.decode_probe import probe
from pipeline.decode_pyav import decode_pyav
from pipeline.decode_segments import Decoder, Segment, has_decord, plan_segments
from pipeline.decode_table import FrameTable, local_path, redact, scheme_of
from pipeline.errors import DecodeError
from pipeline.types import Frame, UInt8Array

__all__ = [
    "DecodeReport",
    "FrameReader",
    "FrameTable",
    "Picture",
    "Segment",
    "decode_segments",
    "expected_frames",
    "has_decord",
    "image_files",
    "is_image_folder",
    "local_path",
    "make_frame",
    "make_report",
    "natural_key",
    "plan_segments",
    "probe",
    "read",
    "redact",
    "resize",
    "scheme_of",
]


@dataclass(frozen=True, slots=True)
class DecodeReport:
    """How the reading of one video, or of a range of it, went."""

    frames_by_decoder: dict[str, int] = field(default_factory=dict)
    """Delivered frames per decoder: ``decord``, ``pyav``, ``images``."""
    num_decoded: int = 0
    """Frames delivered."""
    num_expected: int = 0
    """Frames of the range, with those the container promises but does not have."""
    status: Literal["done", "partial"] = "done"
    """``partial``: frames are missing, or the file is damaged."""
    kills: int = 0
    """Decode processes that were killed, or died, on the way."""
    message: str = ""
    """What went wrong or was done differently, one line; empty if nothing."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One decoded frame before it gets its time and stream."""

    index: int
    decoder: str
    image: UInt8Array
    """``(h, w, 3)`` RGB, upright, already at the size asked for."""


def resize(image: UInt8Array, size: tuple[int, int]) -> UInt8Array:
    """``image`` ``(H, W, 3)`` scaled to ``size`` ``(h, w)`` exactly as transformers' SAM3 image processor does it.

    That is torchvision's antialiased bilinear resize on uint8 (``TorchvisionBackend.resize``).
    """
    if image.shape[:2] == size:
        return image
    # Loaded on the first use only: a process that ships frames as they are needs no torch.
    from pipeline.decode_resize import resize_bilinear

    return resize_bilinear(image, size)


def decode_segments(
    table: FrameTable,
    segments: Sequence[Segment],
    stride: int,
    size: tuple[int, int] | None,
    notes: list[str],
) -> Iterator[Picture | None]:
    """Decode segments in turn. ``None`` is a sign of life: a frame was decoded that nobody asked for.

    A segment starts with a frame that is wanted. What happened otherwise than planned is appended to ``notes``.
    """
    for segment in segments:
        for picture in _decode_segment(table, segment, stride, size, notes):
            if picture is not None and size is not None:
                picture = Picture(picture.index, picture.decoder, resize(picture.image, size))
            yield picture


def _decode_segment(
    table: FrameTable, segment: Segment, stride: int, size: tuple[int, int] | None, notes: list[str]
) -> Iterator[Picture | None]:
    start = segment.start
    if segment.decoder == "images":
        yield from _labelled("images", decode_images(table, start, segment.stop, stride))
        return
    if segment.decoder == "decord":
        from pipeline.decode_decord import DeclinedByDecordError, decode_decord  # not on every machine

        # A piece is kept as small as it can be: at the size asked for if that is the smaller one.
        shrink: Callable[[UInt8Array], UInt8Array] = _as_it_is
        if size is not None and size[0] * size[1] < table.info.height * table.info.width:
            shrink = partial(resize, size=size)
        try:
            for picture in _labelled("decord", decode_decord(table, start, segment.stop, stride, shrink)):
                start = start if picture is None else picture.index + stride
                yield picture
        except DeclinedByDecordError as error:
            notes.append(f"frames {start}..{segment.stop} went from decord to pyav: {error}")
    yield from _labelled("pyav", decode_pyav(table, start, segment.stop, stride))


def _as_it_is(image: UInt8Array) -> UInt8Array:
    return image


def _labelled(decoder: str, frames: Iterator[tuple[int, UInt8Array] | None]) -> Iterator[Picture | None]:
    return (None if frame is None else Picture(frame[0], decoder, frame[1]) for frame in frames)


def expected_frames(table: FrameTable, start: int, stop: int, stride: int) -> int:
    """How many frames a range should give, with those that the container promises after the last one it has."""
    end = stop if stop < len(table) else len(table) + table.num_missing
    return len(range(start, end, stride))


class FrameReader(Iterator[Frame]):
    """The frames of a range, in order; says afterwards how it went."""

    def __init__(
        self, table: FrameTable, segments: Sequence[Segment], stride: int, size: tuple[int, int] | None, expected: int
    ) -> None:
        self._table, self._expected = table, expected
        self._notes: list[str] = []
        self._counts: dict[str, int] = {}
        self._pictures = decode_segments(table, segments, stride, size, self._notes)

    def __next__(self) -> Frame:
        for picture in self._pictures:
            if picture is not None:
                self._counts[picture.decoder] = self._counts.get(picture.decoder, 0) + 1
                return make_frame(self._table, picture.index, picture.image)
        if not self._counts and self._expected:
            raise DecodeError("not one frame of it could be decoded", self._table.info.uri, "check that it plays")
        raise StopIteration

    def report(self) -> DecodeReport:
        """What was delivered so far; final once the frames are exhausted."""
        return make_report(self._table, self._counts, self._expected, self._notes)


def make_frame(table: FrameTable, index: int, image: UInt8Array) -> Frame:
    """A :class:`Frame` with its time by the table."""
    pts_s = float(table.pts[index] * table.time_base)
    return Frame(table.stream_id, index, pts_s, image, table.source_size)


def make_report(
    table: FrameTable, counts: dict[str, int], expected: int, notes: Sequence[str], kills: int = 0
) -> DecodeReport:
    """Compare what was delivered with what was expected."""
    decoded = sum(counts.values())
    is_partial = decoded < expected or bool(table.damage)
    lines = list(notes)
    if is_partial:
        lines.insert(0, f"{decoded} of {expected} frames" + (f": {table.damage}" if table.damage else " decode"))
    return DecodeReport(dict(counts), decoded, expected, "partial" if is_partial else "done", kills, "; ".join(lines))


def read(
    table: FrameTable,
    start: int = 0,
    stop: int | None = None,
    *,
    stride: int = 1,
    size: tuple[int, int] | None = None,
    decoder: Decoder = "auto",
    segment_frames: int = 256,
    segment_budget_mb: int = 512,
) -> FrameReader:
    """Frames ``start, start + stride, ... < stop`` of a probed source, upright RGB, decoded in this process.

    ``size`` ``(h, w)`` scales them as the SAM3 processor would. A source that has less than it promises gives what
    decodes and says so in ``report()``. decord may hang or crash: a job reads through the decode worker instead.

    Raises:
        DecodeError: ``decoder="decord"`` for a source it may not have; or nothing at all could be decoded.
        SourceChangedError: the file is no longer the one that was probed.
    """
    stop = len(table) if stop is None else min(stop, len(table))
    segments = plan_segments(table, start, stop, stride, decoder, segment_frames, segment_budget_mb)
    return FrameReader(table, segments, stride, size, expected_frames(table, start, stop, stride))
