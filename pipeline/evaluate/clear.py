"""CLEAR MOT: MOTA, MOTP, identity switches, fragmentations (Bernardin & Stiefelhagen 2008).

The rules are TrackEval 1.3.0's, which MOTChallenge reports: matching first keeps the pairs of the previous frame, then
maximises similarity; a switch is counted against the last prediction an object ever had.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from pipeline.evaluate.sequence import EPS, Float64Array, IntArray, check_frames, relabel

_KEEP_PAIR = 1000.0
"""Added to the similarity of last frame's pairs: larger than any sum of similarities it competes with."""


@dataclass(frozen=True, slots=True)
class ClearResult:
    """The counts of one or several sequences; the scores follow from them."""

    tp: int = 0
    fn: int = 0
    fp: int = 0
    id_switches: int = 0
    mostly_tracked: int = 0
    partly_tracked: int = 0
    mostly_lost: int = 0
    fragmentations: int = 0
    similarity_sum: float = 0.0
    """Of the matched pairs."""

    @property
    def mota(self) -> float:
        """Accuracy, at most 1; negative when errors outnumber the objects. 0 where nothing is annotated."""
        return (self.tp - self.fp - self.id_switches) / self._num_gt if self._num_gt else 0.0

    @property
    def motp(self) -> float:
        """Mean similarity of the matches."""
        return self.similarity_sum / max(1, self.tp)

    @property
    def _num_gt(self) -> int:
        return self.tp + self.fn

    def scores(self) -> dict[str, float]:
        """The usual names; counts as whole numbers, the rest 0..1 (MOTA, MODA and sMOTA may be negative)."""
        num_gt = self._num_gt
        return {
            "MOTA": self.mota,
            "MOTP": self.motp,
            "MODA": (self.tp - self.fp) / num_gt if num_gt else 0.0,
            "sMOTA": (self.similarity_sum - self.fp - self.id_switches) / num_gt if num_gt else 0.0,
            "Recall": self.tp / max(1, num_gt),
            "Precision": self.tp / max(1, self.tp + self.fp),
            "TP": self.tp,
            "FN": self.fn,
            "FP": self.fp,
            "IDSW": self.id_switches,
            "MT": self.mostly_tracked,
            "PT": self.partly_tracked,
            "ML": self.mostly_lost,
            "Frag": self.fragmentations,
        }


def clear(
    gt_ids: Sequence[IntArray],
    pred_ids: Sequence[IntArray],
    similarities: Sequence[NDArray[np.floating[Any]]],
    threshold: float = 0.5,
) -> ClearResult:
    """CLEAR MOT of one sequence; the arguments are those of :func:`pipeline.evaluate.hota.hota`."""
    check_frames(gt_ids, pred_ids, similarities)
    gt, num_gt = relabel(gt_ids)
    pred, num_pred = relabel(pred_ids)
    num_gt_boxes, num_pred_boxes = sum(map(len, gt)), sum(map(len, pred))
    if not num_gt or not num_pred:
        return ClearResult(fn=num_gt_boxes, fp=num_pred_boxes, mostly_lost=num_gt)
    state = _Objects(num_gt)
    for g, p, similarity in zip(gt, pred, similarities, strict=True):
        state.frame(g, p, similarity, threshold)
    tracked = state.matched_frames / state.frames
    mostly = int((tracked > 0.8).sum())
    partly = int((tracked >= 0.2).sum()) - mostly
    return ClearResult(
        tp=state.tp,
        fn=num_gt_boxes - state.tp,
        fp=num_pred_boxes - state.tp,
        id_switches=state.switches,
        mostly_tracked=mostly,
        partly_tracked=partly,
        mostly_lost=num_gt - mostly - partly,
        fragmentations=int(np.maximum(state.pieces - 1, 0).sum()),
        similarity_sum=state.similarity_sum,
    )


class _Objects:
    """What has to be remembered of each annotated object from frame to frame."""

    def __init__(self, num_gt: int) -> None:
        self.tp, self.switches, self.similarity_sum = 0, 0, 0.0
        self.frames = np.zeros(num_gt)
        self.matched_frames = np.zeros(num_gt)
        self.pieces = np.zeros(num_gt)
        self._last_pred = np.full(num_gt, -1)
        self._pred_of_previous_frame = np.full(num_gt, -1)

    def frame(self, g: IntArray, p: IntArray, similarity: NDArray[np.floating[Any]], threshold: float) -> None:
        if not len(g):
            # As in TrackEval: a frame without annotations does not interrupt anything.
            return
        self.frames[g] += 1
        if not len(p):
            return
        score: Float64Array = _KEEP_PAIR * (p[None, :] == self._pred_of_previous_frame[g][:, None]) + similarity
        score[similarity < threshold - EPS] = 0
        rows, cols = linear_sum_assignment(-score)
        hit = score[rows, cols] > EPS
        self._record(g[rows[hit]], p[cols[hit]])
        self.similarity_sum += float(similarity[rows[hit], cols[hit]].sum())

    def _record(self, g: IntArray, p: IntArray) -> None:
        last = self._last_pred[g]
        self.tp += len(g)
        self.switches += int(((last >= 0) & (last != p)).sum())
        self.matched_frames[g] += 1
        self.pieces[g[self._pred_of_previous_frame[g] < 0]] += 1
        self._last_pred[g] = p
        self._pred_of_previous_frame[:] = -1
        self._pred_of_previous_frame[g] = p


def combine_clear(results: Sequence[ClearResult]) -> ClearResult:
    """Several sequences as one: the counts are summed."""
    return ClearResult(**{f.name: sum(getattr(r, f.name) for r in results) for f in fields(ClearResult)})
