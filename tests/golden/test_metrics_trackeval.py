"""HOTA, CLEAR, identity and J&F against TrackEval 1.3.0, and J&F against vos-benchmark, to 1e-6 and better."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline import masks as mask_ops
from pipeline.evaluate.clear import clear, combine_clear
from pipeline.evaluate.hota import combine_hota, hota
from pipeline.evaluate.identity import combine_identity, identity
from pipeline.evaluate.jf import MaskFrame, assigned_j_and_f, j_and_f, summarize_jf
from tests.golden.sequences import TrackSequence, corner_sequences, random_sequence

trackeval = pytest.importorskip("trackeval")

SEQUENCES = {**corner_sequences(), **{f"random {seed}": random_sequence(seed) for seed in range(20, 26)}}
CLEAR_NAMES = {"Recall": "CLR_Re", "Precision": "CLR_Pr", "TP": "CLR_TP", "FN": "CLR_FN", "FP": "CLR_FP"}


def trackeval_data(sequence: TrackSequence) -> dict[str, Any]:
    """TrackEval's input dictionary, ids relabelled the plain way."""
    data: dict[str, Any] = {"num_timesteps": len(sequence.gt_ids), "similarity_scores": sequence.similarities}
    for side, frames in (("gt", sequence.gt_ids), ("tracker", sequence.pred_ids)):
        names = sorted({int(i) for ids in frames for i in ids})
        data[f"{side}_ids"] = [np.array([names.index(i) for i in ids], dtype=int) for ids in frames]
        data[f"num_{side}_ids"], data[f"num_{side}_dets"] = len(names), sum(len(ids) for ids in frames)
    return data


def quiet(metric: Any) -> Any:
    return metric({"PRINT_CONFIG": False, "THRESHOLD": 0.5})


def arguments(sequence: TrackSequence) -> tuple[Any, Any, Any]:
    return sequence.gt_ids, sequence.pred_ids, sequence.similarities


def assert_same_hota(ours: Any, theirs: dict[str, Any]) -> None:
    for name, value in ours.scores().items():
        assert value == pytest.approx(np.mean(theirs[name]), abs=1e-9), name
    np.testing.assert_allclose(ours.hota_alpha, theirs["HOTA"], atol=1e-9)
    np.testing.assert_array_equal(ours.tp, theirs["HOTA_TP"])
    np.testing.assert_array_equal(ours.fn, theirs["HOTA_FN"])
    np.testing.assert_array_equal(ours.fp, theirs["HOTA_FP"])


@pytest.mark.parametrize("name", SEQUENCES)
def test_frame_metrics_equal_trackeval(name: str) -> None:
    sequence = SEQUENCES[name]
    data = trackeval_data(sequence)
    assert_same_hota(hota(*arguments(sequence)), trackeval.metrics.HOTA().eval_sequence(data))
    theirs = quiet(trackeval.metrics.CLEAR).eval_sequence(data)
    for key, value in clear(*arguments(sequence)).scores().items():
        assert value == pytest.approx(theirs[CLEAR_NAMES.get(key, key)], abs=1e-9), key
    theirs = quiet(trackeval.metrics.Identity).eval_sequence(data)
    for key, value in identity(*arguments(sequence)).scores().items():
        assert value == pytest.approx(theirs[key], abs=1e-9), key


def test_combined_sequences_equal_trackeval() -> None:
    data = {name: trackeval_data(s) for name, s in SEQUENCES.items()}
    reference = trackeval.metrics.HOTA()
    theirs = reference.combine_sequences({n: reference.eval_sequence(d) for n, d in data.items()})
    assert_same_hota(combine_hota([hota(*arguments(s)) for s in SEQUENCES.values()]), theirs)
    for metric, ours in (
        (trackeval.metrics.CLEAR, combine_clear([clear(*arguments(s)) for s in SEQUENCES.values()])),
        (trackeval.metrics.Identity, combine_identity([identity(*arguments(s)) for s in SEQUENCES.values()])),
    ):
        reference = quiet(metric)
        theirs = reference.combine_sequences({n: reference.eval_sequence(d) for n, d in data.items()})
        for key, value in ours.scores().items():
            assert value == pytest.approx(theirs[CLEAR_NAMES.get(key, key)], abs=1e-9), key


def blob_video(
    seed: int, *, frames: int = 12, gt: int = 3, pred: int = 4, size: tuple[int, int] = (60, 80)
) -> list[MaskFrame]:
    """Disks that drift, vanish and come back, with predictions that lag behind them."""
    rng = np.random.default_rng(seed)
    start, drift = rng.uniform(5, 55, (max(gt, pred), 2)), rng.uniform(-2, 2, (max(gt, pred), 2))

    def disk(i: int, t: int, wobble: float) -> Any:
        canvas = np.zeros(size, np.uint8)
        x, y = start[i] + drift[i] * t + rng.normal(0, wobble, 2)
        cv2.ellipse(canvas, (int(x), int(y)), (12, 8), 20 * i, 0, 360, 1, -1)
        return mask_ops.encode(canvas.astype(bool)[None])[0]

    video: list[MaskFrame] = []
    for t in range(frames):
        g = {7 * i + 1: disk(i, t, 0.0) for i in range(gt) if rng.random() > 0.3}
        p = {50 - i: disk(i, t, 1.5) for i in range(pred) if rng.random() > 0.3}
        video.append((g, p))
    return video


def trackeval_masks(video: list[MaskFrame]) -> dict[str, Any]:
    empty: Any = [np.zeros((len(g), len(p))) for g, p in video]
    ids = [([*g], [*p]) for g, p in video]
    data = trackeval_data(TrackSequence([np.array(g, int) for g, _ in ids], [np.array(p, int) for _, p in ids], empty))
    data["gt_dets"] = [[r.to_coco() for r in g.values()] for g, _ in video]
    data["tracker_dets"] = [[r.to_coco() for r in p.values()] for _, p in video]
    return data


VIDEOS = {
    "plain": blob_video(0),
    "more objects than predictions": blob_video(1, gt=5, pred=2),
    "more predictions than objects": blob_video(2, gt=1, pred=6),
    "no predictions": blob_video(3, pred=0),
    "single frame": blob_video(4, frames=1, gt=2, pred=2),
    "two frames": blob_video(5, frames=2),
    "long": blob_video(6, frames=60, gt=2, pred=2),
    "odd size": blob_video(7, size=(77, 131)),
}


@pytest.mark.parametrize("name", VIDEOS)
def test_j_and_f_equals_trackeval(name: str) -> None:
    pytest.importorskip("skimage")
    video = VIDEOS[name]
    theirs = trackeval.metrics.JAndF().eval_sequence(copy.deepcopy(trackeval_masks(video)))
    ours = summarize_jf([j_and_f(video)]).scores()
    assert ours.pop("objects") == theirs["num_gt_tracks"]
    for key, value in ours.items():
        assert value == pytest.approx(theirs[key], abs=1e-9), key


def test_combined_videos_equal_trackeval() -> None:
    pytest.importorskip("skimage")
    reference = trackeval.metrics.JAndF()
    each = {name: reference.eval_sequence(copy.deepcopy(trackeval_masks(v))) for name, v in VIDEOS.items()}
    theirs = reference.combine_sequences(each)
    ours = summarize_jf([j_and_f(v) for v in VIDEOS.values()]).scores()
    ours.pop("objects")
    for key, value in ours.items():
        assert value == pytest.approx(theirs[key], abs=1e-9), key


@pytest.mark.parametrize("name", ["plain", "more objects than predictions", "odd size"])
def test_j_and_f_equals_vos_benchmark(name: str) -> None:
    evaluator = pytest.importorskip("vos_benchmark.evaluator").Evaluator(name=name)
    video = [_disjoint(frame) for frame in VIDEOS[name]]
    evaluator.objects_in_gt = {7 * i + 1 for i in range(5)}  # an object absent from the first frames counts there too
    for gt, pred in video:
        size = next(iter([*gt.values(), *pred.values()])).size
        evaluator.feed_frame(_labels({7 * (50 - p) + 1: r for p, r in pred.items()}, size), _labels(gt, size))
    j, f = evaluator.conclude()
    partner = {g: 50 - (g - 1) // 7 for g in j}
    ours = assigned_j_and_f(video, partner)
    for gt_id, ours_j, ours_f in zip(ours.gt_ids, ours.j.mean(1), ours.f.mean(1), strict=True):
        assert 100 * ours_j == pytest.approx(j[gt_id], abs=1e-6)
        assert 100 * ours_f == pytest.approx(f[gt_id], abs=1e-6)


def _labels(masks: Mapping[int, Any], size: tuple[int, int]) -> Any:
    image = np.zeros(size, np.uint8)
    for label, rle in masks.items():
        image[mask_ops.decode([rle])[0]] = label
    return image


def _disjoint(frame: MaskFrame) -> MaskFrame:
    """The frame as a label image holds it: where masks overlap, the last one wins."""
    out = []
    for side in frame:
        rest: dict[int, Any] = {}
        taken = None
        for track, rle in reversed(list(side.items())):
            mask = mask_ops.decode([rle])[0]
            mask &= ~taken if taken is not None else True
            taken = mask if taken is None else taken | mask
            if mask.any():
                rest[track] = mask_ops.encode(mask[None])[0]
        out.append(dict(reversed(list(rest.items()))))
    return out[0], out[1]
