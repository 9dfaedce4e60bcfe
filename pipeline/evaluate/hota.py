"""HOTA: higher order tracking accuracy (Luiten et al., arXiv 2009.07736). Plain arrays in, plain arrays out.

Edge cases follow TrackEval 1.3.0, which papers report: a sequence without ground truth or without predictions has
localisation accuracy 1 and everything else 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from pipeline.evaluate.sequence import EPS, Float64Array, IntArray, check_frames, relabel

ALPHAS: Float64Array = np.arange(0.05, 0.99, 0.05)
"""The 19 localisation thresholds HOTA averages over (paper, section 5)."""


@dataclass(frozen=True, slots=True)
class HotaResult:
    """Counts and association scores at each of :data:`ALPHAS`; every array is float64 ``(19,)``."""

    tp: Float64Array
    fn: Float64Array
    fp: Float64Array
    ass_a_alpha: Float64Array
    ass_re_alpha: Float64Array
    ass_pr_alpha: Float64Array
    loc_a_alpha: Float64Array

    @property
    def det_a_alpha(self) -> Float64Array:
        """Detection accuracy at each threshold."""
        return self.tp / np.maximum(1, self.tp + self.fn + self.fp)

    @property
    def hota_alpha(self) -> Float64Array:
        """HOTA at each threshold."""
        return np.sqrt(self.det_a_alpha * self.ass_a_alpha)

    @property
    def hota(self) -> float:
        """The score: the mean over thresholds, 0..1."""
        return float(self.hota_alpha.mean())

    def scores(self) -> dict[str, float]:
        """The usual names, each averaged over the thresholds, 0..1."""
        recall = self.tp / np.maximum(1, self.tp + self.fn)
        return {
            "HOTA": self.hota,
            "DetA": float(self.det_a_alpha.mean()),
            "AssA": float(self.ass_a_alpha.mean()),
            "DetRe": float(recall.mean()),
            "DetPr": float((self.tp / np.maximum(1, self.tp + self.fp)).mean()),
            "AssRe": float(self.ass_re_alpha.mean()),
            "AssPr": float(self.ass_pr_alpha.mean()),
            "LocA": float(self.loc_a_alpha.mean()),
            "OWTA": float(np.sqrt(recall * self.ass_a_alpha).mean()),
        }


def hota(
    gt_ids: Sequence[IntArray], pred_ids: Sequence[IntArray], similarities: Sequence[NDArray[np.floating[Any]]]
) -> HotaResult:
    """HOTA of one sequence.

    Args:
        gt_ids: per frame ``(N,)`` ids, unique in the frame; any integers.
        pred_ids: per frame ``(M,)`` ids.
        similarities: per frame ``(N, M)`` IoU, 0..1.

    Raises:
        ValueError: the lists or shapes disagree, or an id appears twice in a frame.
    """
    check_frames(gt_ids, pred_ids, similarities)
    gt, num_gt = relabel(gt_ids)
    pred, num_pred = relabel(pred_ids)
    gt_count = np.bincount(np.concatenate([*gt, np.zeros(0, np.int64)]), minlength=num_gt).astype(float)
    pred_count = np.bincount(np.concatenate([*pred, np.zeros(0, np.int64)]), minlength=num_pred).astype(float)
    if not num_gt or not num_pred:
        return _unmatched(gt_count.sum(), pred_count.sum())
    alignment = global_alignment(gt, pred, similarities, gt_count, pred_count)
    pairs, sims = _match(gt, pred, similarities, alignment)
    return _count(pairs, sims, gt_count, pred_count)


def _unmatched(num_gt_boxes: float, num_pred_boxes: float) -> HotaResult:
    zeros, ones = np.zeros(len(ALPHAS)), np.ones(len(ALPHAS))
    return HotaResult(zeros, num_gt_boxes * ones, num_pred_boxes * ones, zeros, zeros, zeros, ones)


def global_alignment(
    gt: Sequence[IntArray],
    pred: Sequence[IntArray],
    similarities: Sequence[NDArray[np.floating[Any]]],
    gt_count: Float64Array,
    pred_count: Float64Array,
) -> Float64Array:
    """``(num_gt, num_pred)`` Jaccard alignment of whole tracks, which decides between equal local matches.

    Paper, section 5 and appendix: similarities are normalised within each frame before they are summed.
    """
    potential = np.zeros((len(gt_count), len(pred_count)))
    for g, p, similarity in zip(gt, pred, similarities, strict=True):
        denominator = similarity.sum(0)[None, :] + similarity.sum(1)[:, None] - similarity
        share = np.divide(similarity, denominator, out=np.zeros(similarity.shape), where=denominator > EPS)
        potential[g[:, None], p[None, :]] += share
    aligned: Float64Array = potential / (gt_count[:, None] + pred_count[None, :] - potential)
    return aligned


def _match(
    gt: Sequence[IntArray],
    pred: Sequence[IntArray],
    similarities: Sequence[NDArray[np.floating[Any]]],
    alignment: Float64Array,
) -> tuple[IntArray, Float64Array]:
    """The matched pairs of all frames, as ``gt * num_pred + pred``, and their similarities."""
    pairs, sims = [np.zeros(0, np.int64)], [np.zeros(0)]
    for g, p, similarity in zip(gt, pred, similarities, strict=True):
        if not len(g) or not len(p):
            continue
        rows, cols = linear_sum_assignment(-(alignment[g[:, None], p[None, :]] * similarity))
        pairs.append(g[rows] * alignment.shape[1] + p[cols])
        sims.append(np.asarray(similarity[rows, cols], np.float64))
    return np.concatenate(pairs), np.concatenate(sims)


def _count(pairs: IntArray, sims: Float64Array, gt_count: Float64Array, pred_count: Float64Array) -> HotaResult:
    columns = np.array([_at_alpha(alpha, pairs, sims, gt_count, pred_count) for alpha in ALPHAS])
    tp, ass_a, ass_re, ass_pr, loc_a = np.ascontiguousarray(columns.T)
    return HotaResult(tp, gt_count.sum() - tp, pred_count.sum() - tp, ass_a, ass_re, ass_pr, loc_a)


def _at_alpha(
    alpha: float, pairs: IntArray, sims: Float64Array, gt_count: Float64Array, pred_count: Float64Array
) -> tuple[float, float, float, float, float]:
    hit = sims >= alpha - EPS
    tp = float(hit.sum())
    pair, matches = np.unique(pairs[hit], return_counts=True)
    in_gt, in_pred = gt_count[pair // len(pred_count)], pred_count[pair % len(pred_count)]
    weights = matches / max(1.0, tp)
    return (
        tp,
        float((weights * matches / np.maximum(1, in_gt + in_pred - matches)).sum()),
        float((weights * matches / np.maximum(1, in_gt)).sum()),
        float((weights * matches / np.maximum(1, in_pred)).sum()),
        max(1e-10, float(sims[hit].sum())) / max(1e-10, tp),
    )


def combine_hota(results: Sequence[HotaResult]) -> HotaResult:
    """Several sequences as one: counts are summed, association and localisation weighted by true positives."""
    tp = sum((r.tp for r in results), np.zeros(len(ALPHAS)))

    def weighted(name: str) -> Float64Array:
        total: Float64Array = sum((getattr(r, name) * r.tp for r in results), np.zeros(len(ALPHAS)))
        return total

    return HotaResult(
        tp,
        sum((r.fn for r in results), np.zeros(len(ALPHAS))),
        sum((r.fp for r in results), np.zeros(len(ALPHAS))),
        weighted("ass_a_alpha") / np.maximum(1, tp),
        weighted("ass_re_alpha") / np.maximum(1, tp),
        weighted("ass_pr_alpha") / np.maximum(1, tp),
        np.maximum(1e-10, weighted("loc_a_alpha")) / np.maximum(1e-10, tp),
    )
