"""The values that flow through masklet, and the seams between its parts. NumPy only.

All are frozen; arrays are columns, row *i* is one object. Shapes, dtypes and units stand under each field and
are checked once, on construction. Boxes are always ``xyxy`` in pixels of the upright source frame, ``x2``/``y2``
exclusive; images are RGB ``uint8``; frame indices are 0-based in presentation order; times are in seconds.

*Tracklet*: a track inside one chunk or session, named by a ``track_id``. *Masklet*: what the user gets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

BoolArray = NDArray[np.bool_]
Float32Array = NDArray[np.float32]
UInt8Array = NDArray[np.uint8]
Int16Array = NDArray[np.int16]
Int64Array = NDArray[np.int64]


def _expect(name: str, array: NDArray[Any], shape: tuple[int | None, ...], dtype: Any) -> None:
    """Raise ``ValueError`` unless ``array`` has this dtype and shape (``None`` is any length)."""
    fits = array.ndim == len(shape) and all(want in (None, got) for want, got in zip(shape, array.shape, strict=True))
    if not fits or array.dtype != dtype:
        want = tuple("?" if n is None else n for n in shape)
        raise ValueError(
            f"{name} must be {np.dtype(dtype)} of shape {want}, but got {array.dtype} of shape {array.shape}"
        )


@dataclass(frozen=True, slots=True)
class RLE:
    """One mask as COCO compressed run lengths, exactly what ``pycocotools.mask`` takes."""

    size: tuple[int, int]
    """``(height, width)`` in pixels."""
    counts: bytes
    """Compressed counts, column-major, starting with zeros."""

    def to_coco(self) -> dict[str, Any]:
        """The dict form ``{"size": [h, w], "counts": bytes}`` of pycocotools."""
        return {"size": list(self.size), "counts": self.counts}


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What is known of a source before its frames are decoded."""

    uri: str
    """Where it comes from, credentials redacted."""
    width: int
    """Pixels of the upright frame (after rotation)."""
    height: int
    fps: Fraction | None
    """Average frame rate, or ``None`` if the container says nothing."""
    num_frames: int | None
    """Frames that will be shown, or ``None`` for a live source."""
    duration_s: float | None
    rotation_deg: int
    """Rotation that was applied to make frames upright: 0, 90, 180 or 270."""
    is_live: bool = False


@dataclass(frozen=True, slots=True)
class Frame:
    """One upright frame. ``image`` may be smaller than the source (a decode worker ships model-size pixels)."""

    stream_id: str
    index: int
    """0-based rank in presentation order in the source; gaps are allowed, reuse is not."""
    pts_s: float
    image: UInt8Array
    """``(h, w, 3)`` RGB uint8; the whole picture, possibly resized (also with another aspect ratio)."""
    source_size: tuple[int, int]
    """``(height, width)`` of the upright source frame in pixels: what boxes and masks refer to."""

    def __post_init__(self) -> None:
        _expect("image", self.image, (None, None, 3), np.uint8)
        if self.index < 0:
            raise ValueError(f"index must not be negative, but got {self.index}")


@dataclass(frozen=True, slots=True)
class BoxPrompt:
    """A box exemplar: find everything like this (``positive``), or nothing like this."""

    frame: int
    """0-based index of the frame the box is drawn on."""
    xyxy: tuple[float, float, float, float]
    """Source pixels, ``x2``/``y2`` exclusive."""
    positive: bool = True


@dataclass(frozen=True, slots=True)
class Prompts:
    """The phrases of a job, encoded once; small enough to hand to every worker."""

    phrases: tuple[str, ...]
    """As the user typed them; ``prompt_id`` is the position here. Vetoes (``--not-text``) come last."""
    embeddings: Float32Array
    """``(P, L, D)`` token embeddings after the detector's text projection."""
    mask: BoolArray
    """``(P, L)``; true where the detector may attend."""
    num_vetoes: int = 0
    """How many of the last phrases veto: what matches them is not reported."""

    def __post_init__(self) -> None:
        _expect("embeddings", self.embeddings, (len(self.phrases), None, None), np.float32)
        _expect("mask", self.mask, self.embeddings.shape[:2], np.bool_)
        if not 0 <= self.num_vetoes <= len(self.phrases):
            raise ValueError(f"num_vetoes must be within 0..{len(self.phrases)}, but got {self.num_vetoes}")

    @property
    def num_wanted(self) -> int:
        """Number of phrases whose objects are reported."""
        return len(self.phrases) - self.num_vetoes


@dataclass(frozen=True, slots=True)
class Detections:
    """What the detector found on one frame, all phrases together."""

    xyxy: Float32Array
    """``(N, 4)`` source pixels."""
    score: Float32Array
    """``(N,)`` probability, 0..1."""
    prompt_id: Int16Array
    """``(N,)`` index into ``Prompts.phrases``."""
    mask_logits: Float32Array
    """``(N, h, w)`` low-resolution logits over the whole frame; > 0 is inside."""

    def __post_init__(self) -> None:
        n = len(self.score)
        _expect("xyxy", self.xyxy, (n, 4), np.float32)
        _expect("score", self.score, (n,), np.float32)
        _expect("prompt_id", self.prompt_id, (n,), np.int16)
        _expect("mask_logits", self.mask_logits, (n, None, None), np.float32)

    def __len__(self) -> int:
        return len(self.score)

    def __getitem__(self, rows: BoolArray | NDArray[np.integer[Any]] | slice) -> Detections:
        """The detections of these rows: a boolean mask, an index array or a slice."""
        return Detections(self.xyxy[rows], self.score[rows], self.prompt_id[rows], self.mask_logits[rows])

    @classmethod
    def empty(cls, mask_size: tuple[int, int] = (1, 1)) -> Detections:
        """No detections, with masks of this ``(h, w)``."""
        return cls(
            np.zeros((0, 4), np.float32),
            np.zeros(0, np.float32),
            np.zeros(0, np.int16),
            np.zeros((0, *mask_size), np.float32),
        )


@dataclass(frozen=True, slots=True)
class FrameTracks:
    """The objects a tracker follows on one frame, and the ids it takes back."""

    stream_id: str
    session: int
    """Counts from 0; rises when a live stream had to start afresh."""
    index: int
    pts_s: float
    track_id: Int64Array
    """``(N,)`` ascending, unique in the stream, never reused."""
    prompt_id: Int16Array
    """``(N,)``"""
    score: Float32Array
    """``(N,)`` 0..1, of this object on this frame."""
    xyxy: Float32Array
    """``(N, 4)`` tight boxes of the masks, source pixels."""
    masks: tuple[RLE, ...]
    """N masks at source resolution, none empty."""
    withdrawn: Int64Array = field(default_factory=lambda: np.zeros(0, np.int64))
    """``(K,)`` ids that hotstart took back on this frame: they never were objects, on any frame."""

    def __post_init__(self) -> None:
        n = len(self.masks)
        _expect("track_id", self.track_id, (n,), np.int64)
        _expect("prompt_id", self.prompt_id, (n,), np.int16)
        _expect("score", self.score, (n,), np.float32)
        _expect("xyxy", self.xyxy, (n, 4), np.float32)
        _expect("withdrawn", self.withdrawn, (None,), np.int64)

    def __len__(self) -> int:
        return len(self.masks)


@dataclass(frozen=True, slots=True)
class Masklet:
    """One instance's masks over its life: parallel columns over the frames on which it is visible."""

    masklet_id: int
    """From 1, unique per video, in order of first appearance."""
    video_id: str
    prompt: str
    index: Int64Array
    """``(T,)`` ascending frame indices; frames without a mask are left out."""
    pts_s: NDArray[np.float64]
    """``(T,)``"""
    score: Float32Array
    """``(T,)``"""
    xyxy: Float32Array
    """``(T, 4)``"""
    masks: tuple[RLE, ...]
    """T masks."""

    def __post_init__(self) -> None:
        t = len(self.masks)
        _expect("index", self.index, (t,), np.int64)
        _expect("pts_s", self.pts_s, (t,), np.float64)
        _expect("score", self.score, (t,), np.float32)
        _expect("xyxy", self.xyxy, (t, 4), np.float32)

    def __len__(self) -> int:
        return len(self.masks)


@runtime_checkable
class Detector(Protocol):
    """Text-prompted segmentation of frames."""

    def detect(self, frames: Sequence[Frame], prompts: Prompts) -> list[Detections]:
        """One :class:`Detections` per frame, all phrases together, scores above the threshold, after NMS."""
        ...


@runtime_checkable
class Tracker(Protocol):
    """Links detections of one stream into tracklets. One instance per stream; memory does not grow with time."""

    def step(self, frame: Frame, detections: Detections | None) -> FrameTracks:
        """Advance by one frame. ``None``: the detector did not run; empty: it found nothing."""
        ...

    def skip(self, num_frames: int) -> None:
        """About so many frames never came: until they are seen again, objects may be anywhere they can have gone."""
        ...

    def forget(self, track_ids: Int64Array) -> None:
        """Stop following these objects; an endless stream ends what has long been out of sight."""
        ...

    def save(self, folder: Path) -> None:
        """Write the whole state so that :meth:`restore` continues bit-equal."""
        ...

    def restore(self, folder: Path) -> None:
        """Continue from a state written by :meth:`save`."""
        ...
