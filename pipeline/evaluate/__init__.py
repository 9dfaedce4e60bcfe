"""Metrics of tracking and segmentation in video, and their application to runs.

The metrics are pure functions on plain arrays and run lengths (``hota``, ``clear``, ``identity``, ``j_and_f``,
``teta``, ``cgf1``, ``average_precision``); :func:`evaluate` applies them to a run and ground truth, both seen as
:class:`Labels`, in one pass over their frames. Each video-phrase pair is a sequence of its own, so an object found
under the wrong phrase is not found; results of several pairs are combined as TrackEval combines sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.errors import FormatError, UsageError
from pipeline.evaluate.clear import ClearResult, clear, combine_clear
from pipeline.evaluate.hota import ALPHAS, HotaResult, combine_hota, hota
from pipeline.evaluate.identity import IdentityResult, combine_identity, identity
from pipeline.evaluate.jf import JFResult, assigned_j_and_f, boundary_f, j_and_f, summarize_jf
from pipeline.evaluate.labels import FrameLabels, LabelledVideo, Labels, Role, RunLabels
from pipeline.evaluate.overlap import Frames, Kind, overlap_video
from pipeline.evaluate.pairing import Matching, PhraseMap, VideoPair, frames_of, pair_videos
from pipeline.evaluate.report import Comparison, EvalReport, Row
from pipeline.evaluate.saco import SCORE_THRESHOLD, CgF1Result, cgf1
from pipeline.evaluate.scoring import METRICS, PairResult, Scores, group_scores, jf_by_phrase, score_pairs
from pipeline.evaluate.sequence import Float64Array
from pipeline.evaluate.teta import TetaVideo, teta
from pipeline.evaluate.track_ap import ApResult, PhrasePair, average_precision

__all__ = [
    "METRICS",
    "ApResult",
    "CgF1Result",
    "ClearResult",
    "Comparison",
    "EvalReport",
    "FrameLabels",
    "HotaResult",
    "IdentityResult",
    "JFResult",
    "LabelledVideo",
    "Labels",
    "PhrasePair",
    "Role",
    "Row",
    "RunLabels",
    "TetaVideo",
    "assigned_j_and_f",
    "average_precision",
    "boundary_f",
    "cgf1",
    "clear",
    "combine_clear",
    "combine_hota",
    "combine_identity",
    "evaluate",
    "hota",
    "identity",
    "j_and_f",
    "summarize_jf",
    "teta",
]


class _VideoScores(NamedTuple):
    video_id: str
    pairs: list[PairResult]
    teta: dict[Kind, TetaVideo]


def evaluate(
    run: Labels,
    truth: Labels,
    metrics: Sequence[str] = tuple(METRICS),
    *,
    name: str = "run",
    matching: Matching = "auto",
) -> EvalReport:
    """Score a run against ground truth.

    Args:
        run: what was found.
        truth: what is there.
        metrics: names in :data:`METRICS`.
        name: what to call the run.
        matching: whether phrases must agree; ``auto`` demands it where both sides have a phrase in common.

    Raises:
        UsageError: an unknown metric, or none can be had (J&F of boxes).
        FormatError: the two are not of the same videos, or a track has two phrases or twice the same frame.
    """
    unknown = [m for m in metrics if m not in METRICS]
    if unknown or not metrics:
        raise UsageError(f"unknown metric {', '.join(unknown)!r}", "--metrics", f"choose from {', '.join(METRICS)}")
    kinds: tuple[Kind, ...] = ("mask", "box") if run.masks and truth.masks else ("box",)
    if list(metrics) == ["jf"] and "mask" not in kinds:
        raise UsageError(
            "J&F needs masks, and the ground truth has boxes only", "--metrics jf", "choose another metric"
        )
    notes: list[str] = []
    pairs = pair_videos(truth.videos, run.videos, notes)
    phrases = PhraseMap([p.gt for p in pairs], [p.pred for p in pairs if p.pred], matching)
    notes += phrases.notes()
    if "jf" in metrics and "mask" not in kinds:
        notes.append("J&F left out: the ground truth has boxes only")
    scored = [_score_video(p, truth, run, phrases, kinds, metrics) for p in pairs]
    if "cgf1" in metrics and all(r.num_gt for v in scored for r in v.pairs):
        notes.append("cgF1 is 0 by definition: no video was asked for a phrase that it does not have")
    return _report(name, tuple(metrics), kinds, scored, tuple(notes))


def _score_video(
    pair: VideoPair, truth: Labels, run: Labels, phrases: PhraseMap, kinds: tuple[Kind, ...], metrics: Sequence[str]
) -> _VideoScores:
    frames = frames_of(pair, truth, run, phrases, kinds[0])
    try:
        overlap = overlap_video(pair.gt.video_id, frames, kinds, [phrases(p) for p in pair.gt.phrases])
    except ValueError as error:
        raise FormatError(str(error), pair.gt.video_id, "mend the file") from error
    wants_jf = "jf" in metrics and "mask" in kinds
    jf = jf_by_phrase(overlap, frames, _indices(pair, frames)) if wants_jf else {}
    teta_videos = {k: overlap.teta(k, at_least=SCORE_THRESHOLD) for k in kinds} if "teta" in metrics else {}
    return _VideoScores(pair.gt.video_id, score_pairs(overlap, metrics, jf), teta_videos)


def _indices(pair: VideoPair, frames: Frames) -> Sequence[int]:
    """The frames that J&F averages over: all that both sides looked at."""
    if pair.num_frames is None or pair.gt.sparse:
        return [gt.index for gt, _ in frames()]
    return [i for i in range(pair.num_frames) if pair.compared(i)]


def _report(
    name: str,
    metrics: tuple[str, ...],
    kinds: tuple[Kind, ...],
    scored: Sequence[_VideoScores],
    notes: tuple[str, ...],
) -> EvalReport:
    everything = [p for v in scored for p in v.pairs]

    def scores(pairs: Sequence[PairResult], videos: Sequence[_VideoScores] = ()) -> Scores:
        return group_scores(pairs, [v.teta for v in videos], kinds, metrics)

    videos = {v.video_id: scores(v.pairs, [v]) for v in scored}
    return EvalReport(
        name,
        metrics,
        scores(everything, scored) if len(scored) > 1 else videos[scored[0].video_id],
        videos,
        {p: scores([r for r in everything if r.phrase == p]) for p in sorted({r.phrase for r in everything})},
        {v.video_id: {r.phrase: scores([r]) for r in v.pairs} for v in scored},
        {k: _curves([r.hota[k] for r in everything]) for k in kinds} if "hota" in metrics else {},
        notes,
    )


def _curves(results: Sequence[HotaResult]) -> dict[str, Float64Array]:
    combined = combine_hota(results)
    return {
        "alpha": np.asarray(ALPHAS),
        "HOTA": combined.hota_alpha,
        "DetA": combined.det_a_alpha,
        "AssA": combined.ass_a_alpha,
        "LocA": combined.loc_a_alpha,
    }
