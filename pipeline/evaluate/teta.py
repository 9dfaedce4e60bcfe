"""TETA: track every thing accuracy (Li et al., arXiv 2207.12978): localisation, association and classification apart.

Predictions are matched to annotated objects whatever their phrases; the phrase is judged in a term of its own. Written
after the version in Meta's evaluation toolkit (``sam3.eval``) for exhaustively annotated videos.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from pipeline.evaluate.hota import global_alignment
from pipeline.evaluate.sequence import EPS, Float64Array, IntArray, check_frames, relabel

ALPHAS: Float64Array = np.arange(0.0, 0.99, 0.05)
"""Localisation thresholds of the first two terms; the classification term uses those from 0.5 on."""
_FIRST_CLASS_ALPHA = 10
OVERLAP_IOU = 0.5
"""A prediction takes part in localisation only where it overlaps an annotated object by this much."""


@dataclass(frozen=True, slots=True)
class TetaVideo:
    """One video, all phrases together; lists over frames."""

    gt_ids: Sequence[IntArray]
    gt_phrases: Sequence[Sequence[str]]
    pred_ids: Sequence[IntArray]
    pred_phrases: Sequence[Sequence[str]]
    similarities: Sequence[NDArray[np.floating[Any]]]
    """``(N, M)`` per frame."""


def _alphas() -> Float64Array:
    return np.zeros(len(ALPHAS))


def _class_alphas() -> Float64Array:
    return np.zeros(len(ALPHAS) - _FIRST_CLASS_ALPHA)


@dataclass(slots=True)
class _PhraseCounts:
    """Counts of one phrase, summed over videos."""

    loc_tp: Float64Array = field(default_factory=_alphas)
    loc_fn: Float64Array = field(default_factory=_alphas)
    loc_fp: Float64Array = field(default_factory=_alphas)
    assoc: Float64Array = field(default_factory=lambda: np.zeros((3, len(ALPHAS))))
    """AssocA, AssocRe, AssocPr, each weighted by true positives."""
    cls_tp: Float64Array = field(default_factory=_class_alphas)
    cls_fn: Float64Array = field(default_factory=_class_alphas)
    cls_fp: Float64Array = field(default_factory=_class_alphas)

    @property
    def empty(self) -> bool:
        return not (self.loc_tp + self.loc_fn + self.loc_fp > EPS).any()

    def scores(self) -> dict[str, float]:
        tp, fn, fp = self.loc_tp, self.loc_fn, self.loc_fp
        assoc = self.assoc / np.maximum(1, tp)
        out = {
            "LocA": tp / np.maximum(1, tp + fn + fp),
            "AssocA": assoc[0],
            "ClsA": self.cls_tp / np.maximum(1, self.cls_tp + self.cls_fn + self.cls_fp),
            "LocRe": tp / np.maximum(1, tp + fn),
            "LocPr": tp / np.maximum(1, tp + fp),
            "AssocRe": assoc[1],
            "AssocPr": assoc[2],
            "ClsRe": self.cls_tp / np.maximum(1, self.cls_tp + self.cls_fn),
            "ClsPr": self.cls_tp / np.maximum(1, self.cls_tp + self.cls_fp),
        }
        means = {name: float(values.mean()) for name, values in out.items()}
        return {"TETA": (means["LocA"] + means["AssocA"] + means["ClsA"]) / 3, **means}


def teta(videos: Sequence[TetaVideo], phrases: Sequence[str] | None = None) -> dict[str, float]:
    """TETA and its parts, 0..1, averaged over the annotated phrases; all 0 without one.

    Args:
        videos: the videos; ids are unique within a video.
        phrases: annotated phrases in the order in which they are judged, alphabetical if left out. (In the reference a
            phrase without overlaps overwrites false positives that an earlier one noted for it.)
    """
    annotated = {p for v in videos for frame in v.gt_phrases for p in frame}
    order = [p for p in phrases if p in annotated] if phrases is not None else sorted(annotated)
    counts = {p: _PhraseCounts() for p in order}
    for video in videos:
        _count_video(video, counts)
    scores = [c.scores() for c in counts.values() if not c.empty]
    names = _PhraseCounts().scores()
    return {name: float(np.mean([s[name] for s in scores])) if scores else 0.0 for name in names}


def _count_video(video: TetaVideo, counts: Mapping[str, _PhraseCounts]) -> None:
    check_frames(video.gt_ids, video.pred_ids, video.similarities)
    video = _annotated(video)
    gt_phrases = [np.array(p, dtype=object) for p in video.gt_phrases]
    pred_phrases = [np.array(p, dtype=object) for p in video.pred_phrases]
    assigned = _assign(video)
    wrong = {p: _class_alphas() for p in counts}
    for phrase in counts:
        part = _PhrasePart.select(video, phrase, gt_phrases, pred_phrases, assigned)
        part.count(counts[phrase], wrong)
    for phrase, false_positives in wrong.items():
        counts[phrase].cls_fp += false_positives


def _annotated(video: TetaVideo) -> TetaVideo:
    """The frames with at least one annotated object, phrases ignored: the reference does not judge the others."""
    keep = [i for i, ids in enumerate(video.gt_ids) if len(ids)]
    return TetaVideo(*([getattr(video, f.name)[i] for i in keep] for f in fields(TetaVideo)))


def _assign(video: TetaVideo) -> list[dict[int, int]]:
    """Per frame ``{gt id: pred id}`` of the matches at IoU 0.5, phrases ignored."""
    overlaps = [(s >= OVERLAP_IOU).any(0) for s in video.similarities]
    tracks = {int(i) for ids, mask in zip(video.pred_ids, overlaps, strict=True) for i in ids[mask]}
    if not tracks:
        return [{} for _ in video.gt_ids]
    kept = [np.isin(ids, list(tracks)) for ids in video.pred_ids]
    pred_ids = [ids[mask] for ids, mask in zip(video.pred_ids, kept, strict=True)]
    similarities = [s[:, mask] for s, mask in zip(video.similarities, kept, strict=True)]
    out = []
    for gt, pred, (rows, cols, sims) in zip(
        video.gt_ids, pred_ids, _matches(video.gt_ids, pred_ids, similarities)[0], strict=True
    ):
        hit = sims >= OVERLAP_IOU - EPS
        out.append(dict(zip(gt[rows[hit]].tolist(), pred[cols[hit]].tolist(), strict=True)))
    return out


_FrameMatch = tuple[IntArray, IntArray, Float64Array]


def _matches(
    gt_ids: Sequence[IntArray], pred_ids: Sequence[IntArray], similarities: Sequence[NDArray[np.floating[Any]]]
) -> tuple[list[_FrameMatch], Float64Array, Float64Array]:
    """Per frame rows, columns and similarities of the optimal assignment; frames per track on either side."""
    gt, num_gt = relabel(gt_ids)
    pred, num_pred = relabel(pred_ids)
    gt_count = np.bincount(np.concatenate([np.zeros(0, np.int64), *gt]), minlength=num_gt).astype(float)
    pred_count = np.bincount(np.concatenate([np.zeros(0, np.int64), *pred]), minlength=num_pred).astype(float)
    alignment = global_alignment(gt, pred, similarities, gt_count, pred_count)
    found = []
    for g, p, similarity in zip(gt, pred, similarities, strict=True):
        rows, cols = linear_sum_assignment(-(alignment[g[:, None], p[None, :]] * similarity))
        found.append((rows, cols, np.asarray(similarity[rows, cols], np.float64)))
    return found, gt_count, pred_count


@dataclass(frozen=True, slots=True)
class _PhrasePart:
    """What of a video matters to one phrase; lists over frames."""

    phrase: str
    gt_ids: list[IntArray]
    pred_ids: list[IntArray]
    """Tracks that anywhere overlap an object of the phrase and are not assigned to one of another phrase there."""
    pred_phrases: list[NDArray[Any]]
    similarities: list[NDArray[np.floating[Any]]]
    overlapping: list[set[int]]
    """Ids that overlap an object of the phrase on this very frame."""
    claimed: list[set[int]]
    """Ids predicted as this phrase."""

    @classmethod
    def select(
        cls,
        video: TetaVideo,
        phrase: str,
        gt_phrases: Sequence[NDArray[Any]],
        pred_phrases: Sequence[NDArray[Any]],
        assigned: Sequence[Mapping[int, int]],
    ) -> _PhrasePart:
        ours = [p == phrase for p in gt_phrases]
        overlapping = []
        for ids, mine, pred_ids, similarity, pairs in zip(
            video.gt_ids, ours, video.pred_ids, video.similarities, assigned, strict=True
        ):
            elsewhere = {p for g, p in pairs.items() if g not in set(ids[mine].tolist())}
            overlapping.append(set(pred_ids[(similarity[mine] >= OVERLAP_IOU).any(0)].tolist()) - elsewhere)
        tracks = sorted(set().union(*overlapping)) if overlapping else []
        kept = [np.isin(ids, tracks) for ids in video.pred_ids]
        return cls(
            phrase,
            [ids[mine] for ids, mine in zip(video.gt_ids, ours, strict=True)],
            [ids[mask] for ids, mask in zip(video.pred_ids, kept, strict=True)],
            [p[mask] for p, mask in zip(pred_phrases, kept, strict=True)],
            [s[mine][:, mask] for s, mine, mask in zip(video.similarities, ours, kept, strict=True)],
            overlapping,
            [set(ids[p == phrase].tolist()) for ids, p in zip(video.pred_ids, pred_phrases, strict=True)],
        )

    def count(self, into: _PhraseCounts, wrong: dict[str, Float64Array]) -> None:
        """Add this video's counts; ``wrong`` notes false positives of the classification term for every phrase."""
        if not any(self.overlapping):
            into.loc_fn += sum(map(len, self.gt_ids))
            wrong[self.phrase][:] = sum(map(len, self.claimed))
            return
        matches, gt_count, pred_count = _matches(self.gt_ids, self.pred_ids, self.similarities)
        self._count_false_claims(wrong)
        for frame, match in enumerate(matches):
            if len(self.gt_ids[frame]):
                self._count_frame(frame, match, into, wrong)
        self._count_association(matches, gt_count, pred_count, into)

    def _count_false_claims(self, wrong: dict[str, Float64Array]) -> None:
        for gt_ids, overlapping, claimed in zip(self.gt_ids, self.overlapping, self.claimed, strict=True):
            wrong[self.phrase] += len(claimed - overlapping) if len(gt_ids) else len(claimed | overlapping)

    def _count_frame(self, frame: int, match: _FrameMatch, into: _PhraseCounts, wrong: dict[str, Float64Array]) -> None:
        _, cols, sims = match
        ids, phrases = self.pred_ids[frame][cols], self.pred_phrases[frame][cols]
        overlapping = np.isin(ids, list(self.overlapping[frame]))
        hit = sims[:, None] >= ALPHAS[None] - EPS
        into.loc_tp += hit.sum(0)
        into.loc_fn += len(self.gt_ids[frame]) - hit.sum(0)
        into.loc_fp += len(self.overlapping[frame]) - hit[overlapping].sum(0)
        for phrase in set(phrases.tolist()):
            found = hit[phrases == phrase, _FIRST_CLASS_ALPHA:].sum(0)
            if phrase == self.phrase:
                into.cls_tp += found
                continue
            into.cls_fn += found
            if phrase in wrong:
                wrong[phrase] += found

    def _count_association(
        self, matches: Sequence[_FrameMatch], gt_count: Float64Array, pred_count: Float64Array, into: _PhraseCounts
    ) -> None:
        gt, _ = relabel(self.gt_ids)
        pred, num_pred = relabel(self.pred_ids)
        pairs = np.concatenate([g[m[0]] * num_pred + p[m[1]] for g, p, m in zip(gt, pred, matches, strict=True)])
        sims = np.concatenate([m[2] for m in matches])
        for a, alpha in enumerate(ALPHAS):
            pair, together = np.unique(pairs[sims >= alpha - EPS], return_counts=True)
            in_gt, in_pred = gt_count[pair // num_pred], pred_count[pair % num_pred]
            squares = together**2
            into.assoc[:, a] += [
                (squares / (in_gt + in_pred - together)).sum(),
                (squares / in_gt).sum(),
                (squares / in_pred).sum(),
            ]
