"""Two sets of labels of one video laid over each other, in one pass over their frames: all that the metrics need."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from scipy.optimize import linear_sum_assignment

from pipeline import masks as mask_ops
from pipeline.evaluate.jf import MaskFrame
from pipeline.evaluate.labels import FrameLabels, Role
from pipeline.evaluate.sequence import EPS, Float64Array, IntArray
from pipeline.evaluate.teta import TetaVideo
from pipeline.evaluate.track_ap import PhrasePair
from pipeline.types import RLE, BoolArray

Kind = Literal["mask", "box"]
"""What overlap is measured on."""

Frames = Callable[[], Iterator[tuple[FrameLabels, FrameLabels]]]
"""Starts going through the (ground truth, prediction) frames of one video."""


@dataclass(frozen=True, slots=True)
class FrameOverlap:
    """One frame: who is there, and who overlaps whom."""

    gt_ids: IntArray
    gt_phrases: tuple[str, ...]
    pred_ids: IntArray
    pred_phrases: tuple[str, ...]
    iou: dict[Kind, Float64Array]
    """``(N, M)`` per kind, phrases ignored."""

    def of_phrase(self, phrase: str, kind: Kind) -> tuple[IntArray, IntArray, Float64Array]:
        """Ids and overlaps among the objects of one phrase."""
        gt = np.array([p == phrase for p in self.gt_phrases], bool)
        pred = np.array([p == phrase for p in self.pred_phrases], bool)
        return self.gt_ids[gt], self.pred_ids[pred], self.iou[kind][gt][:, pred]


@dataclass(slots=True)
class _Track:
    phrase: str
    frames: int = 0
    score: float = 0.0
    area: dict[Kind, float] = field(default_factory=lambda: defaultdict(float))


class PairSums:
    """Sums by pair of ids, added up in batches."""

    _BATCH = 1_000

    def __init__(self) -> None:
        self._pending: list[tuple[IntArray, IntArray, Float64Array]] = []
        self._sums: dict[tuple[int, int], float] = {}

    def add(self, first: IntArray, second: IntArray, values: Float64Array) -> None:
        """Add values of these pairs, ``(K,)`` each."""
        self._pending.append((first, second, values))
        if len(self._pending) >= self._BATCH:
            self._settle()

    def totals(self) -> dict[tuple[int, int], float]:
        """The sum of every pair that was ever added."""
        self._settle()
        return self._sums

    def _settle(self) -> None:
        if not self._pending:
            return
        first, second, values = (np.concatenate([p[i] for p in self._pending]) for i in range(3))
        firsts, row = np.unique(first, return_inverse=True)
        seconds, col = np.unique(second, return_inverse=True)
        sums = np.bincount(row * len(seconds) + col, values, len(firsts) * len(seconds))
        for cell in np.flatnonzero(sums):
            pair = int(firsts[cell // len(seconds)]), int(seconds[cell % len(seconds)])
            self._sums[pair] = self._sums.get(pair, 0.0) + float(sums[cell])
        self._pending.clear()


@dataclass(slots=True)
class VideoOverlap:
    """One video; small next to its masks, which are not kept."""

    video_id: str
    kinds: tuple[Kind, ...]
    phrases: tuple[str, ...]
    """Every phrase that was asked, annotated or predicted here."""
    frames: list[FrameOverlap] = field(default_factory=list)
    gt_tracks: dict[int, _Track] = field(default_factory=dict)
    pred_tracks: dict[int, _Track] = field(default_factory=dict)
    shared: dict[Kind, PairSums] = field(default_factory=dict)
    """Intersection of track pairs (prediction, ground truth), summed over frames."""

    def sequence(
        self, phrase: str, kind: Kind, above: float | None = None
    ) -> tuple[list[IntArray], list[IntArray], list[Float64Array]]:
        """Arguments of the frame-wise metrics for one phrase; ``above``: only tracks with a larger mean score."""
        parts = [f.of_phrase(phrase, kind) for f in self.frames]
        if above is not None:
            strong = [i for i in self.pred_tracks if self.track_score(i) > above]
            keep = [np.isin(p[1], strong) for p in parts]
            parts = [(g, p[k], s[:, k]) for (g, p, s), k in zip(parts, keep, strict=True)]
        return [p[0] for p in parts], [p[1] for p in parts], [p[2] for p in parts]

    def track_score(self, pred_id: int) -> float:
        """A predicted track's score: the mean over its frames."""
        track = self.pred_tracks[pred_id]
        return track.score / track.frames

    def pair(self, phrase: str, kind: Kind) -> PhrasePair:
        """The whole tracks of one phrase, by id."""
        gt = sorted(i for i, t in self.gt_tracks.items() if t.phrase == phrase)
        pred = sorted(i for i, t in self.pred_tracks.items() if t.phrase == phrase)
        iou, sums = np.zeros((len(pred), len(gt))), self.shared[kind].totals()
        for row, p in enumerate(pred):
            for col, g in enumerate(gt):
                shared = sums.get((p, g), 0.0)
                union = self.pred_tracks[p].area[kind] + self.gt_tracks[g].area[kind] - shared
                iou[row, col] = shared / union if union > 0 else 1.0
        if kind == "box":
            # Meta's toolkit does so: it decides whether an IoU of exactly 0.7 is one of at least 0.7.
            iou = iou.astype(np.float32).astype(np.float64)
        return PhrasePair(self.video_id, phrase, np.array([self.track_score(p) for p in pred], float), iou)

    def teta(self, kind: Kind, at_least: float = 0.0) -> TetaVideo:
        """Arguments of TETA: all phrases, tracks with a mean score of ``at_least``."""
        strong = [i for i in self.pred_tracks if self.track_score(i) >= at_least]
        keep = [np.isin(f.pred_ids, strong) for f in self.frames]
        return TetaVideo(
            [f.gt_ids for f in self.frames],
            [f.gt_phrases for f in self.frames],
            [f.pred_ids[k] for f, k in zip(self.frames, keep, strict=True)],
            [tuple(np.array(f.pred_phrases, object)[k]) for f, k in zip(self.frames, keep, strict=True)],
            [f.iou[kind][:, k] for f, k in zip(self.frames, keep, strict=True)],
        )


def overlap_video(video_id: str, frames: Frames, kinds: Sequence[Kind], phrases: Sequence[str]) -> VideoOverlap:
    """Go once through the frames of one video.

    Raises:
        ValueError: a track changes its phrase, or an id appears twice on a frame (the message names the frame).
    """
    out = VideoOverlap(video_id, tuple(kinds), (), shared={k: PairSums() for k in kinds})
    for gt, pred in frames():
        _add_frame(out, gt, pred)
    found = [t.phrase for tracks in (out.gt_tracks, out.pred_tracks) for t in tracks.values()]
    out.phrases = tuple(sorted({*phrases, *found}))
    return out


def _add_frame(out: VideoOverlap, gt: FrameLabels, pred: FrameLabels) -> None:
    iou = {kind: _iou(gt, pred, kind) for kind in out.kinds}
    for side, labels, tracks in (("ground truth", gt, out.gt_tracks), ("prediction", pred, out.pred_tracks)):
        _note_tracks(side, labels, tracks, out.kinds)
    for kind, matrix in iou.items():
        gt_area, pred_area = _areas(gt, kind), _areas(pred, kind)
        # i = IoU * (a + b - i); areas of masks are whole numbers, and so is what they share.
        shared = matrix * (gt_area[:, None] + pred_area[None, :]) / (1 + matrix)
        if kind == "mask":
            shared = np.round(shared)
        g, p = np.nonzero(shared)
        out.shared[kind].add(pred.track_id[p], gt.track_id[g], shared[g, p])
    out.frames.append(FrameOverlap(gt.track_id, gt.phrase, pred.track_id, pred.phrase, iou))


def _note_tracks(side: str, labels: FrameLabels, tracks: dict[int, _Track], kinds: Sequence[Kind]) -> None:
    if len(np.unique(labels.track_id)) != len(labels):
        raise ValueError(f"an id appears twice in the {side} of frame {labels.index}")
    areas = {kind: _areas(labels, kind) for kind in kinds}
    for row, (track_id, phrase) in enumerate(zip(labels.track_id.tolist(), labels.phrase, strict=True)):
        track = tracks.setdefault(track_id, _Track(phrase))
        if track.phrase != phrase:
            raise ValueError(
                f"object {track_id} of the {side} is {track.phrase!r} and, on frame {labels.index}, {phrase!r}"
            )
        track.frames += 1
        track.score += float(labels.score[row])
        for kind in kinds:
            track.area[kind] += float(areas[kind][row])


def _iou(gt: FrameLabels, pred: FrameLabels, kind: Kind) -> Float64Array:
    if kind == "box":
        return mask_ops.box_iou(gt.xyxy, pred.xyxy)
    if not len(gt) or not len(pred):
        return np.zeros((len(gt), len(pred)))
    return mask_ops.rle_iou(_rles(gt), _rles(pred))


def _areas(labels: FrameLabels, kind: Kind) -> Float64Array:
    return mask_ops.box_areas(labels.xyxy) if kind == "box" else mask_ops.areas(_rles(labels)).astype(np.float64)


def _rles(labels: FrameLabels) -> tuple[RLE, ...]:
    if labels.rles is None:
        raise ValueError(f"frame {labels.index} has boxes only, but masks are to be compared")
    return labels.rles


def apply_roles(gt: FrameLabels, pred: FrameLabels, kind: Kind) -> tuple[FrameLabels, FrameLabels]:
    """Drop annotations that are not to be found, and the predictions that they excuse.

    As TrackEval 1.3.0 does for MOT16, MOT17 and MOT20 (distractors) and for MOTS (ignore regions).
    """
    if gt.role is None or not gt.role.any():
        return gt, pred
    region = gt.role == Role.IGNORE_REGION
    keep = np.ones(len(pred), bool)
    if (gt.role == Role.DISTRACTOR).any():
        boxes = gt.rows(~region)
        rows, cols = _matched(_iou(boxes, pred, kind))
        assert boxes.role is not None
        keep[cols[boxes.role[rows] == Role.DISTRACTOR]] = False
    if region.any():
        _, cols = _matched(_iou(gt.rows(gt.role == Role.OBJECT), pred, kind))
        keep &= np.isin(np.arange(len(pred)), cols) | ~_inside(pred, gt.rows(region))
    return gt.rows(gt.role == Role.OBJECT), pred.rows(keep)


def _matched(iou: Float64Array, threshold: float = 0.5) -> tuple[IntArray, IntArray]:
    score = np.where(iou < threshold - EPS, 0.0, iou)
    rows, cols = linear_sum_assignment(-score)
    hit = score[rows, cols] > EPS
    return rows[hit], cols[hit]


def _inside(pred: FrameLabels, regions: FrameLabels) -> BoolArray:
    """``(M,)``: more than half of the predicted mask lies in an ignore region."""
    if not len(pred):
        return np.zeros(0, bool)
    merged = coco_mask.merge([r.to_coco() for r in _rles(regions)], intersect=False)
    share = np.asarray(coco_mask.iou([r.to_coco() for r in _rles(pred)], [merged], [True]))
    inside: NDArray[np.bool_] = share[:, 0] > 0.5 + EPS
    return inside


class MaskFrames:
    """The masks of both sides on each of the frames ``indices``, absent ones included; can be gone through again."""

    def __init__(self, frames: Frames, indices: Iterable[int]) -> None:
        self._frames, self._indices = frames, indices

    def __iter__(self) -> Iterator[MaskFrame]:
        pairs = self._frames()
        pair = next(pairs, None)
        for index in self._indices:
            if pair is None or pair[0].index != index:
                yield {}, {}
                continue
            yield _masks_by_id(pair[0]), _masks_by_id(pair[1])
            pair = next(pairs, None)


def _masks_by_id(labels: FrameLabels) -> dict[int, RLE]:
    return dict(zip(labels.track_id.tolist(), _rles(labels), strict=True))
