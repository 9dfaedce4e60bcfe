"""cgF1, pHOTA, phrase AP, YouTube-VIS mAP and TETA against Meta's evaluation toolkit, to 1e-6.

``saco.json`` holds the toolkit's numbers (it wants another NumPy); ``make_saco.py`` made them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from pipeline import masks as mask_ops
from pipeline.evaluate.hota import combine_hota, hota
from pipeline.evaluate.labels import FrameLabels
from pipeline.evaluate.overlap import Kind, VideoOverlap, overlap_video
from pipeline.evaluate.saco import SCORE_THRESHOLD, cgf1
from pipeline.evaluate.teta import teta
from pipeline.evaluate.track_ap import average_precision
from tests.golden.saco_cases import PHRASES, RECIPES, CaseTrack, CaseVideo, make_case

GOLDEN: Mapping[str, Mapping[str, float]] = json.loads(Path(__file__).with_name("saco.json").read_text())
KINDS: tuple[tuple[Kind, str], ...] = (("mask", "video_mask"), ("box", "video_bbox"))


def labels(tracks: Sequence[CaseTrack], frame: int) -> FrameLabels:
    rows = [(i, t) for i, t in enumerate(tracks) if t.masks[frame] is not None]
    rles = tuple(mask for _, t in rows if (mask := t.masks[frame]) is not None)
    return FrameLabels(
        frame,
        np.array([i for i, _ in rows], np.int64),
        tuple(t.phrase for _, t in rows),
        np.array([t.score for _, t in rows], np.float32).astype(float),  # as runs store them: means are exact
        mask_ops.rle_boxes(rles).astype(float),
        rles,
    )


def overlap(video: CaseVideo) -> VideoOverlap:
    def frames() -> Iterator[tuple[FrameLabels, FrameLabels]]:
        return ((labels(video.gt, t), labels(video.pred, t)) for t in range(video.num_frames))

    return overlap_video(str(video.video_id), frames, ("mask", "box"), video.asked)


@pytest.fixture(scope="module", params=RECIPES)
def case(request: pytest.FixtureRequest) -> tuple[Mapping[str, float], list[VideoOverlap]]:
    return GOLDEN[request.param], [overlap(v) for v in make_case(request.param)]


Case = tuple[Mapping[str, float], list[VideoOverlap]]


def test_every_case_has_every_number() -> None:
    assert set(GOLDEN) == set(RECIPES)
    assert all(len(numbers) >= 51 for numbers in GOLDEN.values())


@pytest.mark.parametrize(("kind", "prefix"), KINDS)
def test_cgf1(case: Case, kind: Kind, prefix: str) -> None:
    golden, videos = case
    scores = cgf1([v.pair(p, kind) for v in videos for p in v.phrases]).scores()
    names = {
        "cgF1": "cgf1_micro_50_95",
        "cgF1_50": "cgf1_micro_50",
        "cgF1_75": "cgf1_micro_75",
        "pmF1": "positive_micro_f1_50_95",
        "IL_MCC": "ilmcc_50_95",
    }
    for ours, theirs in names.items():
        assert scores[ours] == pytest.approx(golden[f"{prefix}_demo_{theirs}"], abs=1e-6), ours


@pytest.mark.parametrize(("kind", "prefix"), KINDS)
def test_average_precision(case: Case, kind: Kind, prefix: str) -> None:
    golden, videos = case
    pairs = [v.pair(p, kind) for v in videos for p in sorted(v.phrases, key=PHRASES.index)]
    scores = average_precision(pairs).scores()
    assert scores["AP"] == pytest.approx(golden[f"{prefix}_mAP_50_95"], abs=1e-6)
    for ours, theirs in {"": "50_95", "50": "50", "75": "75"}.items():
        assert scores[f"phrase_AP{ours}"] == pytest.approx(golden[f"{prefix}_phrase_ap_{theirs}"], abs=1e-6)


@pytest.mark.parametrize(("kind", "prefix"), KINDS)
def test_phrase_hota(case: Case, kind: Kind, prefix: str) -> None:
    golden, videos = case
    results = [hota(*v.sequence(p, kind, above=SCORE_THRESHOLD)) for v in videos for p in v.phrases]
    for name, value in combine_hota(results).scores().items():
        assert value == pytest.approx(golden[f"{prefix}_all_phrase_{name}"], abs=1e-6), name


def test_teta(case: Case) -> None:
    golden, videos = case
    scores = teta([v.teta("mask", at_least=SCORE_THRESHOLD) for v in videos], PHRASES)
    names = ("teta", "loc_a", "assoc_a", "cls_a", "loc_re", "loc_pr", "assoc_re", "assoc_pr", "cls_re", "cls_pr")
    for (name, value), theirs in zip(scores.items(), names, strict=True):
        assert value == pytest.approx(golden[f"video_mask_{theirs}"], abs=1e-6), name


def test_no_predictions_at_all_score_zero() -> None:
    """Meta's toolkit fails on an empty list."""
    video = make_case("typical")[0]
    videos = [overlap(CaseVideo(video.video_id, video.num_frames, video.asked, video.gt, ()))]
    pairs = [v.pair(p, "mask") for v in videos for p in v.phrases]
    assert cgf1(pairs).cgf1 == 0
    assert average_precision(pairs).scores()["AP"] == 0
    assert hota(*videos[0].sequence(video.gt[0].phrase, "mask")).hota == 0
    assert teta([v.teta("mask") for v in videos])["TETA"] == 0


def test_one_false_positive_on_the_only_absent_phrase_takes_cgf1_to_zero() -> None:
    video = make_case("perfect")[0]
    extra = CaseTrack(video.asked[3], video.gt[0].masks, 1.0)
    good, spoilt = video.pred, (*video.pred, extra)
    scores = []
    for pred in (good, spoilt):
        v = overlap(CaseVideo(1, video.num_frames, video.asked, video.gt, pred))
        scores.append(cgf1([v.pair(p, "mask") for p in v.phrases]).cgf1)
    assert scores[0] == pytest.approx(0.99995, abs=5e-5)  # its epsilons keep it from 1
    assert scores[1] == 0
