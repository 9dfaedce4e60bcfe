"""What a user gets for each frame: rows of masklets, with masks decoded on demand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline import masks as mask_ops
from pipeline.types import RLE, BoolArray, Float32Array

if TYPE_CHECKING:
    import supervision as sv


@dataclass(frozen=True, slots=True)
class FrameResult:
    """The masklets visible on one frame. Row *i* of every column is one object; rows ascend by ``masklet_id``."""

    video_id: str
    index: int
    """0-based frame in the source, in presentation order."""
    pts_s: float
    """Presentation time in seconds."""
    source_size: tuple[int, int]
    """``(height, width)`` of the source in pixels."""
    masklet_id: NDArray[np.int32]
    """``(N,)`` from 1, unique per video, never reused."""
    prompt: tuple[str, ...]
    """N phrases, each the one that found the object."""
    score: Float32Array
    """``(N,)`` confidence on this frame, 0..1."""
    xyxy: Float32Array
    """``(N, 4)`` tight boxes, source pixels, x2/y2 exclusive."""
    rles: tuple[RLE, ...]
    """N masks as run lengths."""

    def __len__(self) -> int:
        return len(self.rles)

    def masks(self) -> BoolArray:
        """Bool ``(N, H, W)`` at source resolution; decoded anew on each call."""
        return mask_ops.decode(self.rles, self.source_size)

    def area_px(self) -> NDArray[np.int32]:
        """``(N,)`` mask areas in pixels."""
        return mask_ops.areas(self.rles)

    def to_supervision(self) -> sv.Detections:
        """``supervision.Detections`` with ``tracker_id`` and ``data["prompt"]``, for any supervision annotator.

        Raises:
            ImportError: supervision is not installed (``pip install "masklet[supervision]"``).
        """
        import supervision as sv

        data: dict[str, Any] = {"prompt": np.array(self.prompt, dtype=object)}
        return sv.Detections(
            xyxy=self.xyxy.astype(np.float32).reshape(-1, 4),
            mask=self.masks(),
            confidence=self.score,
            tracker_id=self.masklet_id.astype(int),
            data=data,
        )
