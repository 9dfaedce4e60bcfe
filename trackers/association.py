"""Which detection belongs to which object: matches from an overlap matrix. NumPy; one frame, no memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from configs.schema import TrackerConfig
from pipeline.types import BoolArray, Float32Array, Int16Array, Int64Array


@dataclass(frozen=True, slots=True)
class Association:
    """How N detections and M objects of one frame go together. Rows are detections, columns are objects."""

    is_new: BoolArray
    """``(N,)`` detections that start an object."""
    shares: BoolArray
    """``(N, M)`` overlapping by at least ``match_iou``; a detection may touch several objects."""
    is_unmatched: BoolArray
    """``(M,)`` visible objects that no detection covers by ``track_match_iou``."""
    confirmed_by: Int64Array
    """``(M,)`` the detection that may recondition the object, or -1."""

    @property
    def is_touched(self) -> BoolArray:
        """``(M,)`` objects that overlap any detection by at least ``match_iou``."""
        return np.asarray(self.shares.any(axis=0), bool)


def associate(
    iou: Float32Array,
    det_score: Float32Array,
    det_prompt: Int16Array,
    track_prompt: Int16Array,
    is_empty: BoolArray,
    config: TrackerConfig,
) -> Association:
    """Match detections with objects as SAM3 does: many to many by mask overlap, never across phrases.

    Args:
        iou: ``(N, M)`` mask IoU of detections and propagated masks.
        det_score: ``(N,)`` probabilities.
        det_prompt: ``(N,)`` and ``track_prompt`` ``(M,)``: phrase of each.
        is_empty: ``(M,)`` objects without a mask on this frame; they are not unmatched, they are hidden.

    Source: facebookresearch/sam3 ``sam3_video_base.py``, ``_associate_det_trk``. Without any object, every
    detection is new, whatever its score.
    """
    num_tracks = len(track_prompt)
    if num_tracks == 0:
        none = np.zeros((len(det_score), 0), bool)
        return Association(np.ones(len(det_score), bool), none, np.zeros(0, bool), np.zeros(0, np.int64))
    iou = np.where(det_prompt[:, None] == track_prompt[None], iou, np.float32(0))
    shares = iou >= config.match_iou
    is_new = (det_score >= config.new_object_score) & ~shares.any(1)
    is_unmatched = ~is_empty & ~(iou >= config.track_match_iou).any(0)
    return Association(is_new, shares, is_unmatched, _confirmations(iou, det_score, is_new, config))


def _confirmations(iou: Float32Array, det_score: Float32Array, is_new: BoolArray, config: TrackerConfig) -> Int64Array:
    """``(M,)`` confident detection that covers the object best among all objects, or -1; the last one wins."""
    confirmed_by = np.full(iou.shape[1], -1, np.int64)
    confident = (det_score >= config.recondition_score) & ~is_new & (iou.max(1) >= config.recondition_iou)
    for det in np.flatnonzero(confident):
        confirmed_by[iou[det].argmax()] = det
    return confirmed_by


def assign(cost: NDArray[Any], limit: float) -> tuple[Int64Array, Int64Array]:
    """Rows and columns of the cheapest one-to-one assignment whose pairs each cost at most ``limit``.

    Args:
        cost: ``(N, M)``; ``inf`` forbids a pair.

    Pairs above the limit count as if left alone (each at ``limit``), as in ByteTrack's ``lapjv(cost_limit=...)``:
    a pair that is too dear never pushes a cheap one aside.
    """
    if 0 in cost.shape:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    clipped = np.minimum(cost, limit)
    rows, cols = linear_sum_assignment(clipped)
    fits = cost[rows, cols] <= limit
    return rows[fits].astype(np.int64), cols[fits].astype(np.int64)
