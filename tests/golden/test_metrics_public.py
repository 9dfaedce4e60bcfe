"""Metrics on public ground truth and real results (``MASKLET_TEST_DATA``), against TrackEval and vos-benchmark."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline import masks as mask_ops
from pipeline.evaluate import FrameLabels, evaluate
from pipeline.evaluate.jf import MaskFrame, assigned_j_and_f, j_and_f, summarize_jf
from pipeline.evaluate.labels import LabelledVideo
from pipeline.groundtruth import open_truth
from pipeline.types import RLE
from tests.golden.sequences import TrackSequence
from tests.golden.test_metrics_files import assert_equal, imported, report, trackeval_mot, write_sequence
from tests.golden.test_metrics_trackeval import trackeval_data, trackeval_masks

trackeval = pytest.importorskip("trackeval")

FRAMES = 24
"""Of the SA-V video; all 121 agree too, but TrackEval takes half a minute for them."""


class SavMasklets:
    """The masklets of a SA-V annotation file as labels; empty run lengths are absence."""

    masks = True

    def __init__(self, path: Path) -> None:
        document = json.loads(path.read_text())
        size = int(document["video_height"]), int(document["video_width"])
        self.rows: list[dict[int, RLE]] = []
        for objects in document["masklet"][-FRAMES:]:  # the last ones: an object appears among them
            rles = [RLE((o["size"][0], o["size"][1]), o["counts"].encode()) for o in objects]
            areas = mask_ops.areas(rles)
            self.rows.append({i: rle for i, (rle, area) in enumerate(zip(rles, areas, strict=True)) if area})
        self.videos = (LabelledVideo("sav_000001", size, len(self.rows), ("object",)),)

    def frames(self, video_id: str) -> Iterator[FrameLabels]:
        for index, row in enumerate(self.rows):
            rles = tuple(row.values())
            yield FrameLabels(
                index,
                np.array([*row], np.int64),
                ("object",) * len(row),
                np.ones(len(row)),
                mask_ops.rle_boxes(rles).astype(float),
                rles,
            )


def test_model_made_masklets_against_human_ones(data: Path) -> None:
    folder = data / "sav_000001"
    manual, auto = SavMasklets(folder / "sav_000001_manual.json"), SavMasklets(folder / "sav_000001_auto.json")
    got = evaluate(auto, manual, ("hota", "clear", "identity", "jf"))
    video: list[MaskFrame] = list(zip(manual.rows, auto.rows, strict=True))
    similarities = [
        mask_ops.rle_iou(list(g.values()), list(p.values())) if g and p else np.zeros((len(g), len(p)))
        for g, p in video
    ]
    sequence = TrackSequence(
        [np.array([*g], int) for g, _ in video], [np.array([*p], int) for _, p in video], similarities
    )
    config = {"PRINT_CONFIG": False, "THRESHOLD": 0.5}
    frames = trackeval_data(sequence)
    theirs = {
        **trackeval.metrics.HOTA().eval_sequence(frames),
        **trackeval.metrics.CLEAR(config).eval_sequence(frames),
        **trackeval.metrics.Identity(config).eval_sequence(frames),
    }
    assert_equal(got, theirs, "mask")
    pytest.importorskip("skimage")
    masks = trackeval.metrics.JAndF().eval_sequence(trackeval_masks(video))
    for name in ("J&F", "J-Mean", "J-Recall", "J-Decay", "F-Mean", "F-Recall", "F-Decay"):
        assert got.score(name) == pytest.approx(masks[name], abs=1e-6), name


def test_ground_truth_against_itself_is_perfect(data: Path) -> None:
    manual = SavMasklets(data / "sav_000001" / "sav_000001_manual.json")
    got = evaluate(manual, manual)
    for kind in ("mask", "box"):
        for name in ("HOTA", "MOTA", "IDF1", "TETA", "AP", "pHOTA"):
            assert got.score(name, kind) == pytest.approx(1), name
    assert got.score("J&F") == 1


def test_crowd_with_distractors(data: Path, tmp_path: Path) -> None:
    """MOT17-04's first frames: predictions on static people and reflections are excused, cars are not looked for."""
    lines = (data / "mot17_04_demo8" / "gt.txt").read_text().split()
    rng = np.random.default_rng(0)
    pred = []
    for line in lines:
        frame, track, *box = line.split(",")[:6]
        if rng.random() < 0.85:
            noisy = np.array(box, float) + rng.normal(0, 3, 4)
            pred.append(f"{frame},{track},{','.join(f'{v:.2f}' for v in noisy)},0.9,-1,-1,-1")
    folder = write_sequence(tmp_path, lines, pred, 8, (1920, 1080))
    run = imported(tmp_path / "trackers" / "ours" / "data" / "seq.txt", "mot", tmp_path / "run")
    got = report(run, folder, ("hota", "clear", "identity"))
    assert_equal(got, trackeval_mot(tmp_path, "MOT17", 8), "box")
    assert got.score("FP", "box") < len(pred) - got.score("TP", "box")  # some were excused


def shifted(mask: Any, pixels: int) -> Any:
    return cv2.dilate(np.roll(mask, pixels, (0, 1)).astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)


@pytest.mark.parametrize("name", ["blackswan", "car-shadow"])
def test_davis_masks(data: Path, name: str) -> None:
    evaluator = pytest.importorskip("vos_benchmark.evaluator").Evaluator(name=name)
    with open_truth(data / "davis" / "Annotations" / name) as truth:
        gt = [mask_ops.decode(f.rles)[0] for f in truth.frames(name) if f.rles]
    video: list[MaskFrame] = []
    for t, mask in enumerate(gt[:20]):
        pred = shifted(mask, 1 + t % 5)
        evaluator.feed_frame(pred.astype(np.uint8), mask.astype(np.uint8))
        video.append(({1: mask_ops.encode(mask[None])[0]}, {1: mask_ops.encode(pred[None])[0]}))
    j, f = evaluator.conclude()
    ours = assigned_j_and_f(video, {1: 1})
    assert 100 * ours.j.mean() == pytest.approx(j[1], abs=1e-6)
    assert 100 * ours.f.mean() == pytest.approx(f[1], abs=1e-6)
    assert summarize_jf([j_and_f(video)]).j_and_f == pytest.approx((j[1] + f[1]) / 200, abs=1e-8)
