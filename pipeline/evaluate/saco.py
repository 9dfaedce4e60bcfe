"""SA-Co's cgF1: does the model find every object of a phrase, and does it know when there is none?

Definition: SAM 3 (arXiv 2511.16719), section "Metrics"; constants and edge cases as in Meta's evaluation toolkit
(``sam3.eval``). Each phrase in each video is one example. ``cgF1 = pmF1 * IL_MCC``: the F1 of the tracks pooled over
the examples that have objects, times Matthews' correlation of "says there are some" with "there are some".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from pipeline.evaluate.sequence import Float64Array
from pipeline.evaluate.track_ap import IOU_THRESHOLDS, PhrasePair

_EPS_TRACKS = 1e-4
_EPS_EXAMPLES = 1e-6
SCORE_THRESHOLD = 0.5
"""Predictions below it are dropped; exactly 0.5 stays here, while the toolkit's HOTA drops it."""


@dataclass(frozen=True, slots=True)
class CgF1Result:
    """Track counts at each of the ten IoU thresholds, ``(10,)`` each, and example counts."""

    tp: Float64Array
    fp: Float64Array
    fn: Float64Array
    positive_fp: Float64Array
    """False positives in examples that have objects: the others are judged by ``il_mcc``."""
    il_tp: int
    il_fp: int
    il_tn: int
    il_fn: int
    macro_f1: Float64Array
    """Mean F1 of the examples that have objects and predictions; NaN without one."""

    @property
    def pm_f1(self) -> Float64Array:
        """``(10,)`` positive micro F1."""
        precision = self.tp / (self.tp + self.positive_fp + _EPS_TRACKS)
        return _f1(precision, self.tp / (self.tp + self.fn + _EPS_TRACKS))

    @property
    def il_mcc(self) -> float:
        """Matthews' correlation coefficient over examples, -1..1; 0 when one kind of example or answer is missing."""
        said, there = self.il_tp + self.il_fp, self.il_tp + self.il_fn
        not_said, not_there = self.il_tn + self.il_fn, self.il_tn + self.il_fp
        norm = float(np.sqrt(float(said) * float(there) * float(not_there) * float(not_said)))
        return float(self.il_tp * self.il_tn - self.il_fp * self.il_fn) / (norm + _EPS_EXAMPLES)

    @property
    def cgf1(self) -> float:
        """The score; the paper prints it times 100."""
        return float(self.pm_f1.mean()) * self.il_mcc

    def scores(self) -> dict[str, float]:
        """Names as in the toolkit, all 0..1 (IL_MCC and cgF1 may be negative)."""
        precision = self.tp / (self.tp + self.fp + _EPS_TRACKS)
        recall = self.tp / (self.tp + self.fn + _EPS_TRACKS)
        return {
            "cgF1": self.cgf1,
            "cgF1_50": float(self.pm_f1[0]) * self.il_mcc,
            "cgF1_75": float(self.pm_f1[5]) * self.il_mcc,
            "pmF1": float(self.pm_f1.mean()),
            "IL_MCC": self.il_mcc,
            "precision": float(precision.mean()),
            "recall": float(recall.mean()),
            "F1": float(_f1(precision, recall).mean()),
            "macro_F1": float(self.macro_f1.mean()),
            "IL_precision": self.il_tp / (self.il_tp + self.il_fp + _EPS_EXAMPLES),
            "IL_recall": self.il_tp / (self.il_tp + self.il_fn + _EPS_EXAMPLES),
            "IL_FPR": self.il_fp / (self.il_fp + self.il_tn + _EPS_EXAMPLES),
        }


def _f1(precision: Float64Array, recall: Float64Array) -> Float64Array:
    return 2 * precision * recall / (precision + recall + _EPS_TRACKS)


def cgf1(pairs: Sequence[PhrasePair], score_threshold: float = SCORE_THRESHOLD) -> CgF1Result:
    """cgF1 of these examples, phrases without objects included: without them it is 0 by definition."""
    zeros = np.zeros(len(IOU_THRESHOLDS))
    tp, fp, fn, positive_fp, macro = zeros.copy(), zeros.copy(), zeros.copy(), zeros.copy(), zeros.copy()
    examples = {(said, there): 0 for said in (True, False) for there in (True, False)}
    for pair in pairs:
        iou = pair.iou[pair.scores >= score_threshold]
        said, there = iou.shape[0] > 0, iou.shape[1] > 0
        examples[said, there] += 1
        hits = _matches(iou)
        tp += hits
        fp += len(iou) - hits
        fn += iou.shape[1] - hits
        if there:
            positive_fp += len(iou) - hits
        if said and there:
            macro += _f1(hits / (len(iou) + _EPS_TRACKS), hits / (iou.shape[1] + _EPS_TRACKS))
    both = examples[True, True]
    return CgF1Result(
        tp,
        fp,
        fn,
        positive_fp,
        both,
        examples[True, False],
        examples[False, False],
        examples[False, True],
        macro / both if both else zeros + np.nan,
    )


def _matches(iou: Float64Array) -> NDArray[np.int64]:
    """``(10,)`` matched tracks: one optimal assignment, then the thresholds."""
    best = iou[linear_sum_assignment(-iou)]
    return np.asarray((best[None, :] >= IOU_THRESHOLDS[:, None]).sum(1))
