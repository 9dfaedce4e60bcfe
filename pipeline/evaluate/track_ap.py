"""Average precision of whole tracks: YouTube-VIS mAP (Yang et al., arXiv 1905.04804) and SA-Co's phrase AP.

COCO's protocol with the IoU of two tracks in place of that of two boxes: predictions of one (video, phrase) pair are
matched greedily by score, precision is interpolated at 101 recalls and averaged over IoU 0.50:0.05:0.95. The class mAP
averages over phrases, the phrase AP pools all pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.sequence import Float64Array

IOU_THRESHOLDS: Float64Array = np.linspace(0.5, 0.95, 10)
"""COCO's ten thresholds; SA-Co's cgF1 averages over the same."""
MAX_TRACKS = 100
"""Best-scoring predictions that count in one pair (COCO's maxDets)."""
_RECALLS: Float64Array = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True, slots=True)
class PhrasePair:
    """One phrase in one video: the predicted tracks, the annotated ones, and how they overlap."""

    video_id: str
    phrase: str
    scores: Float64Array
    """``(D,)`` of the predictions, 0..1."""
    iou: Float64Array
    """``(D, G)``: intersection over union of whole tracks, areas summed over the frames; 1 where both are empty."""

    def __post_init__(self) -> None:
        if self.iou.ndim != 2 or self.iou.shape[0] != len(self.scores):
            raise ValueError(f"iou must have {len(self.scores)} rows, but its shape is {self.iou.shape}")


@dataclass(frozen=True, slots=True)
class ApResult:
    """Average precision per threshold, ``(10,)``, NaN where nothing is annotated."""

    per_threshold: Float64Array
    phrase_per_threshold: Float64Array

    def scores(self) -> dict[str, float]:
        """``AP*`` averages over phrases, ``phrase_AP*`` pools the pairs; 0..1 or NaN."""
        at = {"": slice(None), "50": slice(0, 1), "75": slice(5, 6)}
        return {
            **{f"AP{name}": float(self.per_threshold[rows].mean()) for name, rows in at.items()},
            **{f"phrase_AP{name}": float(self.phrase_per_threshold[rows].mean()) for name, rows in at.items()},
        }


def average_precision(pairs: Sequence[PhrasePair]) -> ApResult:
    """Class mAP and phrase AP of these pairs. Equal scores rank in the order of ``pairs``, as COCO's do."""
    matched = [_match(p) for p in pairs]
    phrases = sorted({p.phrase for p in pairs})
    rows = [[m for m, p in zip(matched, pairs, strict=True) if p.phrase == phrase] for phrase in phrases]
    by_phrase = [ap for ap in map(_interpolated, rows) if not np.isnan(ap[0])]
    nothing = np.full(len(IOU_THRESHOLDS), np.nan)
    return ApResult(np.mean(by_phrase, axis=0) if by_phrase else nothing, _interpolated(matched))


@dataclass(frozen=True, slots=True)
class _Matched:
    scores: Float64Array
    hits: NDArray[np.bool_]
    """``(10, D)``: whether a prediction found an object at each threshold; predictions by descending score."""
    num_gt: int


def _match(pair: PhrasePair) -> _Matched:
    order = np.argsort(-pair.scores, kind="stable")[:MAX_TRACKS]
    iou = pair.iou[order]
    hits = np.zeros((len(IOU_THRESHOLDS), len(order)), bool)
    for row, threshold in zip(hits, IOU_THRESHOLDS, strict=True):
        free = np.ones(iou.shape[1], bool)
        for d, candidates in enumerate(iou):
            best = _best_free(candidates, free, min(float(threshold), 1 - 1e-10))
            if best is not None:
                free[best], row[d] = False, True
    return _Matched(pair.scores[order], hits, iou.shape[1])


def _best_free(candidates: Float64Array, free: NDArray[np.bool_], threshold: float) -> int | None:
    """The free object of highest IoU, the last one among equals (COCO's rule)."""
    eligible = np.flatnonzero(free & (candidates >= threshold))
    if not len(eligible):
        return None
    best = candidates[eligible].max()
    return int(eligible[candidates[eligible] == best][-1])


def _interpolated(matched: Sequence[_Matched]) -> Float64Array:
    """``(10,)`` average precision of these pairs pooled; NaN without ground truth."""
    num_gt = sum(m.num_gt for m in matched)
    if not num_gt:
        return np.full(len(IOU_THRESHOLDS), np.nan)
    order = np.argsort(-np.concatenate([m.scores for m in matched]), kind="stable")
    hits = np.concatenate([m.hits for m in matched], axis=1)[:, order]
    found = hits.cumsum(1)
    recall = found / num_gt
    precision = found / (found + (~hits).cumsum(1) + np.spacing(1))
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    padded = np.concatenate([envelope, np.zeros((len(hits), 1))], axis=1)
    return np.array([p[np.searchsorted(r, _RECALLS)].mean() for p, r in zip(padded, recall, strict=True)])
