"""Label images: masks of a frame laid into one plane, where a pixel belongs to one object only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.results import FrameResult

LabelImage = NDArray[np.int32]


def label_image(result: FrameResult) -> tuple[LabelImage, int]:
    """``(H, W)`` masklet ids, 0 where there is none, and the number of pixels that more than one masklet claimed.

    Where masks overlap the higher score wins, then the lower id.
    """
    labels = np.zeros(result.source_size, np.int32)
    masks = result.masks()
    # Painted from the least to the most certain: lexsort's last key is the first that counts.
    for i in np.lexsort((-result.masklet_id, result.score)):
        labels[masks[i]] = result.masklet_id[i]
    contested = int((masks.sum(0) > 1).sum()) if len(result) > 1 else 0
    return labels, contested


def overlap_notes(contested: int, hidden: int) -> list[str]:
    """What flattening lost, for the report."""
    notes = []
    if contested:
        notes.append(f"{contested} pixels were claimed by more than one masklet; the higher score kept them")
    if hidden:
        notes.append(f"{hidden} masks were wholly covered by others and are left out")
    return notes
