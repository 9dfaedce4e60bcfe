"""What all the frame-wise metrics share: ids per frame, checked and relabelled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]
IntArray = NDArray[np.int64]

EPS = float(np.finfo("float").eps)
"""Slack of every threshold comparison, as in TrackEval: an IoU of exactly the threshold is a match."""


def check_frames(
    gt_ids: Sequence[NDArray[Any]], pred_ids: Sequence[NDArray[Any]], similarities: Sequence[NDArray[Any]]
) -> None:
    """Raise ``ValueError`` unless the frames agree in number, shapes fit and ids are unique within each frame."""
    if not len(gt_ids) == len(pred_ids) == len(similarities):
        raise ValueError(f"frames differ: {len(gt_ids)} gt, {len(pred_ids)} pred, {len(similarities)} similarities")
    for frame, (g, p, similarity) in enumerate(zip(gt_ids, pred_ids, similarities, strict=True)):
        if similarity.shape != (len(g), len(p)):
            raise ValueError(f"frame {frame}: similarity is {similarity.shape}, but there are {len(g)} x {len(p)} ids")
        for side, ids in (("ground truth", g), ("prediction", p)):
            if len(np.unique(ids)) != len(ids):
                raise ValueError(f"frame {frame}: an id appears twice in the {side}")


def relabel(ids: Sequence[NDArray[Any]]) -> tuple[list[IntArray], int]:
    """The same ids as ``0..K-1`` in ascending order, and K."""
    known = np.unique(np.concatenate([np.zeros(0, np.int64), *ids]))
    return [np.searchsorted(known, frame).astype(np.int64) for frame in ids], len(known)
