"""J&F: region similarity and contour accuracy of masks (Perazzi et al., CVPR 2016; DAVIS 2017, arXiv 1704.00675).

Predicted tracks are assigned to annotated objects by their mean J over the video, as in DAVIS' unsupervised track
(Caelles et al., arXiv 1905.00737). Every frame counts; where neither mask exists, J and F are 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.optimize import linear_sum_assignment

from pipeline import masks as mask_ops
from pipeline.evaluate.sequence import EPS, Float64Array, IntArray, relabel
from pipeline.types import RLE, BoolArray

BOUND_SHARE = 0.008
"""Tolerance of the contour measure as a share of the frame's diagonal (DAVIS' reference code)."""

MaskFrame = tuple[Mapping[int, RLE], Mapping[int, RLE]]
"""One frame: annotated and predicted masks by track id. Absent objects are left out; a mask of area 0 is absent."""


@dataclass(frozen=True, slots=True)
class JFResult:
    """Per annotated object: the series of J and F over all frames."""

    gt_ids: tuple[int, ...]
    pred_ids: tuple[int | None, ...]
    """The prediction assigned to each object; ``None`` where none was left."""
    j: Float64Array
    """``(objects, frames)``"""
    f: Float64Array
    """``(objects, frames)``"""

    def object_scores(self) -> Float64Array:
        """``(objects, 6)``: J mean, recall, decay, F mean, recall, decay."""
        columns = [
            c for series in (self.j, self.f) for c in (series.mean(1), (series > 0.5 + EPS).mean(1), decay(series))
        ]
        return np.stack(columns, axis=1)


@dataclass(frozen=True, slots=True)
class JFSummary:
    """Means over the objects of one or several videos, each object weighing the same."""

    num_objects: int
    sums: Float64Array
    """``(6,)`` of :meth:`JFResult.object_scores` over the objects."""

    @property
    def j_and_f(self) -> float:
        """The score: mean of J and F, 0..1; 0 without objects."""
        return float(self.sums[0] + self.sums[3]) / 2 / max(1, self.num_objects)

    def scores(self) -> dict[str, float]:
        """The usual names, 0..1 (decay may be negative)."""
        names = ("J-Mean", "J-Recall", "J-Decay", "F-Mean", "F-Recall", "F-Decay")
        means = self.sums / max(1, self.num_objects)
        return {
            "J&F": self.j_and_f,
            **dict(zip(names, map(float, means), strict=True)),
            "objects": self.num_objects,
        }


def summarize_jf(results: Sequence[JFResult]) -> JFSummary:
    """The objects of these videos together."""
    sums = [r.object_scores().sum(0) for r in results if r.gt_ids]
    return JFSummary(sum(len(r.gt_ids) for r in results), sum(sums, np.zeros(6)))


def decay(series: Float64Array) -> Float64Array:
    """``(objects,)`` loss of quality over time: mean of the first quarter minus mean of the last (CVPR 2016)."""
    borders = (np.round(np.linspace(1, series.shape[1], 5) + 1e-10) - 1).astype(int)
    first, last = series[:, borders[0] : borders[1] + 1], series[:, borders[3] : borders[4] + 1]
    return np.asarray(first.mean(1) - last.mean(1))


def j_and_f(frames: Iterable[MaskFrame]) -> JFResult:
    """J and F of one video, objects assigned by mean J.

    Args:
        frames: every frame of the video. It is gone through twice, so pass a list or an object that can restart.

    Raises:
        ValueError: masks of different sizes in one frame.
    """
    gt_ids, pred_ids, ious = [], [], []
    for gt, pred in frames:
        gt, pred = _present(gt), _present(pred)
        gt_ids.append(np.array([*gt], np.int64))
        pred_ids.append(np.array([*pred], np.int64))
        ious.append(mask_ops.rle_iou(list(gt.values()), list(pred.values())))
    return assigned_j_and_f(frames, assign_by_j(gt_ids, pred_ids, ious, len(ious)))


def assign_by_j(
    gt_ids: Sequence[IntArray], pred_ids: Sequence[IntArray], ious: Sequence[Float64Array], num_frames: int
) -> dict[int, int | None]:
    """Each annotated object's prediction: the one-to-one assignment of highest mean J over ``num_frames`` frames.

    The lists hold the frames with objects, ``ious`` ``(N, M)`` each; objects are visible where they are listed. Empty
    predictions are added where they are too few: one explains every frame on which an object is absent too.
    """
    gt, num_gt = relabel(gt_ids)
    pred, num_pred = relabel(pred_ids)
    overlap = np.zeros((max(num_pred, num_gt), num_gt))
    for g, p, iou in zip(gt, pred, ious, strict=True):
        overlap[p[:, None], g[None, :]] += iou.T + 1  # the 1 counts frames on which both are visible
    gt_frames = np.bincount(np.concatenate([np.zeros(0, np.int64), *gt]), minlength=num_gt)
    pred_frames = np.bincount(np.concatenate([np.zeros(0, np.int64), *pred]), minlength=len(overlap))
    mean_j = (overlap + num_frames - gt_frames[None, :] - pred_frames[:, None]) / max(1, num_frames)
    names = [np.unique(np.concatenate([np.zeros(0, np.int64), *ids])).tolist() for ids in (gt_ids, pred_ids)]
    padded: list[int | None] = [*names[1], *([None] * (len(overlap) - num_pred))]
    rows, cols = linear_sum_assignment(-mean_j)
    return {names[0][c]: padded[r] for r, c in zip(rows, cols, strict=True)}


def assigned_j_and_f(frames: Iterable[MaskFrame], partner: Mapping[int, int | None]) -> JFResult:
    """J and F of one video where the correspondence ``{gt id: pred id}`` is known (DAVIS' semi-supervised track)."""
    gt_ids = tuple(sorted(partner))
    series = [[_frame_scores(gt, pred, g, partner[g]) for g in gt_ids] for gt, pred in frames]
    both = np.array(series, float).reshape(len(series), len(gt_ids), 2)
    return JFResult(gt_ids, tuple(partner[g] for g in gt_ids), both[..., 0].T.copy(), both[..., 1].T.copy())


def _frame_scores(
    gt: Mapping[int, RLE], pred: Mapping[int, RLE], gt_id: int, pred_id: int | None
) -> tuple[float, float]:
    return frame_j_and_f(gt.get(gt_id), None if pred_id is None else pred.get(pred_id))


def _present(masks: Mapping[int, RLE]) -> dict[int, RLE]:
    areas = mask_ops.areas(list(masks.values()))
    return {track: rle for (track, rle), area in zip(masks.items(), areas, strict=True) if area > 0}


def frame_j_and_f(gt: RLE | None, pred: RLE | None) -> tuple[float, float]:
    """J and F of one object on one frame; ``None`` where it is absent."""
    present = _present({i: rle for i, rle in enumerate((gt, pred)) if rle is not None})
    if len(present) < 2:
        value = float(not present)
        return value, value
    if present[0].size != present[1].size:
        raise ValueError(f"masks differ in size: {present[0].size} and {present[1].size}")
    j = float(mask_ops.rle_iou([present[1]], [present[0]])[0, 0])
    gt_mask, pred_mask = mask_ops.decode([present[0], present[1]])
    return j, boundary_f(gt_mask, pred_mask)


def boundary_f(gt: BoolArray, pred: BoolArray, bound_share: float = BOUND_SHARE) -> float:
    """Contour accuracy F of two masks, bool ``(H, W)``.

    The harmonic mean of the shares of either contour that lies within a tolerance of the other one: ``bound_share`` of
    the diagonal in pixels, rounded up. An exact distance transform stands for the reference's dilation by a disk.
    """
    radius_px = int(np.ceil(bound_share * np.linalg.norm(gt.shape)))
    window = _window(gt | pred, radius_px)
    gt_contour, pred_contour = contour(gt)[window], contour(pred)[window]
    n_gt, n_pred = int(gt_contour.sum()), int(pred_contour.sum())
    if not n_gt or not n_pred:
        return float(n_gt == n_pred)
    precision = float((pred_contour & _near(gt_contour, radius_px)).sum()) / n_pred
    recall = float((gt_contour & _near(pred_contour, radius_px)).sum()) / n_gt
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def contour(mask: BoolArray) -> BoolArray:
    """Pixels whose right, lower or lower right neighbour differs: one pixel wide (David Martin's ``seg2bmap``)."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    here, right, below, diagonal = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    # Edge padding makes the last row compare with the right only, the last column with below, the corner with nothing.
    found: BoolArray = (here ^ right) | (here ^ below) | (here ^ diagonal)
    return found


def _near(contour_mask: BoolArray, radius_px: int) -> BoolArray:
    """Pixels within ``radius_px`` of the contour."""
    distance = cv2.distanceTransform((~contour_mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # Distances are roots of whole numbers: half the gap to the next one is slack enough for float32.
    return np.asarray(distance <= radius_px + 0.25 / (radius_px + 1))


def _window(mask: BoolArray, margin_px: int) -> tuple[slice, slice]:
    """The mask's box with a margin; everything outside is far from both contours."""
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(ys):
        return slice(0, 0), slice(0, 0)
    reach = margin_px + 2
    return slice(max(0, ys[0] - reach), ys[-1] + reach + 1), slice(max(0, xs[0] - reach), xs[-1] + reach + 1)
