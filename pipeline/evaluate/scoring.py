"""From overlaps to scores: every video and phrase once, then any grouping of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.evaluate.clear import ClearResult, clear, combine_clear
from pipeline.evaluate.hota import HotaResult, combine_hota, hota
from pipeline.evaluate.identity import IdentityResult, combine_identity, identity
from pipeline.evaluate.jf import JFResult, assign_by_j, assigned_j_and_f, summarize_jf
from pipeline.evaluate.overlap import Frames, Kind, MaskFrames, VideoOverlap
from pipeline.evaluate.saco import SCORE_THRESHOLD, cgf1
from pipeline.evaluate.teta import TetaVideo, teta
from pipeline.evaluate.track_ap import PhrasePair, average_precision

METRICS = {
    "hota": "HOTA, DetA, AssA, LocA (arXiv 2009.07736)",
    "clear": "CLEAR MOT: MOTA, identity switches, mostly tracked ...",
    "identity": "IDF1, IDP, IDR (arXiv 1609.01775)",
    "jf": "J&F of masks (DAVIS)",
    "cgf1": "SA-Co cgF1 and pHOTA of tracks that score 0.5 or more, absent phrases included (SAM 3)",
    "teta": "TETA of tracks that score 0.5 or more: localisation, association, classification (arXiv 2207.12978)",
    "ap": "track AP: YouTube-VIS mAP and phrase AP",
}
"""Names for ``--metrics``, with a line on each."""

Scores = dict[str, dict[str, float]]
"""Scores by kind of overlap (``mask``, ``box``), then by name."""


@dataclass(frozen=True, slots=True)
class PairResult:
    """One phrase in one video, everything that combines; ``None`` or empty what was not asked for."""

    video_id: str
    phrase: str
    num_gt: int
    """Annotated tracks."""
    num_pred: int
    """Predicted tracks."""
    hota: dict[Kind, HotaResult]
    confident_hota: dict[Kind, HotaResult]
    """Of tracks that score above 0.5, as pHOTA counts them."""
    clear: dict[Kind, ClearResult]
    identity: dict[Kind, IdentityResult]
    tracks: dict[Kind, PhrasePair]
    jf: JFResult | None = None


def score_pairs(video: VideoOverlap, metrics: Sequence[str], jf: dict[str, JFResult]) -> list[PairResult]:
    """The results of every phrase of one video."""
    return [_score_pair(video, phrase, metrics, jf.get(phrase)) for phrase in video.phrases]


def _score_pair(video: VideoOverlap, phrase: str, metrics: Sequence[str], jf: JFResult | None) -> PairResult:
    sides = (video.gt_tracks, video.pred_tracks)
    num_gt, num_pred = (sum(t.phrase == phrase for t in side.values()) for side in sides)
    out = PairResult(video.video_id, phrase, num_gt, num_pred, {}, {}, {}, {}, {}, jf)
    for kind in video.kinds:
        sequence = video.sequence(phrase, kind)
        if "hota" in metrics:
            out.hota[kind] = hota(*sequence)
        if "cgf1" in metrics:
            out.confident_hota[kind] = hota(*video.sequence(phrase, kind, above=SCORE_THRESHOLD))
        if "clear" in metrics:
            out.clear[kind] = clear(*sequence)
        if "identity" in metrics:
            out.identity[kind] = identity(*sequence)
        if "cgf1" in metrics or "ap" in metrics:
            out.tracks[kind] = video.pair(phrase, kind)
    return out


def jf_by_phrase(video: VideoOverlap, frames: Frames, indices: Iterable[int]) -> dict[str, JFResult]:
    """J and F of one video, objects assigned within their phrase; one pass over the masks."""
    indices = list(indices)
    partner: dict[int, int | None] = {}
    for phrase in video.phrases:
        partner |= assign_by_j(*video.sequence(phrase, "mask"), len(indices))
    result = assigned_j_and_f(MaskFrames(frames, indices), partner)
    out = {}
    for phrase in video.phrases:
        rows = [r for r, g in enumerate(result.gt_ids) if video.gt_tracks[g].phrase == phrase]
        ids = [(result.gt_ids[r], result.pred_ids[r]) for r in rows]
        out[phrase] = JFResult(tuple(g for g, _ in ids), tuple(p for _, p in ids), result.j[rows], result.f[rows])
    return out


def group_scores(
    pairs: Sequence[PairResult],
    videos: Sequence[Mapping[Kind, TetaVideo]],
    kinds: Sequence[Kind],
    metrics: Sequence[str],
) -> Scores:
    """The scores of these pairs together; TETA where the whole ``videos`` are given too, since it needs all phrases.

    Where nothing is annotated and nothing predicted there is nothing to score: all is NaN.
    """
    out = _group_scores(pairs, videos, kinds, metrics)
    if any(p.num_gt or p.num_pred for p in pairs):
        return out
    return {kind: dict.fromkeys(scores, math.nan) for kind, scores in out.items()}


def _group_scores(
    pairs: Sequence[PairResult],
    videos: Sequence[Mapping[Kind, TetaVideo]],
    kinds: Sequence[Kind],
    metrics: Sequence[str],
) -> Scores:
    out: Scores = {}
    for kind in kinds:
        scores = out.setdefault(kind, {})
        for metric in metrics:
            if metric in _COMBINED:
                scores |= _COMBINED[metric](pairs, kind)
        if "teta" in metrics and videos:
            scores |= teta([v[kind] for v in videos])
    if "jf" in metrics and "mask" in kinds:
        out["mask"] |= summarize_jf([p.jf for p in pairs if p.jf]).scores()
    return out


def _hota(pairs: Sequence[PairResult], kind: Kind) -> dict[str, float]:
    return combine_hota([p.hota[kind] for p in pairs]).scores()


def _clear(pairs: Sequence[PairResult], kind: Kind) -> dict[str, float]:
    return combine_clear([p.clear[kind] for p in pairs]).scores()


def _identity(pairs: Sequence[PairResult], kind: Kind) -> dict[str, float]:
    return combine_identity([p.identity[kind] for p in pairs]).scores()


def _saco(pairs: Sequence[PairResult], kind: Kind) -> dict[str, float]:
    phota = combine_hota([p.confident_hota[kind] for p in pairs]).scores()
    return cgf1([p.tracks[kind] for p in pairs]).scores() | {f"p{n}": phota[n] for n in ("HOTA", "DetA", "AssA")}


def _ap(pairs: Sequence[PairResult], kind: Kind) -> dict[str, float]:
    return average_precision([p.tracks[kind] for p in pairs]).scores()


_COMBINED: dict[str, Callable[[Sequence[PairResult], Kind], dict[str, float]]] = {
    "hota": _hota,
    "clear": _clear,
    "identity": _identity,
    "cgf1": _saco,
    "ap": _ap,
}
